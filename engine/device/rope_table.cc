#include "engine/device/rope_table.h"

#include <algorithm>
#include <cmath>

#include "engine/core/thread_pool.h"

namespace mneme::engine {

const RopeTables::Table& RopeTables::Get(ThreadPool& pool, std::span<const int64_t> positions,
                                         std::span<const double> theta) {
  for (const Table& table : tables_) {
    if (std::ranges::equal(table.positions, positions) && std::ranges::equal(table.theta, theta)) {
      return table;
    }
  }
  Table& table = tables_[next_];
  next_ = (next_ + 1) % kTables;
  table.id = ++last_id_;
  const int64_t T = static_cast<int64_t>(positions.size());
  const int64_t pairs = static_cast<int64_t>(theta.size());
  table.positions.assign(positions.begin(), positions.end());
  table.theta.assign(theta.begin(), theta.end());
  table.cos.resize(T * pairs);
  table.sin.resize(T * pairs);
  constexpr int64_t kTokensPerTask = 16;
  pool.Run((T + kTokensPerTask - 1) / kTokensPerTask, [&](int64_t task, int) {
    const int64_t end = std::min(T, (task + 1) * kTokensPerTask);
    for (int64_t t = task * kTokensPerTask; t < end; ++t) {
      for (int64_t j = 0; j < pairs; ++j) {
        // libm reduces the double angle exactly.
        const double angle = static_cast<double>(positions[t]) * theta[j];
        table.cos[t * pairs + j] = static_cast<float>(std::cos(angle));
        table.sin[t * pairs + j] = static_cast<float>(std::sin(angle));
      }
    }
  });
  return table;
}

}  // namespace mneme::engine
