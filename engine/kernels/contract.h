// The two numeric contracts of a matrix product (docs/architecture.md, "Numerics").
#pragma once

namespace mneme::engine {

enum class Contract {
  // Weights are dequantised exactly to f32 (scale and minimum rounded as gguf readers do), products
  // and
  // sums are f32 FMA. Golden files and comparisons with f32 references use this.
  kF32,
  // For quantised weights every activation row is quantised on its own: blocks of 32, d = max|x| /
  // 127,
  // q = round-to-nearest-even(x / d), products of integers are exact, block results are accumulated
  // in
  // f32. F32, F16 and BF16 weights behave as under kF32.
  kInt8,
};

}  // namespace mneme::engine
