// Every backend and SIMD target against the definition, and each against itself when rows are cut
// differently.
#include "engine/kernels/titans_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "engine/core/half.h"
#include "gtest/gtest.h"
#include "tests/engine/kernels/kernel_setup.h"
#include "tests/support/compare.h"

namespace mneme::engine {
namespace {

using test::AllClose;
using test::SameBits;

constexpr test::Tolerance kTolerance = {.absolute = 1e-5, .relative = 1e-5};
constexpr int64_t kHeads = 2, kRows = 23, kSequences = 2;

struct Case {
  int64_t head_dim, persistent, window;
  bool segments;
  int streams;
  DType dtype;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const int64_t head_dim : {2, 6, 8, 20, 40}) {
    for (const DType dtype : {DType::kF32, DType::kF16}) {
      cases.push_back({head_dim, 3, 9, false, 1, dtype});
      cases.push_back({head_dim, 0, 2, false, 1, dtype});
      cases.push_back({head_dim, 0, 64, false, 1, dtype});
      cases.push_back({head_dim, 3, 8, true, 2, dtype});
      cases.push_back({head_dim, 0, 2, true, 1, dtype});
    }
  }
  return cases;
}

std::string Describe(const Case& c) {
  return "head of " + std::to_string(c.head_dim) + ", window " + std::to_string(c.window) +
         (c.segments ? " (segments)" : "") + (c.dtype == DType::kF16 ? ", f16" : ", f32");
}

// Of all sequences, one behind the other.
struct Operands {
  explicit Operands(const Case& c) {
    Random random(29);
    const int64_t rows = kSequences * kRows * kHeads * c.head_dim;
    q = random.Floats(rows);
    q_rotated = random.Floats(rows);
    for (int i = 0; i < c.streams; ++i) {
      k.push_back(random.Floats(rows));
      v.push_back(random.Floats(rows));
    }
    persistent_k = random.Floats(c.persistent * kHeads * c.head_dim);
    persistent_v = random.Floats(c.persistent * kHeads * c.head_dim);
  }
  std::vector<float> q, q_rotated, persistent_k, persistent_v;
  std::vector<std::vector<float>> k, v;
};

struct Result {
  std::vector<float> out;
  std::vector<std::vector<std::byte>> kept;
};

// From the first token on, in calls of `piece` rows; with segments, none goes beyond its segment.
Result Attend(const Variant& variant, const Case& c, Operands operands, int64_t piece,
              int threads) {
  variant.Select();
  KernelExec exec(*variant.kernels, Contract::kF32, threads);
  const int64_t row = kHeads * c.head_dim;
  const TitansAttentionLayer layer{.heads = kHeads,
                                   .head_dim = c.head_dim,
                                   .scale = 3.0f,
                                   .persistent_tokens = c.persistent,
                                   .persistent_k = operands.persistent_k.data(),
                                   .persistent_v = operands.persistent_v.data(),
                                   .window = c.window,
                                   .segments = c.segments,
                                   .dtype = c.dtype};
  Result result;
  result.out.assign(operands.q.size(), -7.0f);
  const size_t kept = (c.window - 1) * row * Traits(c.dtype).block_bytes;
  result.kept.resize(kSequences * c.streams * 2, std::vector<std::byte>(kept));
  for (int64_t r = 0; r < kRows;) {
    int64_t count = std::min(piece, kRows - r);
    if (c.segments) count = std::min(count, c.window - r % c.window);
    std::vector<TitansAttentionArgs> batch;
    for (int64_t i = 0; i < kSequences; ++i) {
      const int64_t at = (i * kRows + r) * row;
      TitansAttentionArgs args{.position = r,
                               .rows = count,
                               .num_streams = c.streams,
                               .streams = {},
                               .q = operands.q.data() + at,
                               .q_rotated = operands.q_rotated.data() + at,
                               .out = result.out.data() + at};
      for (int s = 0; s < c.streams; ++s) {
        const size_t state = (i * c.streams + s) * 2;
        args.streams[s] = {result.kept[state].data(), result.kept[state + 1].data(),
                           operands.k[s].data() + at, operands.v[s].data() + at};
      }
      batch.push_back(args);
    }
    variant.kernels->titans_attention(exec, layer, batch);
    r += count;
  }
  return result;
}

float Stored(float x, DType dtype) {
  return dtype == DType::kF16 ? HalfToFloat(FloatToHalf(x)) : x;
}

// In double, from the header's definition.
std::vector<float> Expected(const Case& c, const Operands& operands) {
  const int64_t hd = c.head_dim, row = kHeads * hd;
  std::vector<float> out(operands.q.size());
  for (int64_t i = 0; i < kSequences; ++i) {
    for (int64_t t = 0; t < kRows; ++t) {
      for (int64_t h = 0; h < kHeads; ++h) {
        const int64_t at = (i * kRows + t) * row + h * hd;
        std::vector<std::pair<double, std::vector<double>>> keys;  // score, value
        const auto add = [&](const float* q, const float* k, const float* v, DType dtype) {
          double score = 0;
          std::vector<double> value;
          for (int64_t d = 0; d < hd; ++d) {
            score += 3.0 * q[d] * Stored(k[d], dtype);
            value.push_back(Stored(v[d], dtype));
          }
          keys.emplace_back(score, value);
        };
        for (int64_t p = 0; p < c.persistent; ++p) {
          add(&operands.q[at], &operands.persistent_k[p * row + h * hd],
              &operands.persistent_v[p * row + h * hd], DType::kF32);
        }
        const int64_t first =
            c.segments ? t - t % c.window : std::max<int64_t>(0, t - c.window + 1);
        for (int s = 0; s < c.streams; ++s) {
          for (int64_t j = first; j <= t; ++j) {
            const int64_t key = (i * kRows + j) * row + h * hd;
            add(&operands.q_rotated[at], &operands.k[s][key], &operands.v[s][key], c.dtype);
          }
        }
        double highest = -HUGE_VAL, sum = 0;
        for (const auto& [score, value] : keys) highest = std::max(highest, score);
        std::vector<double> mixed(hd);
        for (const auto& [score, value] : keys) {
          const double weight = std::exp(score - highest);
          sum += weight;
          for (int64_t d = 0; d < hd; ++d) mixed[d] += weight * value[d];
        }
        for (int64_t d = 0; d < hd; ++d) out[at + d] = static_cast<float>(mixed[d] / sum);
      }
    }
  }
  return out;
}

class TitansAttentionTest : public testing::TestWithParam<Variant> {
 protected:
  void TearDown() override { PinSimdTarget(""); }
};

TEST_P(TitansAttentionTest, IsOneSoftmaxOverAllThatAQuerySees) {
  for (const Case& c : Cases()) {
    SCOPED_TRACE(Describe(c));
    const Operands operands(c);
    EXPECT_TRUE(
        AllClose(Attend(GetParam(), c, operands, 8, 1).out, Expected(c, operands), kTolerance));
  }
}

TEST_P(TitansAttentionTest, CutsAndThreadsChangeNoBits) {
  for (const Case& c : Cases()) {
    const Operands operands(c);
    const Result whole = Attend(GetParam(), c, operands, kRows, 1);
    for (const auto& [piece, threads] : {std::pair{1, 1}, {2, 3}, {3, 1}, {5, 2}, {8, 1}}) {
      SCOPED_TRACE(Describe(c) + ", pieces of " + std::to_string(piece));
      const Result cut = Attend(GetParam(), c, operands, piece, threads);
      EXPECT_TRUE(SameBits(cut.out, whole.out));
      EXPECT_EQ(cut.kept, whole.kept);
    }
  }
}

// Beyond f16's range, a tie, a subnormal, below the smallest, both zeros: a row is used as it is
// kept.
TEST_P(TitansAttentionTest, RowsAreUsedAsTheStateHoldsThem) {
  const float edges[] = {70000.0f, 1.00048828125f, 3e-6f, 1e-9f, 0.0f, -0.0f};
  for (const int64_t hd : {1, 7, 8, 9, 33}) {
    for (const DType dtype : {DType::kF32, DType::kF16}) {
      SCOPED_TRACE(testing::Message() << "head of " << hd);
      GetParam().Select();
      KernelExec exec(*GetParam().kernels, Contract::kF32, 1);
      std::vector<float> value = Random(31).Floats(hd), key(hd), q(hd), out(hd);
      std::copy_n(edges, std::min<int64_t>(6, hd), value.begin());
      std::vector<float> expected = value;
      for (float& x : expected) x = Stored(x, dtype);
      const size_t element = Traits(dtype).block_bytes;
      std::vector<std::byte> kept_k(hd * element), kept_v(hd * element);
      const TitansAttentionLayer layer{
          .heads = 1, .head_dim = hd, .scale = 1.0f, .window = 2, .dtype = dtype};
      const TitansAttentionArgs args{
          .rows = 1,
          .streams = {{{kept_k.data(), kept_v.data(), key.data(), value.data()}}},
          .q = q.data(),
          .q_rotated = q.data(),
          .out = out.data()};
      GetParam().kernels->titans_attention(exec, layer, {&args, 1});
      std::vector<float> kept(hd);
      for (int64_t d = 0; d < hd; ++d) {
        if (dtype == DType::kF16) {
          uint16_t bits;
          std::memcpy(&bits, kept_v.data() + d * element, sizeof(bits));
          kept[d] = HalfToFloat(bits);
        } else {
          std::memcpy(&kept[d], kept_v.data() + d * element, sizeof(float));
        }
      }
      EXPECT_TRUE(SameBits(kept, expected));
      EXPECT_TRUE(SameBits(value, expected));
      // One key: its value.
      for (int64_t d = 0; d < hd; ++d) EXPECT_EQ(out[d], expected[d]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, TitansAttentionTest, testing::ValuesIn(AllVariants()),
                         [](const auto& info) { return ParameterName(info.param.Name()); });

}  // namespace
}  // namespace mneme::engine
