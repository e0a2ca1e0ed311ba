// Every backend and SIMD target against the definition, and each against itself when rows are cut
// differently.
#include "engine/kernels/short_conv.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/kernels/kernel_setup.h"
#include "tests/support/compare.h"

namespace mneme::engine {
namespace {

using test::AllClose;
using test::SameBits;

struct Shape {
  int64_t taps, heads, head_width;
  int64_t width() const { return heads * head_width; }
};
// One tap keeps nothing, many keep more rows than most calls have; widths around the vector's,
// below it and odd.
constexpr Shape kShapes[] = {{1, 2, 7}, {2, 1, 1}, {3, 1, 24}, {4, 3, 37}, {4, 2, 64}, {8, 1, 150}};

struct Result {
  std::vector<float> y, kept;
};

class ShortConvTest : public testing::TestWithParam<Variant> {
 protected:
  void SetUp() override { GetParam().Select(); }
  void TearDown() override { PinSimdTarget(""); }

  static constexpr int64_t kRows = 19, kSequences = 3;

  static std::vector<float> Input(const Shape& shape) {
    return Random(1).Floats(kSequences * kRows * shape.width());
  }
  static std::vector<float> Taps(const Shape& shape) {
    return Random(2).Floats(shape.taps * shape.width());
  }

  // kSequences sequences from their beginning, in calls of `piece` rows.
  static Result Convolve(const Shape& shape, bool norm, int64_t piece, int threads) {
    const Variant& variant = GetParam();
    KernelExec exec(*variant.kernels, Contract::kF32, threads);
    const int64_t width = shape.width(), tail = shape.taps - 1;
    const std::vector<float> x = Input(shape), taps = Taps(shape);
    Result result{std::vector<float>(x.size(), -7.0f),
                  std::vector<float>(kSequences * tail * width)};
    for (int64_t r = 0; r < kRows; r += piece) {
      std::vector<ShortConvArgs> batch;
      for (int64_t i = 0; i < kSequences; ++i) {
        const int64_t at = (i * kRows + r) * width;
        batch.push_back({.taps = taps.data(),
                         .num_taps = shape.taps,
                         .width = width,
                         .norm_heads = norm ? shape.heads : 0,
                         .kept = tail == 0 ? nullptr : result.kept.data() + i * tail * width,
                         .position = r,
                         .rows = std::min(piece, kRows - r),
                         .x = x.data() + at,
                         .y = result.y.data() + at});
      }
      variant.kernels->short_conv(exec, batch);
    }
    return result;
  }
};

TEST_P(ShortConvTest, FollowsTheDefinition) {
  for (const Shape& shape : kShapes) {
    for (const bool norm : {false, true}) {
      SCOPED_TRACE(testing::Message() << shape.taps << " taps of " << shape.width());
      const std::vector<float> x = Input(shape), taps = Taps(shape);
      const int64_t width = shape.width();
      std::vector<float> expected;
      for (int64_t i = 0; i < kSequences; ++i) {
        for (int64_t t = 0; t < kRows; ++t) {
          std::vector<double> row(width);
          for (int64_t c = 0; c < width; ++c) {
            double sum = 0;
            for (int64_t k = 0; k < shape.taps; ++k) {
              const int64_t at = t - (shape.taps - 1) + k;
              if (at >= 0) sum += double(taps[k * width + c]) * x[(i * kRows + at) * width + c];
            }
            row[c] = sum / (1 + std::exp(-sum));
          }
          for (int64_t h = 0; norm && h < shape.heads; ++h) {
            double squares = 1e-6;
            for (int64_t j = 0; j < shape.head_width; ++j) {
              squares += std::pow(row[h * shape.head_width + j], 2);
            }
            for (int64_t j = 0; j < shape.head_width; ++j) {
              row[h * shape.head_width + j] /= std::sqrt(squares);
            }
          }
          for (const double y : row) expected.push_back(static_cast<float>(y));
        }
      }
      // A sum that almost cancels, divided by its own norm.
      EXPECT_TRUE(
          AllClose(Convolve(shape, norm, kRows, 1).y, expected, {2e-6, norm ? 1e-4 : 2e-6}));
    }
  }
}

TEST_P(ShortConvTest, CutsAndThreadsChangeNoBits) {
  for (const Shape& shape : kShapes) {
    for (const bool norm : {false, true}) {
      const Result whole = Convolve(shape, norm, kRows, 1);
      for (const auto& [piece, threads] : {std::pair{1, 1}, {2, 3}, {3, 1}, {5, 2}, {19, 3}}) {
        SCOPED_TRACE(testing::Message() << shape.taps << " taps, pieces of " << piece);
        const Result cut = Convolve(shape, norm, piece, threads);
        EXPECT_TRUE(SameBits(cut.y, whole.y));
        EXPECT_TRUE(SameBits(cut.kept, whole.kept));
      }
    }
  }
}

// Its last rows, each in the place of its position.
TEST_P(ShortConvTest, TheStateHoldsTheLastRows) {
  const Shape shape{4, 1, 5};
  const std::vector<float> x = Input(shape), kept = Convolve(shape, false, 2, 1).kept;
  for (int64_t position = kRows - 3; position < kRows; ++position) {
    EXPECT_TRUE(SameBits(std::span(kept).subspan(position % 3 * 5, 5),
                         std::span(x).subspan(position * 5, 5)));
  }
}

// The norm of zeros is divided by more than zero.
TEST_P(ShortConvTest, RowsOfZerosStayZeros) {
  const std::vector<float> x(2 * 11), taps(11, 1.0f);
  std::vector<float> y(2 * 11, 5.0f);
  KernelExec exec(*GetParam().kernels, Contract::kF32, 1);
  const ShortConvArgs args{.taps = taps.data(),
                           .num_taps = 1,
                           .width = 11,
                           .norm_heads = 1,
                           .rows = 2,
                           .x = x.data(),
                           .y = y.data()};
  GetParam().kernels->short_conv(exec, {&args, 1});
  EXPECT_TRUE(SameBits(y, std::vector<float>(2 * 11)));
}

INSTANTIATE_TEST_SUITE_P(All, ShortConvTest, testing::ValuesIn(AllVariants()),
                         [](const auto& info) { return ParameterName(info.param.Name()); });

}  // namespace
}  // namespace mneme::engine
