// The 8-bit dot-product variant of the matrix products, on processors that lack the instruction:
// its source compiled with the instruction spelled out in AVX2. Bits must be those of AVX2.
#include "engine/kernels/cpu/matmul_micro.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "engine/core/aligned_buffer.h"
#include "engine/kernels/dequantize.h"
#include "gtest/gtest.h"
#include "tests/engine/kernels/kernel_setup.h"
#include "tests/support/compare.h"

namespace {

// Adds to every 32-bit lane its four products of unsigned and signed bytes, without saturation.
__attribute__((target("avx2,fma,f16c"), always_inline)) inline __m256i SpelledOutDpbusd(__m256i sum,
                                                                                        __m256i u,
                                                                                        __m256i s) {
  const __m256i ones = _mm256_set1_epi16(1);
  const __m256i mask = _mm256_set1_epi16(0xff);
  const __m256i even =
      _mm256_mullo_epi16(_mm256_and_si256(u, mask), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
  const __m256i odd = _mm256_mullo_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
  return _mm256_add_epi32(
      sum, _mm256_add_epi32(_mm256_madd_epi16(even, ones), _mm256_madd_epi16(odd, ones)));
}

}  // namespace

#undef _mm256_dpbusd_epi32
#define _mm256_dpbusd_epi32 SpelledOutDpbusd
#define MICRO_NAMESPACE vnni_spelled_out
#define MICRO_TARGET "avx2,fma,f16c"
#define MICRO_VNNI 1
#include "engine/kernels/cpu/matmul_x86-inl.h"

namespace mneme::engine::cpu {
namespace {

TEST(MatMulVnniTest, GivesTheBitsOfAvx2) {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    GTEST_SKIP() << "needs AVX2";
  }
  for (int i = 0; i < kNumDTypes; ++i) {
    const DType dtype = static_cast<DType>(i);
    if (!IsQuantized(dtype)) continue;
    const int64_t K = 512, N = 21, T = 7;
    const TestWeight weight(dtype, N, K, 50);
    const std::vector<float> x = Random(51).Floats(T * K);
    const int64_t blocks = K / kCodeBlock;
    std::vector<int8_t> q(T * K);
    std::vector<float> d(T * blocks), s(T * blocks);
    std::vector<int32_t> sum(T * blocks);
    const QuantizedRows rows = {q.data(), d.data(), s.data(), sum.data(), K, blocks};
    for (int64_t t = 0; t < T; ++t) Avx2MatMulMicro().quantize_row(&x[t * K], rows.From(t));
    AlignedBuffer scratch(MicroScratchBytes(K));
    for (const int64_t tokens : {int64_t{1}, int64_t{2}, int64_t{3}, T}) {
      std::vector<float> expected(tokens * N), y(tokens * N);
      Avx2MatMulMicro().rows_int8({&weight.view(), 0, N, expected.data(), N, false}, rows, tokens,
                                  scratch.data());
      vnni_spelled_out::kMicro.rows_int8({&weight.view(), 0, N, y.data(), N, false}, rows, tokens,
                                         scratch.data());
      EXPECT_TRUE(mneme::test::SameBits(y, expected))
          << std::string(Traits(dtype).name) << ", " << tokens << " tokens";
    }
  }
}

}  // namespace
}  // namespace mneme::engine::cpu

#endif  // __x86_64__
