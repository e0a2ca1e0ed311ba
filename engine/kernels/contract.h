// The two numeric contracts of a matrix product (docs/architecture.md, "Numerics").
//
// Both fix the order in which an output is summed by K and the weight's type alone. Equal bits are
// promised within one numerics_id (engine.h), so of one backend and SIMD target: those without
// fused multiply-add (sse4, scalar) round each product separately and differ from the others. The
// orders below are those of reference and cpu; cuda forms the same terms and has a fixed order of
// its own (cuda/matmul.cu).
#pragma once

namespace mneme::engine {

enum class Contract {
  // Weights are dequantised exactly to f32 (scale and minimum rounded as gguf readers do). Eight
  // partial sums, one per k mod 8, each ascending in k by fused multiply-add:
  //   s[l] = fma(W[n, k], x[k], s[l])     y = ((s0+s4) + (s2+s6)) + ((s1+s5) + (s3+s7))
  // Golden files and comparisons with f32 references use this.
  kF32,
  // For quantised weights every activation row is quantised on its own, in blocks of 32:
  //   d = max|x| / 127, q = round to nearest even(x / d), s = d * sum(q)
  // A block whose d would be subnormal counts as zeros; one with a NaN or an infinity has d = s =
  // NaN. Products of codes are exact integers; block results are chained in ascending order:
  //   a = fma(float(sum over block of (code - offset) * q), scale * d, a)
  //   m = fma(min, s, m)   (types with a minimum)          y = a + m
  // Q6_K has one link per 16 elements. F32, F16 and BF16 weights behave as under kF32.
  kInt8,
};

}  // namespace mneme::engine
