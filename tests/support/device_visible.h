// Kernel tests hand kernels their own arrays. A host's kernels and the emulator's reach them; a
// real device reaches memory that it was shown.
#pragma once

namespace mneme::test {

// Runs `run` so, if TESTED_BACKEND=cuda, that the heap and its stack are memory that CUDA's devices
// may use at the host's addresses. Aborts if that cannot be had. Otherwise just runs it.
int RunVisibleToDevice(int (*run)());

}  // namespace mneme::test
