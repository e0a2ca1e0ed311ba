#include "engine/kernels/block_attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "engine/core/half.h"
#include "gtest/gtest.h"
#include "tests/engine/kernels/kernel_setup.h"
#include "tests/support/compare.h"

namespace mneme::engine {
namespace {

using mneme::test::AllClose;
using mneme::test::SameBits;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Shape {
  int64_t H, Hk, Dk, Dv;
  int64_t T;     // queries
  int64_t keys;  // at least T if causal
  bool causal;
  DType dtype;
};

// Queries, and a list of keys and values as a state would hold them.
struct Case {
  explicit Case(const Shape& shape, uint32_t seed) : shape(shape) {
    Random random(seed);
    q = random.Floats(shape.T * shape.H * shape.Dk);
    for (float& x : q) x *= 3;  // peaked weights
    k_rows = random.Floats(shape.keys * shape.Hk * shape.Dk);
    v_rows = random.Floats(shape.keys * shape.Hk * shape.Dv);
    Store();
  }

  void Store() {
    KernelExec exec(*FindBackend("reference"), Contract::kF32, 1);
    const int64_t k_width = shape.Hk * shape.Dk, v_width = shape.Hk * shape.Dv;
    k.resize(k_rows.size() * ElementBytes());
    v.resize(v_rows.size() * ElementBytes());
    const std::vector<StoreRowsArgs> stores = {{.x = k_rows.data(),
                                                .x_stride = k_width,
                                                .rows = shape.keys,
                                                .width = k_width,
                                                .dtype = shape.dtype,
                                                .to = k.data()},
                                               {.x = v_rows.data(),
                                                .x_stride = v_width,
                                                .rows = shape.keys,
                                                .width = v_width,
                                                .dtype = shape.dtype,
                                                .to = v.data()}};
    exec.kernels().store_rows(exec, stores);
  }

  int64_t ElementBytes() const { return shape.dtype == DType::kF16 ? 2 : 4; }

  // Queries [begin, begin + count); the keys that they see in runs that end at `cuts`.
  BlockAttentionArgs Args(int64_t begin, int64_t count, const std::vector<int64_t>& cuts,
                          float* out) const {
    BlockAttentionArgs args;
    const int64_t seen = shape.causal ? shape.keys - (shape.T - begin - count) : shape.keys;
    int64_t row = 0;
    for (size_t i = 0; i <= cuts.size(); ++i) {
      const int64_t end = i < cuts.size() ? std::min(cuts[i], seen) : seen;
      args.runs[i] = {k.data() + row * shape.Hk * shape.Dk * ElementBytes(),
                      v.data() + row * shape.Hk * shape.Dv * ElementBytes(), end - row};
      row = end;
    }
    args.dtype = shape.dtype;
    args.causal = shape.causal;
    args.T = count;
    args.query_heads = shape.H;
    args.kv_heads = shape.Hk;
    args.key_dim = shape.Dk;
    args.value_dim = shape.Dv;
    args.scale = 1.0f / std::sqrt(static_cast<float>(shape.Dk));
    args.q_stride = shape.H * shape.Dk;
    args.out_stride = shape.H * shape.Dv;
    args.q = q.data() + begin * args.q_stride;
    args.out = out + begin * args.out_stride;
    return args;
  }

  const Shape shape;
  std::vector<float> q, k_rows, v_rows;
  std::vector<std::byte> k, v;
};

// In calls of `piece` queries.
std::vector<float> Attend(const Variant& variant, int threads, const Case& c, int64_t piece,
                          const std::vector<int64_t>& cuts = {}) {
  variant.Select();
  KernelExec exec(*variant.kernels, Contract::kF32, threads);
  std::vector<float> out(c.shape.T * c.shape.H * c.shape.Dv, kNaN);
  for (int64_t t = 0; t < c.shape.T; t += piece) {
    const BlockAttentionArgs args = c.Args(t, std::min(piece, c.shape.T - t), cuts, out.data());
    variant.kernels->block_attention(exec, {&args, 1});
  }
  return out;
}

float Rounded(float x, DType dtype) {
  return dtype == DType::kF16 ? HalfToFloat(FloatToHalf(x)) : x;
}

// In double, all scores at once.
std::vector<float> Naive(const Case& c) {
  const Shape& s = c.shape;
  std::vector<float> out(s.T * s.H * s.Dv);
  for (int64_t t = 0; t < s.T; ++t) {
    for (int64_t h = 0; h < s.H; ++h) {
      const int64_t kv = h / (s.H / s.Hk);
      std::vector<double> score(s.causal ? s.keys - (s.T - 1 - t) : s.keys);
      for (size_t j = 0; j < score.size(); ++j) {
        for (int64_t d = 0; d < s.Dk; ++d) {
          score[j] += static_cast<double>(c.q[(t * s.H + h) * s.Dk + d]) *
                      Rounded(c.k_rows[(j * s.Hk + kv) * s.Dk + d], s.dtype) /
                      std::sqrt(static_cast<double>(s.Dk));
        }
      }
      const double max = *std::max_element(score.begin(), score.end());
      double sum = 0;
      std::vector<double> o(s.Dv);
      for (size_t j = 0; j < score.size(); ++j) {
        const double e = std::exp(score[j] - max);
        sum += e;
        for (int64_t d = 0; d < s.Dv; ++d) {
          o[d] += e * Rounded(c.v_rows[(j * s.Hk + kv) * s.Dv + d], s.dtype);
        }
      }
      for (int64_t d = 0; d < s.Dv; ++d) {
        out[(t * s.H + h) * s.Dv + d] = static_cast<float>(o[d] / sum);
      }
    }
  }
  return out;
}

const Shape kShapes[] = {
    {3, 1, 12, 12, 11, 25, true, DType::kF16},   // one group, no multiple of a vector
    {4, 2, 10, 10, 7, 12, true, DType::kF32},    // a block and its memory
    {5, 1, 20, 20, 70, 200, true, DType::kF16},  // five heads to a group, several chunks of queries
    {2, 2, 2, 1, 33, 33, true, DType::kF32},     // values narrower than keys
    {1, 1, 6, 24, 3, 131, true, DType::kF16},    // and wider
    {6, 6, 32, 32, 64, 136, true, DType::kF16},  // the usual head width
    {2, 1, 140, 70, 9, 600, true, DType::kF16},  // several key chunks, wide
    {3, 1, 12, 12, 3, 14, false, DType::kF16},   // rows of a memory: all see all
    {4, 2, 10, 10, 5, 5, false, DType::kF32},   {1, 1, 8, 8, 40, 150, false, DType::kF32},
    {2, 1, 4, 4, 1, 1, true, DType::kF16},
};

class BlockAttentionTest : public ::testing::TestWithParam<Shape> {
 protected:
  ~BlockAttentionTest() override { PinSimdTarget(""); }
};

INSTANTIATE_TEST_SUITE_P(Shapes, BlockAttentionTest, ::testing::ValuesIn(kShapes));

TEST_P(BlockAttentionTest, EqualsNaiveSoftmaxOverTheList) {
  const Case c(GetParam(), 31);
  const std::vector<float> expected = Naive(c);
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    EXPECT_TRUE(AllClose(Attend(variant, 1, c, c.shape.T), expected, {5e-6, 2e-5}));
  }
}

TEST_P(BlockAttentionTest, CutIntoCallsRunsOrThreadsChangesNoBit) {
  const Case c(GetParam(), 32);
  const int64_t keys = c.shape.keys;
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    const std::vector<float> whole = Attend(variant, 1, c, c.shape.T);
    for (const int64_t piece : {1, 2, 5, 33}) {
      EXPECT_TRUE(SameBits(Attend(variant, 1 + piece % 3, c, piece), whole)) << piece;
    }
    for (const std::vector<int64_t>& cuts : {std::vector<int64_t>{keys / 2},
                                             {0, keys / 3},
                                             {keys / 4, keys / 4, keys - 1},
                                             {1, keys / 2, keys / 2 + 1}}) {
      EXPECT_TRUE(SameBits(Attend(variant, 2, c, 7, cuts), whole));
    }
  }
}

TEST_P(BlockAttentionTest, SequencesDoNotInfluenceEachOther) {
  const Case one(GetParam(), 33), other(GetParam(), 34);
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    const std::vector<float> alone = Attend(variant, 1, one, one.shape.T);
    const int64_t last = one.shape.T - 1;
    KernelExec exec(*variant.kernels, Contract::kF32, 2);
    std::vector<float> out(alone.size()), rest(alone.size());
    const std::array batch = {other.Args(last, 1, {}, rest.data()),
                              one.Args(0, one.shape.T, {}, out.data())};
    variant.kernels->block_attention(exec, batch);
    EXPECT_TRUE(SameBits(out, alone));
  }
}

// What a query does not see must not reach it, not even as 0 * NaN.
TEST_P(BlockAttentionTest, LaterKeysDoNotReachEarlierQueries) {
  if (!GetParam().causal || GetParam().T < 3) GTEST_SKIP() << "every query sees every key";
  const Case clean(GetParam(), 35);
  Case c(GetParam(), 35);
  const Shape& s = c.shape;
  const int64_t poisoned = s.keys - 2;  // seen by the last two queries
  for (int64_t i = 0; i < s.Hk * s.Dk; ++i) c.k_rows[poisoned * s.Hk * s.Dk + i] = kNaN;
  for (int64_t i = 0; i < s.Hk * s.Dv; ++i) c.v_rows[poisoned * s.Hk * s.Dv + i] = kNaN;
  c.Store();
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    const std::vector<float> expected = Attend(variant, 1, clean, s.T);
    const std::vector<float> actual = Attend(variant, 1, c, s.T);
    const int64_t unaffected = (s.T - 2) * s.H * s.Dv;
    EXPECT_TRUE(
        SameBits(std::span(actual).first(unaffected), std::span(expected).first(unaffected)));
    for (size_t i = unaffected; i < actual.size(); ++i) ASSERT_TRUE(std::isnan(actual[i])) << i;
  }
}

// A block of two tokens, one row of memory, the block before: worked by hand (identity projections,
// angle = position in radians).
TEST(BlockAttentionExampleTest, TokensAndMemoryOfThreeBlocks) {
  struct Row {
    std::vector<float> raw;  // before normalisation
    int64_t position;
  };
  const auto normed = [](const Row& row) {
    const double scale =
        1 / std::sqrt((row.raw[0] * row.raw[0] + row.raw[1] * row.raw[1]) / 2.0 + 1e-6);
    return std::vector<float>{static_cast<float>(row.raw[0] * scale),
                              static_cast<float>(row.raw[1] * scale)};
  };
  const auto rotated = [&](const Row& row) {
    const std::vector<float> x = normed(row);
    const double c = std::cos(row.position), s = std::sin(row.position);
    return std::vector<float>{static_cast<float>(x[0] * c - x[1] * s),
                              static_cast<float>(x[0] * s + x[1] * c)};
  };
  const Row x0{{1, 0}, 0}, x1{{0, 1}, 1}, x2{{1, 1}, 2}, x3{{-1, 1}, 3}, x4{{2, 0}, 4};
  const Row f0{{0.5f, -0.5f}, -1}, f1{{2.140985f, -0.594735f}, 1}, f2{{4.476294f, -0.622563f}, 3};
  // query, keys in their order, what attention and residual give.
  struct Line {
    Row query;
    std::vector<Row> keys;
    bool residual;
    std::vector<float> sum;
  };
  const Line lines[] = {
      {x0, {f0, x0}, true, {2.351058f, -0.152467f}},
      {x1, {f0, x0, x1}, true, {0.207019f, 2.035428f}},
      {f0, {f0, x0, x1}, false, {0.944323f, -0.594735f}},
      {x2, {x0, x1, f1, x2}, true, {1.584974f, 2.075606f}},
      {x3, {x0, x1, f1, x2, x3}, true, {-0.910956f, 1.563776f}},
      {f1, {f1, x2, x3}, true, {3.089940f, -0.622563f}},
      {x4, {x2, x3, f2, x4}, true, {2.969241f, 0.295852f}},
  };
  for (const Kernels* kernels : TestBackends()) {
    KernelExec exec(*kernels, Contract::kF32, 1);
    for (const Line& line : lines) {
      std::vector<float> k, v, out(2);
      for (const Row& key : line.keys) {
        for (const float x : rotated(key)) k.push_back(x);
        for (const float x : normed(key)) v.push_back(x);
      }
      const std::vector<float> q = rotated(line.query);
      const BlockAttentionArgs args = {.runs = {KeyRun{reinterpret_cast<const std::byte*>(k.data()),
                                                       reinterpret_cast<const std::byte*>(v.data()),
                                                       static_cast<int64_t>(line.keys.size())}},
                                       .dtype = DType::kF32,
                                       .T = 1,
                                       .query_heads = 1,
                                       .kv_heads = 1,
                                       .key_dim = 2,
                                       .value_dim = 2,
                                       .scale = static_cast<float>(1 / std::sqrt(2.0)),
                                       .q = q.data(),
                                       .q_stride = 2,
                                       .out = out.data(),
                                       .out_stride = 2};
      kernels->block_attention(exec, {&args, 1});
      if (line.residual) {
        for (int i = 0; i < 2; ++i) out[i] += line.query.raw[i];
      }
      EXPECT_TRUE(AllClose(out, line.sum, {2e-6, 2e-6})) << kernels->name;
    }
  }
}

}  // namespace
}  // namespace mneme::engine
