#include "engine/kernels/activation.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/kernels/kernel_setup.h"
#include "tests/support/compare.h"

namespace mneme::engine {
namespace {

using mneme::test::AllClose;
using mneme::test::SameBits;

constexpr Activation kAll[] = {Activation::kSigmoid,  Activation::kTanh, Activation::kReluSquared,
                               Activation::kDecay,    Activation::kSilu, Activation::kGeluErf,
                               Activation::kGeluTanh, Activation::kRelu};

class ActivationTest : public ::testing::Test {
 protected:
  ~ActivationTest() override { PinSimdTarget(""); }
};

TEST_F(ActivationTest, EqualsItsFormula) {
  std::vector<float> x;
  for (int i = -20000; i <= 20000; ++i) x.push_back(static_cast<float>(i) * 0.001f);
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    variant.Select();
    KernelExec exec(*variant.kernels, Contract::kF32, 2);
    for (const Activation f : kAll) {
      std::vector<float> y(x.size()), expected(x.size());
      for (size_t i = 0; i < x.size(); ++i) expected[i] = static_cast<float>(Exact(f, x[i]));
      variant.kernels->activate(exec, f, x.data(), x.size(), y.data());
      EXPECT_TRUE(AllClose(y, expected, {3e-7, 1e-6})) << static_cast<int>(f);
    }
  }
}

TEST_F(ActivationTest, EdgesOfTheRange) {
  const float kInfinity = std::numeric_limits<float>::infinity();
  const float kNaN = std::numeric_limits<float>::quiet_NaN();
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    variant.Select();
    KernelExec exec(*variant.kernels, Contract::kF32, 1);
    for (const Activation f :
         {Activation::kSilu, Activation::kGeluErf, Activation::kGeluTanh, Activation::kRelu}) {
      const std::vector<float> x = {0, 1e10f, -1e3f, kInfinity, kNaN, 1e-30f};
      std::vector<float> y(x.size());
      variant.kernels->activate(exec, f, x.data(), x.size(), y.data());
      EXPECT_EQ(y[0], 0);
      EXPECT_EQ(y[1], 1e10f);
      EXPECT_NEAR(y[2], 0, 1e-30);
      EXPECT_EQ(y[3], kInfinity);
      EXPECT_TRUE(std::isnan(y[4]));
      EXPECT_NEAR(y[5] * 1e30, f == Activation::kRelu ? 1 : 0.5, 1e-5);
    }
  }
}

TEST_F(ActivationTest, ASeriesIsTheSumOfItsBranches) {
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    variant.Select();
    KernelExec exec(*variant.kernels, Contract::kF32, 2);
    for (const int64_t C : {1, 7, 8, 44, 130, 1030}) {
      for (const size_t n : {1, 2, 3}) {
        const int64_t T = 9;
        const std::vector<Activation> series(kAll + 4, kAll + 4 + n);
        const std::vector<float> scale = Random(41).Floats(n * C), bias = Random(42).Floats(n * C);
        std::vector<float> x = Random(43).Floats(T * C), y(T * C), expected(T * C);
        for (float& value : x) value *= 5;
        for (int64_t i = 0; i < T * C; ++i) {
          double sum = 0;
          for (size_t b = 0; b < n; ++b) {
            const int64_t at = static_cast<int64_t>(b) * C + i % C;
            sum += Exact(series[b], static_cast<double>(scale[at]) * x[i] + bias[at]);
          }
          expected[i] = static_cast<float>(sum);
        }
        const auto run = [&](const float* in, int64_t rows, float* out) {
          variant.kernels->series_activate(exec, {.x = in,
                                                  .scale = scale.data(),
                                                  .bias = bias.data(),
                                                  .series = series,
                                                  .T = rows,
                                                  .C = C,
                                                  .y = out});
        };
        run(x.data(), T, y.data());
        EXPECT_TRUE(AllClose(y, expected, {2e-6, 2e-6})) << C << " channels, " << n;
        // A row on its own, and in place.
        std::vector<float> last(x.end() - C, x.end());
        run(last.data(), 1, last.data());
        EXPECT_TRUE(SameBits(last, std::span(y).last(C)));
      }
    }
  }
}

TEST_F(ActivationTest, ASeriesOfOneIsTheActivation) {
  const int64_t C = 53;
  const std::vector<float> x = Random(44).Floats(3 * C), ones(C, 1.0f), zeros(C);
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    variant.Select();
    KernelExec exec(*variant.kernels, Contract::kF32, 1);
    for (const Activation f : kAll) {
      std::vector<float> y(x.size()), expected(x.size());
      variant.kernels->activate(exec, f, x.data(), x.size(), expected.data());
      variant.kernels->series_activate(exec, {.x = x.data(),
                                              .scale = ones.data(),
                                              .bias = zeros.data(),
                                              .series = {&f, 1},
                                              .T = 3,
                                              .C = C,
                                              .y = y.data()});
      for (size_t i = 0; i < y.size(); ++i) ASSERT_EQ(y[i], expected[i]) << i;
    }
  }
}

}  // namespace
}  // namespace mneme::engine
