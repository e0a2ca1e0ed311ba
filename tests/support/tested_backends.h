// Which backends a test program runs on. ctest runs each that says CUDA_EMU a second time, for the
// kernels of CUDA, executed on the host.
#pragma once

#include <vector>

#include "engine/kernels/kernels.h"

namespace mneme::test {

// Those of the build; with TESTED_BACKEND=cuda-emu, or cuda on a machine with a GPU, that one
// alone, of the library TESTED_PLUGIN if that is set. Aborts if it is not there: tests that
// silently run on nothing would pass.
std::vector<const engine::Kernels*> TestedBackends();

}  // namespace mneme::test
