// What this machine can do at most: the denominators of every share-of-peak we report.
//
// Neighbours on a shared host take bandwidth, so measure in the same run as the thing compared.
#pragma once

#include <cstddef>
#include <string>

namespace mneme::bench {

struct Roofline {
  int threads = 0;
  double read_gbps = 0;     // 1e9 bytes/s, sum of all threads
  double f32_gflops = 0;    // fused multiply-add counted as 2
  double int8_gops = 0;     // multiply-accumulate counted as 2
  std::string int8_method;  // the fastest instruction sequence
};

// The bandwidth as MeasureReadGbps; then the arithmetic peaks, register-resident. About a second.
// The default buffer exceeds most last caches, and so measures DRAM; for the bound of a given
// workload give the bytes that it reads.
Roofline MeasureRoofline(int threads, size_t buffer_bytes = size_t{384} << 20, int repeats = 5);

// Streams through `buffer_bytes` shared out over threads and keeps the best of `repeats`
// measurements: the bandwidth of whichever cache or memory holds them. Small buffers are read many
// times over in one measurement.
double MeasureReadGbps(int threads, size_t buffer_bytes = size_t{384} << 20, int repeats = 5);

// The peak of fused multiply-adds in f32 alone, GFLOP/s.
double MeasureF32Gflops(int threads);

}  // namespace mneme::bench
