// One tile of keys and values against query heads, and rows of stored keys: what the attention
// kernels share. Lanes are keys for the scores and channels for the values, so every score is one
// chain over channels and every output one chain over keys. Per-target header of Highway.
#if defined(MNEME_ENGINE_KERNELS_CPU_ATTENTION_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MNEME_ENGINE_KERNELS_CPU_ATTENTION_TILE_INL_H_
#undef MNEME_ENGINE_KERNELS_CPU_ATTENTION_TILE_INL_H_
#else
#define MNEME_ENGINE_KERNELS_CPU_ATTENTION_TILE_INL_H_
#endif

#include <algorithm>
#include <limits>
#include <type_traits>
#include <utility>

#include "engine/kernels/attention.h"
#include "engine/kernels/cpu/attention_block.h"
#include "engine/kernels/cpu/exp-inl.h"
#include "engine/kernels/cpu/stored_row-inl.h"
#include "hwy/highway.h"

#if defined(__x86_64__) && !defined(MNEME_ATTENTION_IMMINTRIN)
#define MNEME_ATTENTION_IMMINTRIN
#include <immintrin.h>
#endif

HWY_BEFORE_NAMESPACE();
namespace mneme::engine::cpu::HWY_NAMESPACE {

#undef MNEME_ATTENTION_AVX2
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
#define MNEME_ATTENTION_AVX2 1
#else
#define MNEME_ATTENTION_AVX2 0
#endif

constexpr int64_t kTile = kAttentionTile;
constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// out[d * kTile + j] = rows[j * stride + d] for 64 rows; `width` is padded to a multiple of 8.
HWY_INLINE void Transpose(const float* rows, int64_t stride, int64_t width, float* out) {
#if MNEME_ATTENTION_AVX2
  for (int64_t j = 0; j < kTile; j += 8) {
    for (int64_t d = 0; d < width; d += 8) {
      __m256 r[8], a[8], b[8];
      for (int i = 0; i < 8; ++i) r[i] = _mm256_load_ps(rows + (j + i) * stride + d);
      for (int i = 0; i < 4; ++i) {
        a[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
      }
      for (int i = 0; i < 2; ++i) {
        b[4 * i + 0] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0x44);
        b[4 * i + 1] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0xee);
        b[4 * i + 2] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0x44);
        b[4 * i + 3] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0xee);
      }
      for (int i = 0; i < 4; ++i) {
        _mm256_store_ps(out + (d + i) * kTile + j, _mm256_permute2f128_ps(b[i], b[i + 4], 0x20));
        _mm256_store_ps(out + (d + i + 4) * kTile + j,
                        _mm256_permute2f128_ps(b[i], b[i + 4], 0x31));
      }
    }
  }
#else
  for (int64_t d = 0; d < width; ++d) {
    for (int64_t j = 0; j < kTile; ++j) out[d * kTile + j] = rows[j * stride + d];
  }
#endif
}

// --- one tile ---

// f(0), ..., f(N - 1) with constant arguments, so that arrays of vectors become registers.
template <typename F, int... I>
HWY_INLINE void UnrollOver(F& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int N, typename F>
HWY_INLINE void Unroll(F f) {
  UnrollOver(f, std::make_integer_sequence<int, N>{});
}

// score[h][j] = sum over channels, ascending, of q[h][c] * key[j][c].
template <int kHeads>
HWY_INLINE void Scores(const float* q, int64_t q_stride, int64_t width, const float* keys,
                       float* score) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  constexpr int kVectors = 4;
  static_assert(kTile % (kVectors * 8) == 0);
  for (int64_t j = 0; j < kTile; j += kVectors * lanes) {
    Vec s[kHeads * kVectors];
    Unroll<kHeads * kVectors>([&](auto i) HWY_ATTR { s[i] = hn::Zero(d); });
    for (int64_t c = 0; c < width; ++c) {
      Vec k[kVectors];
      Unroll<kVectors>([&](auto v)
                           HWY_ATTR { k[v] = hn::Load(d, keys + c * kTile + j + v * lanes); });
      Unroll<kHeads>([&](auto h) HWY_ATTR {
        const Vec qc = hn::Set(d, q[h * q_stride + c]);
        Unroll<kVectors>([&](auto v) HWY_ATTR {
          s[h * kVectors + v] = hn::MulAdd(qc, k[v], s[h * kVectors + v]);
        });
      });
    }
    Unroll<kHeads * kVectors>([&](auto i) HWY_ATTR {
      hn::Store(s[i], d, score + i / kVectors * kTile + j + i % kVectors * lanes);
    });
  }
}

// o[h][c] += sum over keys [begin, end), ascending, of e[h][j] * value[j][c].
template <int kHeads, int kVectors>
HWY_INLINE void AddValues(const float* e, int64_t begin, int64_t end, const float* values,
                          int64_t stride, float* const* o, int64_t c) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  Vec s[kHeads * kVectors];
  Unroll<kHeads * kVectors>(
      [&](auto i) HWY_ATTR { s[i] = hn::Load(d, o[i / kVectors] + c + i % kVectors * lanes); });
  for (int64_t j = begin; j < end; ++j) {
    Vec value[kVectors];
    Unroll<kVectors>([&](auto v)
                         HWY_ATTR { value[v] = hn::Load(d, values + j * stride + c + v * lanes); });
    Unroll<kHeads>([&](auto h) HWY_ATTR {
      const Vec weight = hn::Set(d, e[h * kTile + j]);
      Unroll<kVectors>([&](auto v) HWY_ATTR {
        s[h * kVectors + v] = hn::MulAdd(weight, value[v], s[h * kVectors + v]);
      });
    });
  }
  Unroll<kHeads * kVectors>(
      [&](auto i) HWY_ATTR { hn::Store(s[i], d, o[i / kVectors] + c + i % kVectors * lanes); });
}

HWY_INLINE float ScalarExp(float x) {
  const F32 d;
  return hn::GetLane(Exp(d, hn::Set(d, x)));
}

HWY_INLINE void Rescale(float factor, int64_t padded, float* o) {
  const F32 d;
  const Vec f = hn::Set(d, factor);
  for (int64_t c = 0; c < padded; c += static_cast<int64_t>(hn::Lanes(d))) {
    hn::Store(hn::Mul(hn::Load(d, o + c), f), d, o + c);
  }
}

// Keys [begin, end) of the loaded tile for kHeads query heads, `q_stride` apart: of one token, or
// of tokens that see the same keys.
template <int kHeads>
void UpdateHeads(const float* q, int64_t q_stride, int64_t width, float scale, int64_t begin,
                 int64_t end, const AttentionScratch& s, float* const* partial) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  Scores<kHeads>(q, q_stride, width, s.keys, s.scores);
  float* o[kHeads];
  for (int h = 0; h < kHeads; ++h) {
    float* score = s.scores + h * kTile;
    float& m = partial[h][kPartialMax];
    float& l = partial[h][kPartialSum];
    o[h] = partial[h] + kPartialValues;
    const Vec c = hn::Set(d, scale);
    for (int64_t j = 0; j < kTile; j += lanes) {
      hn::Store(hn::Mul(hn::Load(d, score + j), c), d, score + j);
    }
    for (int64_t j = 0; j < begin; ++j) score[j] = kNegativeInfinity;
    for (int64_t j = end; j < kTile; ++j) score[j] = kNegativeInfinity;
    Vec max = hn::Load(d, score);
    for (int64_t j = lanes; j < kTile; j += lanes) max = hn::Max(max, hn::Load(d, score + j));
    const float new_m = std::max(m, hn::GetLane(hn::MaxOfLanes(d, max)));
    const Vec vm = hn::Set(d, new_m);
    Vec sum = hn::Zero(d);
    for (int64_t j = 0; j < kTile; j += lanes) {
      const Vec e = Exp(d, hn::Sub(hn::Load(d, score + j), vm));
      hn::Store(e, d, score + j);
      sum = hn::Add(sum, e);
    }
    const float tile_sum = hn::GetLane(hn::SumOfLanes(d, sum));
    // With an unchanged maximum the factor is exactly 1.
    if (new_m != m) {
      const float shrink = ScalarExp(m - new_m);
      l *= shrink;
      Rescale(shrink, s.padded, o[h]);
    }
    l += tile_sum;
    m = new_m;
  }
  int64_t c = 0;
  for (; c + 4 * lanes <= s.padded; c += 4 * lanes) {
    AddValues<kHeads, 4>(s.scores, begin, end, s.values, s.padded, o, c);
  }
  for (; c < s.padded; c += lanes) {
    AddValues<kHeads, 1>(s.scores, begin, end, s.values, s.padded, o, c);
  }
}

// Keys [begin, end) of the loaded tile for `rows` query rows, `q_stride` apart: the heads that
// share them, or tokens with one such head each. Up to three rows share a load; that changes no
// bits.
HWY_INLINE void UpdateGroup(const float* q, int64_t q_stride, int64_t rows, int64_t width,
                            float scale, int64_t begin, int64_t end, const AttentionScratch& s,
                            float* partials, int64_t stride) {
  for (int64_t r = 0; r < rows;) {
    const int64_t n = std::min<int64_t>(3, rows - r);
    float* each[3];
    for (int64_t i = 0; i < n; ++i) each[i] = partials + (r + i) * stride;
    const float* first = q + r * q_stride;
    if (n == 3) {
      UpdateHeads<3>(first, q_stride, width, scale, begin, end, s, each);
    } else if (n == 2) {
      UpdateHeads<2>(first, q_stride, width, scale, begin, end, s, each);
    } else {
      UpdateHeads<1>(first, q_stride, width, scale, begin, end, s, each);
    }
    r += n;
  }
}

HWY_INLINE void FinishPartial(const float* total, int64_t width, float* out) {
  const float l = total[kPartialSum];
  for (int64_t c = 0; c < width; ++c) out[c] = l == 0 ? 0 : total[kPartialValues + c] / l;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace mneme::engine::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
