// Every backend and SIMD target against the scalar reference, and each against itself when rows are
// cut differently.
#include "engine/kernels/infini_memory.h"

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

// Sums of up to 270 terms of order 1 in another order.
constexpr test::Tolerance kTolerance = {.absolute = 1e-5, .relative = 1e-5};

struct Shape {
  int64_t heads, kv_heads, dk, dv, segment;
};
// Around the vector width, below it, odd, a usual head, and wide keys.
constexpr Shape kShapes[] = {{1, 1, 2, 1, 3},    {2, 1, 6, 5, 19}, {4, 2, 10, 14, 7},
                             {3, 3, 16, 24, 33}, {2, 2, 8, 37, 9}, {4, 2, 64, 72, 130},
                             {3, 1, 270, 33, 12}};

// Of several sequences, one behind the other.
struct Result {
  std::vector<float> memory, normalizer, pending_memory, pending_normalizer, mixed;
};

// A segment of each of `sequences` sequences, in calls of `piece` rows.
Result RunSegments(const Variant& variant, const Shape& shape, bool delta, int64_t sequences,
                   int64_t piece, int threads) {
  const auto [H, Hk, dk, dv, n] = shape;
  variant.Select();
  KernelExec exec(*variant.kernels, Contract::kF32, threads);
  const Kernels& kernels = *variant.kernels;
  Random random(20240613);
  std::vector<float> memory_share = random.Floats(H), local_share = random.Floats(H);
  Result result;
  for (int64_t i = 0; i < sequences; ++i) {
    for (const float x : random.Floats(Hk * dk * dv)) result.memory.push_back(x);
    for (const float x : random.Floats(Hk * dk)) result.normalizer.push_back(std::abs(x) + 0.1f);
  }
  result.pending_memory.resize(sequences * Hk * dk * dv);
  result.pending_normalizer.resize(sequences * Hk * dk);
  result.mixed.assign(sequences * n * H * dv, -7.0f);
  const int64_t rows = sequences * n;
  std::vector<float> sq = random.Floats(rows * H * dk), sk = random.Floats(rows * Hk * dk);
  const std::vector<float> v = random.Floats(rows * Hk * dv), local = random.Floats(rows * H * dv);
  kernels.infini_feature_map(exec, sq.data(), static_cast<int64_t>(sq.size()), sq.data());
  kernels.infini_feature_map(exec, sk.data(), static_cast<int64_t>(sk.size()), sk.data());
  const InfiniMixShape heads{.heads = H,
                             .kv_heads = Hk,
                             .key_dim = dk,
                             .value_dim = dv,
                             .eps = 1e-6f,
                             .delta = delta,
                             .memory_share = memory_share.data(),
                             .local_share = local_share.data()};
  for (int64_t r = 0; r < n; r += piece) {
    std::vector<InfiniMixArgs> batch;
    for (int64_t i = 0; i < sequences; ++i) {
      const int64_t row = i * n + r;
      batch.push_back({.memory = result.memory.data() + i * Hk * dk * dv,
                       .normalizer = result.normalizer.data() + i * Hk * dk,
                       .pending_memory = result.pending_memory.data() + i * Hk * dk * dv,
                       .pending_normalizer = result.pending_normalizer.data() + i * Hk * dk,
                       .rows = std::min(piece, n - r),
                       .local_only = i == 1,
                       // The third sequence's segment goes on.
                       .completes = r + piece >= n && i != 2,
                       .sq = sq.data() + row * H * dk,
                       .sk = sk.data() + row * Hk * dk,
                       .v = v.data() + row * Hk * dv,
                       .local = local.data() + row * H * dv,
                       .mixed = result.mixed.data() + row * H * dv});
    }
    kernels.infini_mix(exec, heads, batch);
  }
  return result;
}

void ExpectSameBits(const Result& actual, const Result& expected) {
  EXPECT_TRUE(SameBits(actual.memory, expected.memory));
  EXPECT_TRUE(SameBits(actual.normalizer, expected.normalizer));
  EXPECT_TRUE(SameBits(actual.pending_memory, expected.pending_memory));
  EXPECT_TRUE(SameBits(actual.pending_normalizer, expected.pending_normalizer));
  EXPECT_TRUE(SameBits(actual.mixed, expected.mixed));
}

class InfiniMemoryTest : public testing::TestWithParam<Variant> {
 protected:
  void SetUp() override { GetParam().Select(); }
  void TearDown() override { PinSimdTarget(""); }
};

TEST_P(InfiniMemoryTest, AgreesWithTheReference) {
  for (const bool delta : {false, true}) {
    for (const Shape& shape : kShapes) {
      SCOPED_TRACE(testing::Message() << shape.dk << " x " << shape.dv << ", delta " << delta);
      const Result expected = RunSegments(AllVariants().front(), shape, delta, 3, shape.segment, 1);
      const Result actual = RunSegments(GetParam(), shape, delta, 3, shape.segment, 1);
      EXPECT_TRUE(AllClose(actual.mixed, expected.mixed, kTolerance));
      EXPECT_TRUE(AllClose(actual.memory, expected.memory, kTolerance));
      EXPECT_TRUE(AllClose(actual.normalizer, expected.normalizer, kTolerance));
      EXPECT_TRUE(AllClose(actual.pending_memory, expected.pending_memory, kTolerance));
      EXPECT_TRUE(AllClose(actual.pending_normalizer, expected.pending_normalizer, kTolerance));
    }
  }
}

TEST_P(InfiniMemoryTest, CutsThreadsAndNeighboursChangeNoBits) {
  for (const bool delta : {false, true}) {
    for (const Shape& shape : kShapes) {
      const Result whole = RunSegments(GetParam(), shape, delta, 3, shape.segment, 1);
      for (const auto& [piece, threads] :
           {std::pair{1, 1}, {2, 3}, {3, 1}, {5, 2}, {8, 1}, {30, 2}}) {
        SCOPED_TRACE(testing::Message()
                     << shape.dk << " x " << shape.dv << ", pieces of " << piece);
        ExpectSameBits(RunSegments(GetParam(), shape, delta, 3, piece, threads), whole);
      }
    }
  }
}

// The end of a segment moves the pending sums into the memory; nothing else touches it.
TEST_P(InfiniMemoryTest, MemoryChangesWhereSegmentsEnd) {
  const Shape shape{2, 2, 8, 12, 16};
  const Result result = RunSegments(GetParam(), shape, true, 3, shape.segment, 1);
  const int64_t size = shape.kv_heads * shape.dk * shape.dv;
  const auto pending = [&](int64_t i) {
    return std::vector<float>(result.pending_memory.begin() + i * size,
                              result.pending_memory.begin() + (i + 1) * size);
  };
  EXPECT_TRUE(SameBits(pending(0), std::vector<float>(size)));
  EXPECT_TRUE(SameBits(pending(1), std::vector<float>(size)));
  EXPECT_FALSE(SameBits(pending(2), std::vector<float>(size)));
}

// ELU(x) + 1 written literally is 0 from x = -18 on.
TEST_P(InfiniMemoryTest, FeatureMapIsAccurateWhereEluPlusOneCancels) {
  std::vector<float> x, expected;
  for (int i = -8000; i <= 8000; ++i) {
    x.push_back(static_cast<float>(i) * 0.01f);
    const double value = x.back();
    expected.push_back(static_cast<float>(std::exp(std::min(value, 0.0)) + std::max(value, 0.0)));
  }
  std::vector<float> y(x.size());
  KernelExec exec(*GetParam().kernels, Contract::kF32, 2);
  GetParam().kernels->infini_feature_map(exec, x.data(), static_cast<int64_t>(x.size()), y.data());
  EXPECT_TRUE(AllClose(y, expected, {.relative = 1e-6}));
}

// A memory of zeros with a normaliser of zeros reads as zero.
TEST_P(InfiniMemoryTest, AnEmptyMemoryReadsAsZero) {
  constexpr int64_t kDk = 12, kDv = 9, kT = 3;
  std::vector<float> memory(kDk * kDv), normalizer(kDk), pending(kDk * kDv), pending_z(kDk);
  const std::vector<float> s(kT * kDk, 2.0f), v(kT * kDv, 1.0f);
  std::vector<float> mixed(kT * kDv, 5.0f);
  const float all = 1, none = 0;
  KernelExec exec(*GetParam().kernels, Contract::kF32, 1);
  const InfiniMixArgs args{.memory = memory.data(),
                           .normalizer = normalizer.data(),
                           .pending_memory = pending.data(),
                           .pending_normalizer = pending_z.data(),
                           .rows = kT,
                           .sq = s.data(),
                           .sk = s.data(),
                           .v = v.data(),
                           .local = v.data(),
                           .mixed = mixed.data()};
  GetParam().kernels->infini_mix(exec,
                                 {.heads = 1,
                                  .kv_heads = 1,
                                  .key_dim = kDk,
                                  .value_dim = kDv,
                                  .eps = 1e-6f,
                                  .memory_share = &all,
                                  .local_share = &none},
                                 {&args, 1});
  EXPECT_TRUE(SameBits(mixed, std::vector<float>(kT * kDv)));
}

INSTANTIATE_TEST_SUITE_P(All, InfiniMemoryTest, testing::ValuesIn(AllVariants()),
                         [](const auto& info) { return ParameterName(info.param.Name()); });

}  // namespace
}  // namespace mneme::engine
