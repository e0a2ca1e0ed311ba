#include "bench/stream_roofline.h"

#include <array>
#include <cassert>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mneme::bench {
namespace {

constexpr int kMostReads = 7;

using RowFn = void (*)(const float* const* read, float* const* written, int64_t width);

// Bits are combined by exclusive or, which costs less than any arithmetic and knows no slow values.
template <int kReads, int kWrites>
void RowPortable(const float* const* read, float* const* written, int64_t width) {
  for (int64_t i = 0; i < width; i += 2) {
    uint64_t bits = 0;
    for (int r = 0; r < kReads; ++r) {
      uint64_t two;
      std::memcpy(&two, read[r] + i, sizeof two);
      bits ^= two;
    }
    for (int w = 0; w < kWrites; ++w) std::memcpy(written[w] + i, &bits, sizeof bits);
  }
}

#if defined(__x86_64__)
template <int kReads, int kWrites>
__attribute__((target("avx2"))) void RowAvx2(const float* const* read, float* const* written,
                                             int64_t width) {
  const float* from[kReads];
  float* to[kWrites];
  for (int r = 0; r < kReads; ++r) from[r] = read[r];
  for (int w = 0; w < kWrites; ++w) to[w] = written[w];
  for (int64_t i = 0; i < width; i += 32) {
#pragma GCC unroll 4
    for (int64_t v = i; v < i + 32; v += 8) {
      __m256 bits = _mm256_load_ps(from[0] + v);
#pragma GCC unroll 7
      for (int r = 1; r < kReads; ++r) bits = _mm256_xor_ps(bits, _mm256_load_ps(from[r] + v));
      for (int w = 0; w < kWrites; ++w) _mm256_store_ps(to[w] + v, bits);
    }
  }
}
#endif

// By the number of reads less one.
template <int kWrites, int... kLess>
RowFn Pick(int reads, bool avx2, std::integer_sequence<int, kLess...>) {
#if defined(__x86_64__)
  if (avx2) return std::array<RowFn, kMostReads>{RowAvx2<kLess + 1, kWrites>...}[reads - 1];
#endif
  return std::array<RowFn, kMostReads>{RowPortable<kLess + 1, kWrites>...}[reads - 1];
}

}  // namespace

StreamRoofline::StreamRoofline(const Streams& streams) : streams_(streams) {
  const int reads = streams.read + streams.read_again;
  assert(streams.read >= 1 && reads <= kMostReads && streams.width % 32 == 0);
  assert(streams.written >= 1 && streams.written <= 2 && streams.in_place <= streams.written);
  assert(streams.in_place <= streams.read);
  const auto add = [&](int64_t rows) {
    return arrays_.emplace_back(rows * streams.width, 1.0f).data();
  };
  for (int i = 0; i < streams.written - streams.in_place; ++i) {
    written_.push_back(add(streams.rows));
  }
  for (int i = 0; i < streams.read; ++i) {
    float* const array = add(streams.rows);
    read_.push_back(array);
    if (i >= streams.read - streams.in_place) written_.push_back(array);
  }
  for (int i = 0; i < streams.read_again; ++i) read_.push_back(add(1));
  bool avx2 = false;
#if defined(__x86_64__)
  avx2 = __builtin_cpu_supports("avx2") != 0;
#endif
  constexpr std::make_integer_sequence<int, kMostReads> kCounts;
  row_ = streams.written == 1 ? Pick<1>(reads, avx2, kCounts) : Pick<2>(reads, avx2, kCounts);
}

void StreamRoofline::Run() {
  std::array<const float*, kMostReads> read;
  std::array<float*, 2> written;
  for (int64_t row = 0; row < streams_.rows; ++row) {
    const int64_t at = row * streams_.width;
    for (size_t i = 0; i < read_.size(); ++i) {
      read[i] = read_[i] + (static_cast<int>(i) < streams_.read ? at : 0);
    }
    for (size_t i = 0; i < written_.size(); ++i) written[i] = written_[i] + at;
    row_(read.data(), written.data(), streams_.width);
  }
}

}  // namespace mneme::bench
