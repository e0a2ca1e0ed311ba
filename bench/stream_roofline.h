// How fast this machine moves a given set of arrays: the limit of a kernel whose arithmetic is
// free. Which cache holds the arrays follows from their sizes.
#pragma once

#include <cstdint>
#include <vector>

#include "bench/aligned_floats.h"

namespace mneme::bench {

// Arrays of f32 that a kernel walks together, row by row.
struct Streams {
  int64_t rows = 1;
  int64_t width = 0;   // elements of a row; a multiple of 32
  int read = 0;        // arrays [rows, width] read, 1 or more
  int read_again = 0;  // arrays [width], read anew for every row
  int written = 0;     // arrays [rows, width] written, 1 or 2
  int in_place = 0;    // how many of those written are also read: the last ones of either kind

  // As a processor loads and stores them.
  double bytes() const {
    return 4.0 * static_cast<double>(rows * width) * (read + read_again + written);
  }
};

// One thread's loop over arrays of these sizes; seven loads and two stores an element at most.
class StreamRoofline {
 public:
  explicit StreamRoofline(const Streams& streams);
  // Reads and writes everything once.
  void Run();

 private:
  Streams streams_;
  std::vector<AlignedFloats> arrays_;
  std::vector<const float*> read_;  // those read anew come last
  std::vector<float*> written_;
  void (*row_)(const float* const* read, float* const* written, int64_t width);
};

}  // namespace mneme::bench
