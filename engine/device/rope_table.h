// Cosines and sines of the rotary angles of one list of positions, kept from call to call.
//
// Every layer of a step rotates by the same angles. In double precision they cost more than the
// rotation itself: 512 positions of 32 pairs take half a millisecond, times layers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mneme::engine {

class ThreadPool;

class RopeTables {
 public:
  // A step uses two lists of positions (absolute, and relative to the sinks).
  static constexpr int kTables = 4;

  struct Table {
    // [T, pairs], token-major.
    std::vector<float> cos;
    std::vector<float> sin;
    // From 1, another one whenever the numbers above are other ones.
    int64_t id = 0;

    std::vector<int64_t> positions;  // the key, with theta
    std::vector<double> theta;
  };

  // Valid until four other tables have been asked for. Angles are formed and reduced mod 2 pi in
  // double, then cosine and sine are rounded to f32.
  const Table& Get(ThreadPool& pool, std::span<const int64_t> positions,
                   std::span<const double> theta);

 private:
  Table tables_[kTables];
  int next_ = 0;
  int64_t last_id_ = 0;
};

}  // namespace mneme::engine
