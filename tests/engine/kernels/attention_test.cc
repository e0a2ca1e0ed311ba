#include "engine/kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "engine/core/half.h"
#include "gtest/gtest.h"
#include "tests/engine/kernels/kernel_setup.h"
#include "tests/support/compare.h"

namespace mneme::engine {
namespace {

using mneme::test::AllClose;
using mneme::test::SameBits;

struct Shape {
  int64_t H, Hk, Dh;
  int64_t S, R;
  int64_t T;
  DType dtype;
};

// A whole sequence: inputs of every token and what came out.
struct Case {
  explicit Case(const Shape& shape, uint32_t seed) : shape(shape) {
    Random random(seed);
    q = random.Floats(shape.T * shape.H * shape.Dh);
    q_sink = random.Floats(shape.T * shape.H * shape.Dh);
    k = random.Floats(shape.T * shape.Hk * shape.Dh);
    v = random.Floats(shape.T * shape.Hk * shape.Dh);
    for (float& x : q) x *= 3;  // peaked weights
    // The first queries are the same for sinks and recents.
    const int64_t same = std::min(shape.T, shape.S + shape.R) * shape.H * shape.Dh;
    std::copy_n(q.begin(), same, q_sink.begin());
  }

  int64_t ElementBytes() const { return shape.dtype == DType::kF16 ? 2 : 4; }
  int64_t RingBytes() const { return (shape.S + shape.R) * shape.Hk * shape.Dh * ElementBytes(); }
  AttentionArgs Args(int64_t begin, int64_t count, std::byte* k_ring, std::byte* v_ring,
                     float* out) const {
    AttentionArgs args;
    args.k_ring = k_ring;
    args.v_ring = v_ring;
    args.ring_dtype = shape.dtype;
    args.sinks = shape.S;
    args.window = shape.R;
    args.position = begin;
    args.T = count;
    args.query_heads = shape.H;
    args.kv_heads = shape.Hk;
    args.head_dim = shape.Dh;
    args.scale = 1.0f / std::sqrt(static_cast<float>(shape.Dh));
    args.q_stride = args.out_stride = shape.H * shape.Dh;
    args.kv_stride = shape.Hk * shape.Dh;
    args.q = q.data() + begin * args.q_stride;
    args.q_sink = q_sink.data() + begin * args.q_stride;
    args.k = k.data() + begin * args.kv_stride;
    args.v = v.data() + begin * args.kv_stride;
    args.out = out + begin * args.out_stride;
    return args;
  }

  const Shape shape;
  std::vector<float> q, q_sink, k, v;
};

struct Result {
  std::vector<float> out;
  std::vector<std::byte> k_ring, v_ring;
};

// Runs the sequence in calls of the given sizes; the last size repeats.
Result Attend(const Variant& variant, int threads, const Case& c, std::vector<int64_t> sizes) {
  variant.Select();
  KernelExec exec(*variant.kernels, Contract::kF32, threads);
  Result result;
  result.out.assign(c.q.size(), std::numeric_limits<float>::quiet_NaN());
  // What a ring held before must not matter.
  result.k_ring.assign(c.RingBytes(), std::byte{0xff});
  result.v_ring.assign(c.RingBytes(), std::byte{0xff});
  size_t call = 0;
  for (int64_t t = 0; t < c.shape.T;) {
    const int64_t size = std::min(sizes[std::min(call++, sizes.size() - 1)], c.shape.T - t);
    const AttentionArgs args =
        c.Args(t, size, result.k_ring.data(), result.v_ring.data(), result.out.data());
    variant.kernels->attention(exec, {&args, 1});
    t += size;
  }
  return result;
}

float Rounded(float x, DType dtype) {
  return dtype == DType::kF16 ? HalfToFloat(FloatToHalf(x)) : x;
}

// Softmax over the visible set, in double, all scores at once.
std::vector<float> Naive(const Case& c) {
  const Shape& s = c.shape;
  std::vector<float> out(c.q.size());
  for (int64_t p = 0; p < s.T; ++p) {
    for (int64_t h = 0; h < s.H; ++h) {
      const int64_t kv = h / (s.H / s.Hk);
      std::vector<double> score(p + 1, -INFINITY);
      for (int64_t j = 0; j <= p; ++j) {
        if (j >= s.S && j <= p - s.R) continue;
        const std::vector<float>& q = j < s.S ? c.q_sink : c.q;
        double dot = 0;
        for (int64_t d = 0; d < s.Dh; ++d) {
          dot += static_cast<double>(q[(p * s.H + h) * s.Dh + d]) *
                 Rounded(c.k[(j * s.Hk + kv) * s.Dh + d], s.dtype);
        }
        score[j] = dot / std::sqrt(static_cast<double>(s.Dh));
      }
      const double max = *std::max_element(score.begin(), score.end());
      double sum = 0;
      std::vector<double> o(s.Dh);
      for (int64_t j = 0; j <= p; ++j) {
        const double e = std::exp(score[j] - max);
        sum += e;
        for (int64_t d = 0; e > 0 && d < s.Dh; ++d) {
          o[d] += e * Rounded(c.v[(j * s.Hk + kv) * s.Dh + d], s.dtype);
        }
      }
      for (int64_t d = 0; d < s.Dh; ++d) {
        out[(p * s.H + h) * s.Dh + d] = static_cast<float>(o[d] / sum);
      }
    }
  }
  return out;
}

const Shape kShapes[] = {
    {3, 1, 16, 4, 40, 150, DType::kF16},   // wraps several times, groups of three
    {4, 2, 8, 0, 64, 130, DType::kF32},    // no sinks, groups of two, a tile's width of window
    {5, 1, 20, 3, 33, 70, DType::kF16},    // five heads to a group, width no multiple of 8
    {2, 2, 5, 70, 9, 120, DType::kF32},    // more sinks than a tile, tiny window
    {1, 1, 12, 2, 700, 690, DType::kF16},  // several key chunks, all visible
    {3, 1, 64, 4, 96, 110, DType::kF16},   // the usual head width
    {3, 1, 8, 5, 600, 1300, DType::kF32},  // several key chunks behind a window
    {2, 1, 8, 1, 1, 9, DType::kF32},       // each query sees the sink and itself
    {3, 1, 140, 2, 40, 60, DType::kF16},   // wider than a device's kernels hold at a time
};

class AttentionTest : public ::testing::TestWithParam<Shape> {
 protected:
  ~AttentionTest() override { PinSimdTarget(""); }
};

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionTest, ::testing::ValuesIn(kShapes));

TEST_P(AttentionTest, EqualsNaiveSoftmaxOverTheVisibleSet) {
  const Case c(GetParam(), 21);
  const std::vector<float> expected = Naive(c);
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    EXPECT_TRUE(AllClose(Attend(variant, 1, c, {c.shape.T}).out, expected, {5e-6, 2e-5}));
  }
}

TEST_P(AttentionTest, CutIntoCallsOrThreadsChangesNoBit) {
  const Case c(GetParam(), 22);
  const int64_t R = c.shape.R;
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    const Result whole = Attend(variant, 1, c, {c.shape.T});
    const std::vector<std::vector<int64_t>> cuts = {
        {1}, {3}, {7, 64, 1, 5}, {R + 1}, {c.shape.T / 2, 1, 2, 33}};
    for (size_t i = 0; i < cuts.size(); ++i) {
      const Result cut = Attend(variant, 1 + static_cast<int>(i) % 3, c, cuts[i]);
      ASSERT_TRUE(SameBits(cut.out, whole.out)) << "cut " << i;
      ASSERT_EQ(cut.k_ring, whole.k_ring) << "cut " << i;
      ASSERT_EQ(cut.v_ring, whole.v_ring) << "cut " << i;
    }
  }
}

TEST_P(AttentionTest, RingHoldsTheRoundedRows) {
  if (GetParam().T > 500) GTEST_SKIP() << "the short sequences wrap as well";
  const Case c(GetParam(), 23);
  const Shape& s = c.shape;
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    const Result result = Attend(variant, 2, c, {50});
    const int64_t width = s.Hk * s.Dh;
    for (int64_t j = 0; j < s.T; ++j) {
      if (j >= s.S && j < s.T - s.R) continue;  // overwritten
      const int64_t row = j < s.S ? j : s.S + (j - s.S) % s.R;
      for (int64_t i = 0; i < width; ++i) {
        float k;
        if (s.dtype == DType::kF16) {
          uint16_t bits;
          std::memcpy(&bits, result.k_ring.data() + 2 * (row * width + i), 2);
          k = HalfToFloat(bits);
        } else {
          std::memcpy(&k, result.k_ring.data() + 4 * (row * width + i), 4);
        }
        ASSERT_EQ(k, Rounded(c.k[j * width + i], s.dtype)) << "position " << j;
      }
    }
  }
}

// Pages are a ring that holds every position, cut into pieces that lie anywhere.
TEST(PagedAttentionTest, HasTheBitsOfARingOfAllPositions) {
  for (const Shape& s : {Shape{3, 1, 16, 0, 150, 150, DType::kF16},
                         {4, 2, 5, 0, 700, 690, DType::kF32},
                         {1, 1, 64, 0, 64, 64, DType::kF16}}) {
    const Case c(s, 24);
    const int64_t row_bytes = s.Hk * s.Dh * c.ElementBytes();
    const int64_t v_in_page = 64 + kPageTokens * row_bytes;
    for (const Variant& variant : AllVariants()) {
      SCOPED_TRACE(variant.Name());
      const Result ring = Attend(variant, 1, c, {s.T});
      for (const int64_t size : {int64_t{1}, int64_t{50}, s.T}) {
        variant.Select();
        KernelExec exec(*variant.kernels, Contract::kF32, 2);
        // In descending order of addresses, each holding anything.
        const int64_t count = (s.T + kPageTokens - 1) / kPageTokens;
        const int64_t page_bytes = v_in_page + kPageTokens * row_bytes;
        std::vector<std::byte> memory(count * page_bytes, std::byte{0xff});
        std::vector<std::byte*> pages;
        for (int64_t i = count; i-- > 0;) pages.push_back(memory.data() + i * page_bytes);
        std::vector<float> out(c.q.size());
        for (int64_t t = 0; t < s.T; t += size) {
          AttentionArgs args = c.Args(t, std::min(size, s.T - t), nullptr, nullptr, out.data());
          args.pages = pages.data();
          args.k_in_page = 64;
          args.v_in_page = v_in_page;
          variant.kernels->attention(exec, {&args, 1});
        }
        ASSERT_TRUE(SameBits(out, ring.out)) << "calls of " << size;
        for (int64_t j = 0; j < s.T; ++j) {
          const std::byte* row = pages[j / kPageTokens] + j % kPageTokens * row_bytes;
          ASSERT_EQ(std::memcmp(row + 64, &ring.k_ring[j * row_bytes], row_bytes), 0) << j;
          ASSERT_EQ(std::memcmp(row + v_in_page, &ring.v_ring[j * row_bytes], row_bytes), 0) << j;
        }
      }
    }
  }
  PinSimdTarget("");
}

class AttentionBatchTest : public ::testing::Test {
 protected:
  ~AttentionBatchTest() override { PinSimdTarget(""); }
};

// Sequences of unlike depth and length in one call: decoding, prefilling, longer than the window.
TEST_F(AttentionBatchTest, SequencesDoNotInfluenceEachOther) {
  const Shape shapes[] = {{6, 2, 16, 4, 90, 60, DType::kF16},
                          {6, 2, 16, 4, 90, 300, DType::kF16},
                          {6, 2, 16, 0, 700, 650, DType::kF32}};
  const int64_t split[] = {59, 40, 649};  // tokens before the shared call
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    std::vector<Case> cases;
    std::vector<Result> alone, together;
    for (size_t i = 0; i < std::size(shapes); ++i) {
      cases.emplace_back(shapes[i], 30 + i);
      alone.push_back(Attend(variant, 1, cases[i], {shapes[i].T}));
    }
    variant.Select();
    KernelExec exec(*variant.kernels, Contract::kF32, 3);
    std::vector<AttentionArgs> batch;
    for (size_t i = 0; i < std::size(shapes); ++i) {
      Result& r = together.emplace_back();
      r.out.resize(cases[i].q.size());
      r.k_ring.resize(cases[i].RingBytes());
      r.v_ring.resize(cases[i].RingBytes());
      const AttentionArgs before =
          cases[i].Args(0, split[i], r.k_ring.data(), r.v_ring.data(), r.out.data());
      variant.kernels->attention(exec, {&before, 1});
      batch.push_back(cases[i].Args(split[i], shapes[i].T - split[i], r.k_ring.data(),
                                    r.v_ring.data(), r.out.data()));
    }
    variant.kernels->attention(exec, batch);
    for (size_t i = 0; i < std::size(shapes); ++i) {
      ASSERT_TRUE(SameBits(together[i].out, alone[i].out)) << "sequence " << i;
    }
  }
}

}  // namespace
}  // namespace mneme::engine
