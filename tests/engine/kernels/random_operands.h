// Random operands of kernels, the same on every machine: for tests and benchmarks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "engine/core/dtype.h"

namespace mneme::engine {

// f32 in (-1, 1), the same on every machine.
class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  float Unit() { return static_cast<float>(engine_() >> 8) * 0x1p-23f - 1.0f; }
  uint32_t Bits() { return engine_(); }
  int64_t Below(int64_t n) { return engine_() % n; }
  std::vector<float> Floats(size_t n);

 private:
  std::mt19937 engine_;
};

// A random [rows, columns] weight with finite scales of about 1/100, stored `misalign` bytes off
// any alignment. Owns its bytes.
class TestWeight {
 public:
  TestWeight(DType dtype, int64_t rows, int64_t columns, uint32_t seed, size_t misalign = 1);
  const Weight& view() const { return view_; }
  std::vector<float> Dequantized() const;

 private:
  std::vector<std::byte> bytes_;
  Weight view_;
};

}  // namespace mneme::engine
