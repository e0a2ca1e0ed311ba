// Rows of keys and values as a state stores them: f32, or f16 by the processor's conversions, which
// give the same bits as core/half.h. Per-target header of Highway.
#if defined(MNEME_ENGINE_KERNELS_CPU_STORED_ROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MNEME_ENGINE_KERNELS_CPU_STORED_ROW_INL_H_
#undef MNEME_ENGINE_KERNELS_CPU_STORED_ROW_INL_H_
#else
#define MNEME_ENGINE_KERNELS_CPU_STORED_ROW_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "engine/core/dtype.h"
#include "engine/core/half.h"
#include "hwy/highway.h"

#if defined(__x86_64__) && !defined(MNEME_STORED_ROW_IMMINTRIN)
#define MNEME_STORED_ROW_IMMINTRIN
#include <immintrin.h>
#endif

HWY_BEFORE_NAMESPACE();
namespace mneme::engine::cpu::HWY_NAMESPACE {

#undef MNEME_STORED_ROW_F16C
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
#define MNEME_STORED_ROW_F16C 1
#else
#define MNEME_STORED_ROW_F16C 0
#endif

HWY_INLINE void ReadRow(const std::byte* row, DType dtype, int64_t width, float* out) {
  if (dtype == DType::kF32) {
    std::memcpy(out, row, width * sizeof(float));
    return;
  }
  int64_t i = 0;
#if MNEME_STORED_ROW_F16C
  for (; i + 8 <= width; i += 8) {
    _mm256_storeu_ps(
        out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + 2 * i))));
  }
#endif
  for (; i < width; ++i) {
    uint16_t bits;
    std::memcpy(&bits, row + 2 * i, 2);
    out[i] = HalfToFloat(bits);
  }
}

HWY_INLINE void WriteRow(const float* in, DType dtype, int64_t width, std::byte* row) {
  if (dtype == DType::kF32) {
    std::memcpy(row, in, width * sizeof(float));
    return;
  }
  int64_t i = 0;
#if MNEME_STORED_ROW_F16C
  for (; i + 8 <= width; i += 8) {
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(row + 2 * i),
        _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
#endif
  for (; i < width; ++i) {
    const uint16_t bits = FloatToHalf(in[i]);
    std::memcpy(row + 2 * i, &bits, 2);
  }
}

// What WriteRow and then ReadRow would give; `in` may be `out`.
HWY_INLINE void RoundRow(const float* in, DType dtype, int64_t width, float* out) {
  if (dtype == DType::kF32) {
    std::memcpy(out, in, width * sizeof(float));
    return;
  }
  int64_t i = 0;
#if MNEME_STORED_ROW_F16C
  for (; i + 8 <= width; i += 8) {
    _mm256_storeu_ps(
        out + i, _mm256_cvtph_ps(_mm256_cvtps_ph(_mm256_loadu_ps(in + i),
                                                 _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)));
  }
#endif
  for (; i < width; ++i) out[i] = HalfToFloat(FloatToHalf(in[i]));
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace mneme::engine::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // MNEME_ENGINE_KERNELS_CPU_STORED_ROW_INL_H_
