#include "engine/kernels/matmul.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "engine/kernels/dequantize.h"
#include "gtest/gtest.h"
#include "tests/engine/kernels/kernel_setup.h"
#include "tests/support/compare.h"

namespace mneme::engine {
namespace {

using mneme::test::AllClose;
using mneme::test::SameBits;

std::vector<DType> AllDTypes() {
  std::vector<DType> all;
  for (int i = 0; i < kNumDTypes; ++i) all.push_back(static_cast<DType>(i));
  return all;
}

// Columns a type can have: several blocks, and for the float types a rest below a vector.
int64_t SomeColumns(DType dtype) {
  const int block = Traits(dtype).block_elements;
  return block == 1 ? 77 : block == 32 ? 160 : 512;
}

// Whether sums are formed in the order of contract.h, and so equal reference's to the bit. A GPU
// has an order of its own.
bool SumsInContractOrder(const Variant& variant) {
  return variant.Fused() && !variant.kernels->name.starts_with("cuda");
}

std::vector<float> Product(const Variant& variant, Contract contract, int threads,
                           const Weight& weight, const float* x, int64_t x_stride, int64_t T) {
  variant.Select();
  KernelExec exec(*variant.kernels, contract, threads);
  std::vector<float> y(T * weight.rows, std::numeric_limits<float>::quiet_NaN());
  const MatMulTask task = {weight, y.data(), weight.rows, false};
  variant.kernels->matmul(exec, {&task, 1}, x, x_stride, T);
  return y;
}

class MatMulTest : public ::testing::TestWithParam<Contract> {
 protected:
  ~MatMulTest() override { PinSimdTarget(""); }
};

// contract.h: codes are rounded to the nearest, ties to even. With d = 1: 0.5 -> 0, 2.5 -> 2, 4.5
// -> 4.
TEST(MatMulInt8Test, HalfCodesGoToEven) {
  std::vector<float> x(32, 0.0f);
  x[0] = 127, x[1] = 0.5f, x[2] = 2.5f, x[3] = 4.5f;
  std::vector<std::byte> block(34, std::byte{1});  // Q8_0: a scale, 32 codes of 1
  const uint16_t one = 0x3c00;
  std::memcpy(block.data(), &one, sizeof one);
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    variant.Select();
    KernelExec exec(*variant.kernels, Contract::kInt8, 1);
    float y = 0;
    const MatMulTask task{.weight = {DType::kQ8_0, 1, 32, block.data()}, .y = &y, .y_stride = 1};
    variant.kernels->matmul(exec, {&task, 1}, x.data(), 32, 1);
    EXPECT_EQ(y, 127 + 0 + 2 + 4);
  }
  PinSimdTarget("");
}

INSTANTIATE_TEST_SUITE_P(Contracts, MatMulTest, ::testing::Values(Contract::kF32, Contract::kInt8),
                         [](const auto& info) {
                           return info.param == Contract::kF32 ? "F32" : "Int8";
                         });

// Against a product in double of the dequantised weight; under kInt8 the activations lose up to
// half a step of 1/127 of their block's largest.
TEST_P(MatMulTest, EqualsTheProductOfTheDequantisedWeight) {
  for (const DType dtype : AllDTypes()) {
    const int64_t K = SomeColumns(dtype), N = 13, T = 3;
    const TestWeight weight(dtype, N, K, 7);
    const std::vector<float> x = Random(11).Floats(T * K);
    const std::vector<float> w = weight.Dequantized();
    const bool int8 = GetParam() == Contract::kInt8 && IsQuantized(dtype);
    for (const Variant& variant : AllVariants()) {
      SCOPED_TRACE(variant.Name() + " " + std::string(Traits(dtype).name));
      const std::vector<float> y = Product(variant, GetParam(), 1, weight.view(), x.data(), K, T);
      for (int64_t t = 0; t < T; ++t) {
        for (int64_t n = 0; n < N; ++n) {
          double sum = 0, size = 0;
          for (int64_t k = 0; k < K; ++k) {
            const double product = static_cast<double>(w[n * K + k]) * x[t * K + k];
            sum += product;
            size += std::abs(int8 ? w[n * K + k] * 0.5 / 127 : product * 1e-6);
          }
          ASSERT_LE(std::abs(y[t * N + n] - sum), size + 1e-6) << "t " << t << " n " << n;
        }
      }
    }
  }
}

// contract.h fixes every rounding where there is fused multiply-add; elsewhere sums may round each
// product. In another order of the same fused terms, whose magnitudes add up to some 20, only the
// last bits differ.
TEST_P(MatMulTest, EveryVariantEqualsReference) {
  for (const DType dtype : AllDTypes()) {
    const int64_t K = SomeColumns(dtype);
    for (const int64_t N : {1, 7, 8, 9, 67}) {
      for (const int64_t T : {1, 2, 3, 4, 5, 9}) {
        const TestWeight weight(dtype, N, K, 100 + N);
        const std::vector<float> x = Random(200 + T).Floats(T * K + 1);
        std::vector<float> expected;
        for (const Variant& variant : AllVariants()) {
          SCOPED_TRACE(variant.Name() + " " + std::string(Traits(dtype).name));
          const std::vector<float> y =
              Product(variant, GetParam(), 1, weight.view(), x.data() + 1, K, T);
          if (expected.empty()) expected = y;
          if (SumsInContractOrder(variant)) {
            ASSERT_TRUE(SameBits(y, expected)) << "N " << N << " T " << T;
          } else if (variant.Fused()) {
            ASSERT_TRUE(AllClose(y, expected, {3e-6, 2e-6})) << "N " << N << " T " << T;
          } else {
            ASSERT_TRUE(AllClose(y, expected, {2e-5, 1e-5})) << "N " << N << " T " << T;
          }
        }
      }
    }
  }
}

TEST_P(MatMulTest, RowsDoNotDependOnTokensRowsOrThreads) {
  for (const DType dtype : AllDTypes()) {
    for (const Variant& variant : AllVariants()) {
      SCOPED_TRACE(variant.Name() + " " + std::string(Traits(dtype).name));
      // An emulated device takes its time.
      const bool slow = variant.kernels->name == "cuda-emu";
      const int64_t K = SomeColumns(dtype), N = slow ? 41 : 150, T = slow ? 29 : 131;
      const TestWeight weight(dtype, N, K, 3);
      const std::vector<float> x = Random(4).Floats(T * K);
      const std::vector<float> all = Product(variant, GetParam(), 1, weight.view(), x.data(), K, T);
      for (const int threads : {2, 3}) {
        ASSERT_TRUE(
            SameBits(Product(variant, GetParam(), threads, weight.view(), x.data(), K, T), all))
            << threads << " threads";
      }
      for (int64_t t = 0; t < T; t += slow ? 7 : 26) {
        const std::vector<float> one =
            Product(variant, GetParam(), 2, weight.view(), x.data() + t * K, K, 1);
        ASSERT_TRUE(SameBits(one, std::span(all).subspan(t * N, N))) << "token " << t;
      }
      // A part of the rows, beginning off any multiple of eight.
      Weight part = weight.view();
      part.data += 5 * part.row_bytes();
      part.rows = 21;
      const std::vector<float> few = Product(variant, GetParam(), 1, part, x.data(), K, 1);
      ASSERT_TRUE(SameBits(few, std::span(all).subspan(5, 21)));
    }
  }
}

// Rows long enough that a backend may share one out to several workers; tokens in tiles of any
// size, the last one not full. Against reference, and against a token alone.
TEST_P(MatMulTest, LongRows) {
  for (const DType dtype : AllDTypes()) {
    const int block = Traits(dtype).block_elements;
    for (const int64_t about : {2000, 2500, 5200}) {
      const int64_t K = about / block * block + (block == 1 ? 3 : 0), N = 7, T = 11;
      const TestWeight weight(dtype, N, K, 31);
      const std::vector<float> x = Random(32).Floats(T * K);
      const std::vector<float> w = weight.Dequantized();
      std::vector<float> expected;
      for (const Variant& variant : AllVariants()) {
        SCOPED_TRACE(variant.Name() + " " + std::string(Traits(dtype).name));
        std::vector<float> first;
        for (const int64_t tokens : {int64_t{1}, int64_t{2}, int64_t{3}, T}) {
          const std::vector<float> y =
              Product(variant, GetParam(), 2, weight.view(), x.data(), K, tokens);
          if (tokens == 1) first = y;
          ASSERT_TRUE(SameBits(std::span(y).first(N), first)) << tokens << " tokens";
          if (tokens < T) continue;
          if (expected.empty()) expected = y;
          for (int64_t i = 0; i < T * N; ++i) {
            double size = 0;
            for (int64_t k = 0; k < K; ++k) size += std::abs(w[i % N * K + k] * x[i / N * K + k]);
            ASSERT_LE(std::abs(y[i] - expected[i]), 3e-7 * size) << "K " << K << " output " << i;
          }
        }
      }
    }
  }
}

// A row's numbers do not depend on where it is stored, nor on where the activations are.
TEST_P(MatMulTest, AlignmentDoesNotMatter) {
  for (const DType dtype : AllDTypes()) {
    const int64_t K = Traits(dtype).block_elements == 1 ? 1352 : 1536, N = 9;
    for (const Variant& variant : AllVariants()) {
      SCOPED_TRACE(variant.Name() + " " + std::string(Traits(dtype).name));
      for (const int64_t T : {1, 2, 4, 6}) {
        const std::vector<float> x = Random(72).Floats(T * K);
        std::vector<float> moved(T * (K + 1) + 1);
        for (int64_t t = 0; t < T; ++t) {
          std::copy_n(x.data() + t * K, K, moved.data() + 1 + t * (K + 1));
        }
        const TestWeight aligned(dtype, N, K, 71, 0);
        const std::vector<float> expected =
            Product(variant, GetParam(), 1, aligned.view(), x.data(), K, T);
        for (const size_t misalign : {0, 1, 2, 4, 8}) {
          const TestWeight weight(dtype, N, K, 71, misalign);
          ASSERT_TRUE(SameBits(
              Product(variant, GetParam(), 1, weight.view(), moved.data() + 1, K + 1, T), expected))
              << misalign << " bytes off";
          ASSERT_TRUE(
              SameBits(Product(variant, GetParam(), 1, weight.view(), x.data(), K, T), expected))
              << misalign << " bytes off";
        }
      }
    }
  }
}

// More products than a launch may take at once.
TEST_P(MatMulTest, ManyProductsAtOnce) {
  const int64_t K = 64, N = 3, T = 2;
  const std::vector<float> x = Random(81).Floats(T * K);
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    std::vector<TestWeight> weights;
    std::vector<std::vector<float>> ys;
    std::vector<MatMulTask> tasks;
    for (int i = 0; i < 19; ++i) {
      weights.emplace_back(i % 3 == 0 ? DType::kBF16 : DType::kQ5_0, N + i, K, 82 + i);
      ys.emplace_back(T * (N + i));
    }
    for (int i = 0; i < 19; ++i) {
      tasks.push_back({weights[i].view(), ys[i].data(), N + i, false});
    }
    variant.Select();
    KernelExec exec(*variant.kernels, GetParam(), 2);
    variant.kernels->matmul(exec, tasks, x.data(), K, T);
    for (int i = 0; i < 19; ++i) {
      ASSERT_TRUE(
          SameBits(ys[i], Product(variant, GetParam(), 1, weights[i].view(), x.data(), K, T)))
          << i;
    }
  }
}

TEST_P(MatMulTest, SeveralProductsShareAnInputAndMayAccumulate) {
  const int64_t K = 96;
  const std::vector<DType> dtypes = {DType::kQ4_1, DType::kQ8_0, DType::kF16, DType::kQ5_1};
  for (const int64_t T : {1, 6}) {
    const int64_t x_stride = K + 5;
    const std::vector<float> x = Random(5).Floats(T * x_stride);
    for (const Variant& variant : AllVariants()) {
      SCOPED_TRACE(variant.Name());
      std::vector<TestWeight> weights;
      for (size_t i = 0; i < dtypes.size(); ++i) {
        weights.emplace_back(dtypes[i], 9 + 10 * static_cast<int64_t>(i), K, 40 + i);
      }
      variant.Select();
      KernelExec exec(*variant.kernels, GetParam(), 2);
      std::vector<std::vector<float>> ys;
      std::vector<MatMulTask> tasks;
      for (size_t i = 0; i < weights.size(); ++i) {
        const int64_t N = weights[i].view().rows;
        ys.emplace_back(T * (N + 2), 0.25f);
        tasks.push_back({weights[i].view(), ys[i].data(), N + 2, i % 2 == 1});
      }
      variant.kernels->matmul(exec, tasks, x.data(), x_stride, T);
      for (size_t i = 0; i < weights.size(); ++i) {
        const int64_t N = weights[i].view().rows;
        const std::vector<float> alone =
            Product(variant, GetParam(), 1, weights[i].view(), x.data(), x_stride, T);
        for (int64_t t = 0; t < T; ++t) {
          for (int64_t n = 0; n < N; ++n) {
            const float sum = alone[t * N + n];
            ASSERT_EQ(ys[i][t * (N + 2) + n], i % 2 == 1 ? 0.25f + sum : sum);
          }
          ASSERT_EQ(ys[i][t * (N + 2) + N], 0.25f) << "wrote beyond the row";
          ASSERT_EQ(ys[i][t * (N + 2) + N + 1], 0.25f) << "wrote beyond the row";
        }
      }
    }
  }
}

// start + scale * sum, each rounded once and in that order, for every way a row is stored: whole
// steps of eight rows, a rest, one token and several.
TEST_P(MatMulTest, BiasAndScaleJoinTheFinishedSum) {
  for (const DType dtype : AllDTypes()) {
    const int64_t K = SomeColumns(dtype), N = 21;
    const TestWeight weight(dtype, N, K, 60);
    const std::vector<float> bias = Random(61).Floats(N);
    for (const int64_t T : {1, 5}) {
      const std::vector<float> x = Random(62).Floats(T * K), before = Random(63).Floats(T * N);
      for (const Variant& variant : AllVariants()) {
        SCOPED_TRACE(variant.Name() + " " + std::string(Traits(dtype).name));
        const std::vector<float> sums =
            Product(variant, GetParam(), 1, weight.view(), x.data(), K, T);
        KernelExec exec(*variant.kernels, GetParam(), 2);
        for (const bool accumulate : {false, true}) {
          for (const float scale : {1.0f, 0.7f}) {
            for (const bool biased : {false, true}) {
              std::vector<float> y = before;
              const MatMulTask task = {.weight = weight.view(),
                                       .y = y.data(),
                                       .y_stride = N,
                                       .accumulate = accumulate,
                                       .bias = biased ? bias.data() : nullptr,
                                       .scale = scale};
              variant.kernels->matmul(exec, {&task, 1}, x.data(), K, T);
              for (int64_t i = 0; i < T * N; ++i) {
                const float sum = scale * sums[i];
                const float start = accumulate && biased ? before[i] + bias[i % N]
                                    : biased             ? bias[i % N]
                                                         : before[i];
                ASSERT_EQ(y[i], accumulate || biased ? start + sum : sum) << i;
              }
            }
          }
        }
      }
    }
  }
}

TEST_P(MatMulTest, NonFiniteInputStaysInItsRow) {
  const float bad[] = {std::numeric_limits<float>::quiet_NaN(),
                       std::numeric_limits<float>::infinity()};
  for (const DType dtype : AllDTypes()) {
    const int64_t K = SomeColumns(dtype), N = 11, T = 6;
    const TestWeight weight(dtype, N, K, 8);
    for (const float value : bad) {
      std::vector<float> x = Random(9).Floats(T * K);
      for (const Variant& variant : AllVariants()) {
        SCOPED_TRACE(variant.Name() + " " + std::string(Traits(dtype).name));
        std::vector<float> clean = x;
        const std::vector<float> expected =
            Product(variant, GetParam(), 1, weight.view(), clean.data(), K, T);
        clean[2 * K + 33] = value;
        const std::vector<float> y =
            Product(variant, GetParam(), 1, weight.view(), clean.data(), K, T);
        for (int64_t t = 0; t < T; ++t) {
          for (int64_t n = 0; n < N; ++n) {
            if (t == 2) {
              ASSERT_FALSE(std::isfinite(y[t * N + n])) << "n " << n;
            } else {
              ASSERT_EQ(y[t * N + n], expected[t * N + n]);
            }
          }
        }
      }
    }
  }
}

// Largest codes against largest activations: sums in 16 bits must not wrap.
TEST_P(MatMulTest, ExtremeCodesDoNotOverflow) {
  for (const DType dtype : {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                            DType::kQ4_K, DType::kQ5_K, DType::kQ6_K}) {
    const int64_t K = 512, N = 8;
    for (const int fill : {0x00, 0x80, 0xff, 0x7f}) {
      std::vector<std::byte> bytes(N * RowBytes(dtype, K), static_cast<std::byte>(fill));
      // Finite scales: 0x3c00 is 1.
      const DTypeTraits& traits = Traits(dtype);
      for (int64_t i = 0; i < N * K / traits.block_elements; ++i) {
        std::byte* block = bytes.data() + i * traits.block_bytes;
        std::byte* d = dtype == DType::kQ6_K ? block + 208 : block;
        d[0] = std::byte{0x00};
        d[1] = std::byte{0x3c};
        if (HasMin(dtype)) {
          d[2] = std::byte{0x00};
          d[3] = std::byte{0x3c};
        }
      }
      const Weight weight = {dtype, N, K, bytes.data()};
      for (const float sign : {1.0f, -1.0f}) {
        const std::vector<float> x(3 * K, sign);
        std::vector<float> expected;
        for (const Variant& variant : AllVariants()) {
          SCOPED_TRACE(variant.Name() + " " + std::string(traits.name));
          for (const int64_t T : {1, 3}) {
            const std::vector<float> y = Product(variant, GetParam(), 1, weight, x.data(), K, T);
            if (expected.empty()) expected = y;
            ASSERT_TRUE(AllClose(std::span(y).first(N), expected, {1e-4, 1e-5})) << fill;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace mneme::engine
