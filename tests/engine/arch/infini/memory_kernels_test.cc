// Every backend and SIMD target against the scalar reference, and each against itself when rows are
// cut differently.
#include "engine/arch/infini/memory_kernels.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/kernels/kernel_setup.h"
#include "tests/support/compare.h"

namespace mneme::engine::infini {
namespace {

using test::AllClose;
using test::SameBits;

// Sums of up to 130 terms of order 1 in another order.
constexpr test::Tolerance kTolerance = {.absolute = 1e-5, .relative = 1e-5};

struct Shape {
  int64_t dk, dv, segment;
};
// Around the vector width, below it, odd, and a usual head.
constexpr Shape kShapes[] = {{2, 1, 3},    {6, 5, 19}, {10, 14, 7},
                             {16, 24, 33}, {8, 37, 9}, {64, 72, 130}};

struct Result {
  std::vector<float> memory, normalizer, mix, update;
};

// A segment of one head of two query heads' stride, in pieces of `piece` rows: reads a memory,
// mixes, forms the delta, writes.
Result RunSegment(const MemoryKernels& kernels, const Shape& shape, int64_t piece) {
  const auto [dk, dv, n] = shape;
  Random random(20240613);
  const int64_t k_stride = 2 * dk + 1, v_stride = 2 * dv + 3;
  const std::vector<float> q = random.Floats(n * k_stride), k = random.Floats(n * k_stride),
                           v = random.Floats(n * v_stride);
  std::vector<float> old_memory = random.Floats(dk * dv), old_normalizer = random.Floats(dk);
  for (float& z : old_normalizer) z = std::abs(z) + 0.1f;
  std::vector<float> sq(q.size()), sk(k.size());
  kernels.feature_map(q.data(), q.size(), sq.data());
  kernels.feature_map(k.data(), k.size(), sk.data());
  const MemoryView view{old_memory.data(), old_normalizer.data(), dk, dv, 1e-6f};
  Result result{.memory = std::vector<float>(dk * dv),
                .normalizer = std::vector<float>(dk),
                .mix = std::vector<float>(n * v_stride, -7.0f),
                .update = std::vector<float>(n * dv)};
  for (int64_t r = 0; r < n; r += piece) {
    const int64_t count = std::min(piece, n - r);
    float* mix = result.mix.data() + r * v_stride;
    kernels.retrieve(view, {sq.data() + r * k_stride, k_stride}, count, mix, v_stride);
    kernels.blend(0.3f, 0.7f, {v.data() + r * v_stride, v_stride}, count, dv, mix, v_stride);
    float* u = result.update.data() + r * dv;
    kernels.retrieve(view, {sk.data() + r * k_stride, k_stride}, count, u, dv);
    kernels.subtract_from({v.data() + r * v_stride, v_stride}, count, dv, u, dv);
    kernels.accumulate({sk.data() + r * k_stride, k_stride}, {u, dv}, count, dk, dv,
                       result.memory.data(), result.normalizer.data());
  }
  return result;
}

class MemoryKernelsTest : public testing::TestWithParam<Variant> {
 protected:
  void SetUp() override {
    GetParam().Select();
    kernels_ = FindMemoryKernels(GetParam().kernels->name);
    ASSERT_NE(kernels_, nullptr);
  }
  void TearDown() override { PinSimdTarget(""); }

  const MemoryKernels* kernels_ = nullptr;
};

TEST_P(MemoryKernelsTest, AgreeWithTheReference) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(testing::Message() << shape.dk << " x " << shape.dv << ", " << shape.segment);
    const Result expected = RunSegment(ReferenceMemoryKernels(), shape, shape.segment);
    const Result actual = RunSegment(*kernels_, shape, shape.segment);
    EXPECT_TRUE(AllClose(actual.mix, expected.mix, kTolerance));
    EXPECT_TRUE(AllClose(actual.update, expected.update, kTolerance));
    EXPECT_TRUE(AllClose(actual.memory, expected.memory, kTolerance));
    EXPECT_TRUE(AllClose(actual.normalizer, expected.normalizer, kTolerance));
  }
}

TEST_P(MemoryKernelsTest, HowRowsAreCutChangesNoBits) {
  for (const Shape& shape : kShapes) {
    const Result whole = RunSegment(*kernels_, shape, shape.segment);
    for (const int64_t piece : {1, 2, 3, 5, 8, 30}) {
      SCOPED_TRACE(testing::Message() << shape.dk << " x " << shape.dv << ", pieces of " << piece);
      const Result cut = RunSegment(*kernels_, shape, piece);
      EXPECT_TRUE(SameBits(cut.mix, whole.mix));
      EXPECT_TRUE(SameBits(cut.update, whole.update));
      EXPECT_TRUE(SameBits(cut.memory, whole.memory));
      EXPECT_TRUE(SameBits(cut.normalizer, whole.normalizer));
    }
  }
}

// ELU(x) + 1 written literally is 0 from x = -18 on.
TEST_P(MemoryKernelsTest, FeatureMapIsAccurateWhereEluPlusOneCancels) {
  std::vector<float> x, expected;
  for (int i = -8000; i <= 8000; ++i) {
    x.push_back(static_cast<float>(i) * 0.01f);
    const double value = x.back();
    expected.push_back(static_cast<float>(std::exp(std::min(value, 0.0)) + std::max(value, 0.0)));
  }
  std::vector<float> y(x.size());
  kernels_->feature_map(x.data(), x.size(), y.data());
  EXPECT_TRUE(AllClose(y, expected, {.relative = 1e-6}));
}

// A memory of zeros with a normaliser of zeros reads as zero.
TEST_P(MemoryKernelsTest, AnEmptyMemoryReadsAsZero) {
  const std::vector<float> zeros(12 * 9), s(3 * 12, 2.0f);
  std::vector<float> out(3 * 9, 5.0f);
  kernels_->retrieve({zeros.data(), zeros.data(), 12, 9, 1e-6f}, {s.data(), 12}, 3, out.data(), 9);
  EXPECT_TRUE(SameBits(out, std::vector<float>(3 * 9)));
}

INSTANTIATE_TEST_SUITE_P(All, MemoryKernelsTest, testing::ValuesIn(AllVariants()),
                         [](const auto& info) {
                           std::string name = info.param.Name();
                           std::replace(name.begin(), name.end(), '/', '_');
                           return name;
                         });

TEST(MemoryKernelsTableTest, EveryBackendHasThem) {
  for (const Kernels* backend : AllBackends()) {
    ASSERT_NE(FindMemoryKernels(backend->name), nullptr) << backend->name;
    EXPECT_EQ(FindMemoryKernels(backend->name)->backend, backend->name);
  }
  EXPECT_EQ(FindMemoryKernels("abacus"), nullptr);
}

}  // namespace
}  // namespace mneme::engine::infini
