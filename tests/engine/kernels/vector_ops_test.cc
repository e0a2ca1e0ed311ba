// The operations on activations alone: elementwise.h, rms_norm.h, rope.h.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/kernels/kernel_setup.h"
#include "tests/support/compare.h"

namespace mneme::engine {
namespace {

using mneme::test::AllClose;
using mneme::test::SameBits;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
const size_t kSizes[] = {1, 2, 7, 8, 9, 31, 33, 64, 100, 5000, 20011};

class VectorOpsTest : public ::testing::Test {
 protected:
  ~VectorOpsTest() override { PinSimdTarget(""); }
};

TEST_F(VectorOpsTest, SiluMulEqualsItsFormula) {
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    variant.Select();
    KernelExec exec(*variant.kernels, Contract::kF32, 2);
    for (const size_t n : kSizes) {
      std::vector<float> gate = Random(1).Floats(n + 1);
      const std::vector<float> up = Random(2).Floats(n + 1);
      for (float& g : gate) g *= 30;
      std::vector<float> expected(n), y(n);
      for (size_t i = 0; i < n; ++i) {
        const double g = gate[i + 1];
        expected[i] = static_cast<float>(g / (1 + std::exp(-g)) * up[i + 1]);
      }
      variant.kernels->silu_mul(exec, gate.data() + 1, up.data() + 1, n, y.data());
      ASSERT_TRUE(AllClose(y, expected, {1e-37, 1e-6})) << n;
      // In place.
      variant.kernels->silu_mul(exec, gate.data() + 1, up.data() + 1, n, gate.data() + 1);
      ASSERT_TRUE(SameBits(std::span(gate).subspan(1, n), y)) << n;
    }
  }
}

TEST_F(VectorOpsTest, SiluMulAtTheEdges) {
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    variant.Select();
    KernelExec exec(*variant.kernels, Contract::kF32, 1);
    const std::vector<float> gate = {0, -0.0f, 200, -200, 87.5f, -87.5f, kNaN, kInfinity, 3};
    const std::vector<float> up(gate.size(), 1);
    std::vector<float> y(gate.size());
    variant.kernels->silu_mul(exec, gate.data(), up.data(), gate.size(), y.data());
    EXPECT_EQ(y[0], 0);
    EXPECT_EQ(y[1], 0);
    EXPECT_EQ(y[2], 200);
    EXPECT_NEAR(y[3], 0, 1e-35);
    EXPECT_EQ(y[4], 87.5f);
    EXPECT_NEAR(y[5], 0, 1e-35);
    EXPECT_TRUE(std::isnan(y[6]));
    EXPECT_EQ(y[7], kInfinity);
    EXPECT_NEAR(y[8], 2.8577224f, 1e-6);
  }
}

TEST_F(VectorOpsTest, PlaceInTheArrayChangesNoBit) {
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    variant.Select();
    KernelExec exec(*variant.kernels, Contract::kF32, 3);
    const size_t n = 3001;
    const std::vector<float> gate = Random(3).Floats(n), up = Random(4).Floats(n);
    std::vector<float> all(n), sum = up;
    variant.kernels->silu_mul(exec, gate.data(), up.data(), n, all.data());
    variant.kernels->add(exec, gate.data(), n, sum.data());
    for (size_t i = 0; i < n; i += 13) {
      float one, one_sum = up[i];
      variant.kernels->silu_mul(exec, &gate[i], &up[i], 1, &one);
      variant.kernels->add(exec, &gate[i], 1, &one_sum);
      ASSERT_TRUE(SameBits({&one, 1}, {&all[i], 1})) << i;
      ASSERT_TRUE(SameBits({&one_sum, 1}, {&sum[i], 1})) << i;
    }
  }
}

TEST_F(VectorOpsTest, AddAdds) {
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    variant.Select();
    KernelExec exec(*variant.kernels, Contract::kF32, 2);
    for (const size_t n : kSizes) {
      const std::vector<float> x = Random(5).Floats(n), before = Random(6).Floats(n);
      std::vector<float> y = before;
      variant.kernels->add(exec, x.data(), n, y.data());
      for (size_t i = 0; i < n; ++i) ASSERT_EQ(y[i], before[i] + x[i]);
    }
  }
}

TEST_F(VectorOpsTest, RmsNormEqualsItsFormula) {
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    variant.Select();
    KernelExec exec(*variant.kernels, Contract::kF32, 2);
    for (const int64_t D : {1, 7, 8, 31, 33, 64, 100, 576}) {
      for (const int64_t T : {1, 5, 64}) {
        const std::vector<float> x = Random(7).Floats(T * D), w = Random(8).Floats(D);
        std::vector<float> expected(T * D), y(T * D);
        for (int64_t t = 0; t < T; ++t) {
          double sum = 0;
          for (int64_t d = 0; d < D; ++d) sum += static_cast<double>(x[t * D + d]) * x[t * D + d];
          const double scale = 1 / std::sqrt(sum / D + 1e-5f);
          for (int64_t d = 0; d < D; ++d) {
            expected[t * D + d] = static_cast<float>(x[t * D + d] * scale * w[d]);
          }
        }
        variant.kernels->rms_norm(exec, x.data(), w.data(), 1e-5f, T, D, y.data());
        ASSERT_TRUE(AllClose(y, expected, {1e-30, 1e-5})) << "T " << T << " D " << D;
        // A row on its own, in place.
        std::vector<float> last(x.end() - D, x.end());
        variant.kernels->rms_norm(exec, last.data(), w.data(), 1e-5f, 1, D, last.data());
        ASSERT_TRUE(SameBits(last, std::span(y).last(D))) << "T " << T << " D " << D;
      }
    }
  }
}

TEST_F(VectorOpsTest, RmsNormKeepsNaNInItsRow) {
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    variant.Select();
    KernelExec exec(*variant.kernels, Contract::kF32, 1);
    std::vector<float> x = Random(9).Floats(3 * 20), w(20, 1.0f), y(3 * 20);
    x[25] = kNaN;
    variant.kernels->rms_norm(exec, x.data(), w.data(), 0, 3, 20, y.data());
    for (int i = 0; i < 60; ++i) ASSERT_EQ(std::isnan(y[i]), i / 20 == 1) << i;
  }
}

std::vector<double> Thetas(int64_t rotary) {
  std::vector<double> theta(rotary / 2);
  for (int64_t j = 0; j < rotary / 2; ++j) theta[j] = std::pow(1e5, -2.0 * j / rotary);
  return theta;
}

TEST_F(VectorOpsTest, RopeRotatesPairsByTheAngleOfThePosition) {
  const std::vector<int64_t> positions = {0, 1, 5, 8191, 3'000'001, 40'000'000};
  const int64_t T = static_cast<int64_t>(positions.size());
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    variant.Select();
    KernelExec exec(*variant.kernels, Contract::kF32, 2);
    for (const int64_t rotary : {2, 14, 16, 64}) {
      for (const RopeLayout layout : {RopeLayout::kInterleaved, RopeLayout::kHalf}) {
        const int64_t heads = 3, Dh = rotary + 4, stride = heads * Dh + 3;
        const std::vector<double> theta = Thetas(rotary);
        const std::vector<float> before = Random(10).Floats(T * stride);
        std::vector<float> x = before, expected = before;
        for (int64_t t = 0; t < T; ++t) {
          for (int64_t h = 0; h < heads; ++h) {
            for (int64_t j = 0; j < rotary / 2; ++j) {
              const int64_t head = t * stride + h * Dh;
              const int64_t a = head + (layout == RopeLayout::kHalf ? j : 2 * j);
              const int64_t b = layout == RopeLayout::kHalf ? a + rotary / 2 : a + 1;
              const long double angle = std::fmod(static_cast<long double>(positions[t]) * theta[j],
                                                  2 * std::numbers::pi_v<long double>);
              const double c = std::cos(static_cast<double>(angle));
              const double s = std::sin(static_cast<double>(angle));
              expected[a] = static_cast<float>(before[a] * c - before[b] * s);
              expected[b] = static_cast<float>(before[a] * s + before[b] * c);
            }
          }
        }
        const auto rotate = [&](std::span<const RotatedRows> rows, std::span<const int64_t> by) {
          variant.kernels->rope(exec, {rows, Dh, rotary, layout, by, theta});
        };
        // Beside rows of fewer heads.
        std::vector<float> narrow = before;
        rotate(std::vector<RotatedRows>{{x.data(), stride, heads}, {narrow.data(), stride, 1}},
               positions);
        ASSERT_TRUE(AllClose(x, expected, {3e-7, 0})) << "rotary " << rotary;
        for (int64_t i = 0; i < T * stride; ++i) {
          ASSERT_EQ(narrow[i], (i % stride < Dh ? x : before)[i]) << "rotary " << rotary;
        }
        // Again with other positions and back: the tables kept from before must not be mixed up.
        std::vector<float> y = before;
        const std::vector<int64_t> others = {9, 8, 7, 6, 5, 4};
        std::vector<float> z = before;
        rotate(std::vector<RotatedRows>{{z.data(), stride, heads}}, others);
        rotate(std::vector<RotatedRows>{{y.data(), stride, heads}}, positions);
        ASSERT_TRUE(SameBits(y, x));
        ASSERT_FALSE(SameBits(z, x));
      }
    }
  }
}

TEST_F(VectorOpsTest, RopeHasTheSameBitsEverywhere) {
  const std::vector<int64_t> positions = {12345};
  const std::vector<double> theta = Thetas(64);
  const std::vector<float> before = Random(12).Floats(2 * 64);
  std::vector<float> expected;
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    variant.Select();
    KernelExec exec(*variant.kernels, Contract::kF32, 1);
    std::vector<float> x = before;
    const RotatedRows rows{x.data(), 128, 2};
    variant.kernels->rope(exec, {{&rows, 1}, 64, 64, RopeLayout::kInterleaved, positions, theta});
    if (expected.empty()) expected = x;
    ASSERT_TRUE(SameBits(x, expected));
  }
}

}  // namespace
}  // namespace mneme::engine
