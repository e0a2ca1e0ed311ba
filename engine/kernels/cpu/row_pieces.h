// Rows dealt to the threads, in pieces large enough to be worth a fork. Where pieces end changes no
// result: rows are independent.
#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/kernels/host.h"

namespace mneme::engine::cpu {

// Below this a fork costs more than it saves, for an element's worth of arithmetic.
inline constexpr int64_t kElementsPerPiece = 8192;

// Calls fn(begin, end) for pieces of [0, rows), rows of `width` elements.
template <typename Fn>
void ForEachRowPiece(Exec& exec, int64_t rows, int64_t width, int64_t elements_per_piece, Fn fn) {
  // A token's row is one piece: two divisions would take as long as some rows do.
  if (rows * width <= elements_per_piece) {
    fn(0, rows);
    return;
  }
  const int64_t per_piece = std::max<int64_t>(1, elements_per_piece / width);
  Host(exec).pool().Run((rows + per_piece - 1) / per_piece, [&](int64_t piece, int) {
    fn(piece * per_piece, std::min(rows, (piece + 1) * per_piece));
  });
}

template <typename Fn>
void ForEachRowPiece(Exec& exec, int64_t rows, int64_t width, Fn fn) {
  ForEachRowPiece(exec, rows, width, kElementsPerPiece, fn);
}

}  // namespace mneme::engine::cpu
