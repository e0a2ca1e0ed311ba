// Prints the machine's limits for 1 to n threads (default: as many as there are processors).
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "bench/roofline.h"

int main(int argc, char** argv) {
  const int most =
      argc > 1 ? std::atoi(argv[1]) : static_cast<int>(std::thread::hardware_concurrency());
  std::printf("%7s %12s %12s %12s  %s\n", "threads", "DRAM GB/s", "f32 GFLOP/s", "int8 GOP/s",
              "int8 by");
  for (int threads = 1; threads <= most; ++threads) {
    const mneme::bench::Roofline r = mneme::bench::MeasureRoofline(threads);
    std::printf("%7d %12.1f %12.1f %12.1f  %s\n", threads, r.read_gbps, r.f32_gflops, r.int8_gops,
                r.int8_method.c_str());
  }
}
