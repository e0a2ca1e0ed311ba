// Speed of the kernels of memories and blocks beside the reference, one thread, state in cache.
#pragma once

#include <string>

namespace mneme::engine {

// Prints a row for each kernel and shape whose name contains `filter`; `budget` is seconds a row.
// Every result is first checked against the reference. False if one is wrong.
bool BenchMixerKernels(double budget, const std::string& filter);

}  // namespace mneme::engine
