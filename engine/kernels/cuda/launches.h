// What decides how many launches and copies a call is: for launchers, and for who counts without
// launching (cost.h).
#pragma once

#include <cstddef>
#include <cstdint>

namespace mneme::engine::cuda {

// A launch's arguments hold lists of up to so many bytes; a longer one is a copy before the launch.
inline constexpr size_t kListBytes = 2048;
template <typename T>
constexpr size_t FewOf() {
  return sizeof(T) < kListBytes ? kListBytes / sizeof(T) : 1;
}

// Products of a launch. Calls have up to six or so.
inline constexpr int kMaxProducts = 8;
// What a warp of a product has: few tokens, few rows of weights, that there be blocks for the whole
// device.
struct ProductTile {
  int rows;
  int tokens;
};
constexpr ProductTile ProductTileOf(int64_t T) {
  return T == 1   ? ProductTile{2, 1}
         : T == 2 ? ProductTile{2, 2}
         : T <= 4 ? ProductTile{2, 4}
                  : ProductTile{4, 8};
}
// Warps of a block, and what each takes of a row of quantised weights at a time.
inline constexpr int kProductWarps = 4;
inline constexpr int64_t kProductGroup = 1024;
// Parts that a row of K elements is cut into: each is worth a warp.
constexpr int ProductSplit(int64_t K) {
  return K <= kProductGroup ? 1 : K <= 2 * kProductGroup ? 2 : kProductWarps;
}

// The second and third dimension of a grid.
inline constexpr int64_t kMostGridRows = 65535;

// Threads and rows of a block of a scan over heads of N channels: a row has as many lanes as hold
// it in registers, 16 elements each.
inline constexpr int kScanThreads = 128;
constexpr int ScanLanes(int64_t N) { return N <= 64 ? 4 : N <= 128 ? 8 : N <= 256 ? 16 : 32; }

// Rows (queries times the heads that read one kv head) that a block of attention takes, for a
// sequence that has `rows` of them.
inline constexpr int kFewRows = 4, kSomeRows = 8, kManyRows = 32;
constexpr int RowsOfBlock(int64_t rows) {
  return rows <= kFewRows ? kFewRows : rows <= kSomeRows ? kSomeRows : kManyRows;
}
// Scratch for partials; beyond it, a call of attention takes several pairs of launches.
inline constexpr int64_t kMostUnitFloats = int64_t{16} << 20;
// Of a partial of one block and kv head: values, and the largest score and the sum of each row.
constexpr int64_t UnitFloatsOf(int rows, int64_t value_dim) { return rows * (value_dim + 2); }

}  // namespace mneme::engine::cuda
