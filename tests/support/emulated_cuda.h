// The emulated CUDA backend with what it counts.
#pragma once

#include <memory>

#include "engine/device/device.h"
#include "tests/support/cuemu/counts.h"

namespace mneme::test {

// A device of it. Aborts if the plugin cannot be opened.
std::unique_ptr<engine::Device> EmulatedCudaDevice();
// Of all its devices since the first one was made.
const CuemuCounts& EmulatedCudaCounts();

}  // namespace mneme::test
