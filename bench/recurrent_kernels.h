// Speed of RWKV's kernels beside the reference, state in cache.
#pragma once

#include <string>

namespace mneme::engine {

// Prints a row for each kernel and number of tokens whose kernel's name contains `filter`; `budget`
// is seconds a row. On one thread, kernels that do little but move data are also compared with a
// plain loop over arrays of the same sizes. Every result is first checked against the reference.
// False if one is wrong.
bool BenchRecurrentKernels(int threads, double budget, const std::string& filter);

}  // namespace mneme::engine
