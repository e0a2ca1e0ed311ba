// Rows moved and stored.
#define HWY_DISABLED_TARGETS HWY_SSSE3
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/kernels/cpu/rows.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h:
#include <algorithm>
#include <cstring>

#include "engine/kernels/cpu/cpu.h"
#include "engine/kernels/cpu/row_pieces.h"
#include "engine/kernels/cpu/simd_target.h"
#include "engine/kernels/cpu/stored_row-inl.h"
#include "engine/kernels/exec.h"
#include "engine/kernels/rows.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mneme::engine::cpu::HWY_NAMESPACE {

void StoreRow(const float* x, DType dtype, int64_t width, std::byte* to) {
  WriteRow(x, dtype, width, to);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace mneme::engine::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mneme::engine::cpu {
namespace {

HWY_EXPORT(StoreRow);

// Calls fn(entry, row) for every row of every entry. One fork at most, and none for a token's rows.
template <typename Args, typename Fn>
void ForEachRow(Exec& exec, std::span<const Args> batch, Fn fn) {
  int64_t rows = 0, elements = 0;
  for (const Args& args : batch) {
    rows += args.rows;
    elements += args.rows * args.width;
  }
  if (rows == 0) return;
  ForEachRowPiece(exec, rows, std::max<int64_t>(1, elements / rows),
                  [&](int64_t begin, int64_t end) {
                    int64_t first = 0;  // number of the entry's first row
                    for (const Args& args : batch) {
                      const int64_t last = std::min(end, first + args.rows);
                      for (int64_t r = std::max(begin, first); r < last; ++r) fn(args, r - first);
                      first += args.rows;
                    }
                  });
}

}  // namespace

void CopyRows(Exec& exec, std::span<const CopyRowsArgs> batch) {
  ForEachRow(exec, batch, [](const CopyRowsArgs& args, int64_t r) {
    std::memcpy(args.to + r * args.to_stride, args.from + r * args.from_stride,
                args.width * sizeof(float));
  });
}

void StoreRows(Exec& exec, std::span<const StoreRowsArgs> batch) {
  CurrentSimdTarget();
  const auto store = HWY_DYNAMIC_DISPATCH(StoreRow);
  ForEachRow(exec, batch, [&](const StoreRowsArgs& args, int64_t r) {
    const int64_t row_bytes = args.width * Traits(args.dtype).block_bytes;
    store(args.x + r * args.x_stride, args.dtype, args.width, args.to + r * row_bytes);
  });
}

// All-ones exponent: NaN or infinity. Integer arithmetic, so that the loop vectorises.
void FiniteRows(Exec& exec, const float* x, int64_t T, int64_t width, uint8_t* finite) {
  ForEachRowPiece(exec, T, width, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      constexpr uint32_t kExponent = 0x7f800000;
      uint32_t bad = 0;
      for (int64_t i = 0; i < width; ++i) {
        uint32_t bits;
        std::memcpy(&bits, x + t * width + i, sizeof(bits));
        bad |= static_cast<uint32_t>((bits & kExponent) == kExponent);
      }
      finite[t] = bad == 0;
    }
  });
}

}  // namespace mneme::engine::cpu
#endif  // HWY_ONCE
