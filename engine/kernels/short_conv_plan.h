// The order of the parts of a call of short_conv.h, shared by the backends.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

#include "engine/kernels/host.h"
#include "engine/kernels/short_conv.h"

namespace mneme::engine {

// A row's x and those before it. `rows` has room for K pointers.
inline void FindConvolvedRows(const ShortConvArgs& args, int64_t t, const float** rows) {
  const int64_t tail = args.num_taps - 1;
  for (int64_t k = 0; k <= tail; ++k) {
    const int64_t at = t - tail + k;
    // Rows of negative positions have never been written: they are zero.
    const int64_t slot = tail == 0 ? 0 : ((args.position + at) % tail + tail) % tail;
    rows[k] = at >= 0 ? args.x + at * args.width : args.kept + slot * args.width;
  }
}

// `Ops` has, as static functions:
//   Convolve(rows, taps, K, width, y)    y[c] = silu(sum_k taps[k, c] * rows[k][c])
//   Normalize(x, heads, width)           each of `heads` neighbours of `width`, in place
template <typename Ops>
void RunShortConv(Exec& exec, std::span<const ShortConvArgs> batch) {
  constexpr int64_t kRowsPerTask = 8;  // an exponential per channel
  const auto num_tasks = [](const ShortConvArgs& args) {
    return (args.rows + kRowsPerTask - 1) / kRowsPerTask;
  };
  int64_t tasks = 0, taps = 0;
  for (const ShortConvArgs& args : batch) {
    tasks += num_tasks(args);
    taps = std::max(taps, args.num_taps);
  }
  static_assert(sizeof(const float*) <= 2 * sizeof(float));
  const auto workers = Host(exec).WorkerScratch(HostDevice::kShortConvWorkers, 2 * taps);
  Host(exec).pool().Run(tasks, [&](int64_t task, int worker) {
    const ShortConvArgs* args = batch.data();
    for (; task >= num_tasks(*args); ++args) task -= num_tasks(*args);
    auto** rows = reinterpret_cast<const float**>(workers.Of(worker));
    const int64_t end = std::min(args->rows, (task + 1) * kRowsPerTask);
    for (int64_t t = task * kRowsPerTask; t < end; ++t) {
      FindConvolvedRows(*args, t, rows);
      float* y = args->y + t * args->width;
      Ops::Convolve(rows, args->taps, args->num_taps, args->width, y);
      if (args->norm_heads > 0) Ops::Normalize(y, args->norm_heads, args->width / args->norm_heads);
    }
  });
  for (const ShortConvArgs& args : batch) {
    const int64_t tail = args.num_taps - 1;
    for (int64_t t = std::max<int64_t>(0, args.rows - tail); t < args.rows; ++t) {
      std::memcpy(args.kept + (args.position + t) % tail * args.width, args.x + t * args.width,
                  args.width * sizeof(float));
    }
  }
}

}  // namespace mneme::engine
