// Properties of the architecture that hold for any weights (the goldens hold for some).
#include "engine/arch/infini/infini.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/arch/infini/fake_infini.h"
#include "tests/support/compare.h"

namespace mneme::engine::infini {
namespace {

using test::AllClose;
using test::SameBits;

constexpr int64_t kVocab = 10;
constexpr int64_t kSegment = 5;

using Runner = ArchRunner;

std::span<const float> From(const std::vector<float>& logits, int64_t token) {
  return std::span(logits).subspan(token * kVocab);
}

class InfiniTest : public testing::TestWithParam<std::string_view> {};

TEST_P(InfiniTest, MemoryIsWrittenAtTheEndOfASegmentOnly) {
  for (const bool delta : {false, true}) {
    Runner run(FakeInfini(2, delta), GetParam());
    const std::vector<float> zeros(2 * 4 * 6);
    run.Feed({1, 2, 3, 4});
    EXPECT_TRUE(SameBits(run.Values(1, "memory"), zeros));
    EXPECT_FALSE(SameBits(run.Values(1, "pending_memory"), zeros));
    run.Feed({5});
    const std::vector<float> memory = run.Copy(1, "memory");
    const std::vector<float> normalizer = run.Copy(1, "normalizer");
    EXPECT_FALSE(SameBits(memory, zeros));
    for (const float z : normalizer) EXPECT_GT(z, 0);
    EXPECT_TRUE(SameBits(run.Values(1, "pending_memory"), zeros));
    EXPECT_TRUE(SameBits(run.Values(1, "pending_normalizer"), std::vector<float>(2 * 4)));
    run.Feed({6, 7, 8});  // a partial segment changes neither
    EXPECT_TRUE(SameBits(run.Values(1, "memory"), memory));
    EXPECT_TRUE(SameBits(run.Values(1, "normalizer"), normalizer));
  }
}

TEST_P(InfiniTest, AClosedGateLeavesSegmentsToThemselves) {
  auto closed = FakeInfini();
  for (const char* layer : {"0", "1"}) {
    closed->Add("model.layers." + std::string(layer) + ".self_attn.memory_gate", {4}) = {
        -1e9f, -1e9f, -1e9f, -1e9f};
  }
  const std::vector<TokenId> tokens = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8};
  const std::vector<float> all = Runner(closed, GetParam()).Feed(tokens);
  for (size_t begin = 0; begin < tokens.size(); begin += kSegment) {
    const size_t end = std::min(tokens.size(), begin + kSegment);
    const std::vector<float> alone =
        Runner(closed, GetParam()).Feed({tokens.begin() + begin, tokens.begin() + end});
    EXPECT_TRUE(SameBits(alone, From(all, begin).first(alone.size())));
  }
}

// One layer: what a segment stored does not depend on the order of its tokens.
TEST_P(InfiniTest, OrderInsideAnEarlierSegmentDoesNotMatter) {
  for (const bool delta : {false, true}) {
    const std::vector<float> straight =
        Runner(FakeInfini(1, delta), GetParam()).Feed({3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8});
    const std::vector<float> permuted =
        Runner(FakeInfini(1, delta), GetParam()).Feed({5, 1, 1, 3, 4, 9, 2, 6, 5, 3, 5, 8});
    EXPECT_FALSE(AllClose(From(permuted, 0), From(straight, 0), {1e-5, 1e-5}));
    EXPECT_TRUE(AllClose(From(permuted, kSegment), From(straight, kSegment), {1e-5, 1e-5}));
  }
}

// Linear adds segments up; delta writes what the memory does not say yet.
TEST_P(InfiniTest, OrderOfSegmentsMattersForDeltaOnly) {
  const std::vector<TokenId> ab = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 7, 8},
                             ba = {9, 2, 6, 5, 3, 3, 1, 4, 1, 5, 7, 8};
  for (const bool delta : {false, true}) {
    const std::vector<float> one = Runner(FakeInfini(1, delta), GetParam()).Feed(ab);
    const std::vector<float> other = Runner(FakeInfini(1, delta), GetParam()).Feed(ba);
    EXPECT_EQ(bool{AllClose(From(other, 10), From(one, 10), {1e-5, 1e-5})}, !delta);
  }
}

// A token that repeats in every row: linear stores k, v again and again; delta finds in segment 1
// that v is known and writes almost nothing, but its normaliser grows.
TEST_P(InfiniTest, DeltaWritesARepeatedPairOnce) {
  Runner linear(FakeInfini(1, false), GetParam()), delta(FakeInfini(1, true), GetParam());
  const std::vector<TokenId> segment(kSegment, 7);
  linear.Feed(segment);
  delta.Feed(segment);
  const std::vector<float> once = linear.Copy(0, "memory");
  EXPECT_TRUE(AllClose(delta.Values(0, "memory"), once, {1e-5, 1e-5}));
  linear.Feed(segment);
  delta.Feed(segment);
  std::vector<float> twice = once;
  for (float& x : twice) x *= 2;
  EXPECT_TRUE(AllClose(linear.Values(0, "memory"), twice, {1e-5, 1e-5}));
  EXPECT_TRUE(AllClose(delta.Values(0, "memory"), once, {1e-4, 1e-4}));
  EXPECT_TRUE(SameBits(delta.Values(0, "normalizer"), linear.Values(0, "normalizer")));
}

TEST_P(InfiniTest, TheFirstSegmentMayBeUngated) {
  auto local = FakeInfini(1);
  local->Set("first_segment", std::string("local"));
  auto closed = FakeInfini(1);
  closed->Add("model.layers.0.self_attn.memory_gate", {4}) = {-1e9f, -1e9f, -1e9f, -1e9f};
  const std::vector<TokenId> tokens = {3, 1, 4, 1, 5, 9, 2};
  const std::vector<float> a = Runner(local, GetParam()).Feed(tokens);
  const std::vector<float> b = Runner(closed, GetParam()).Feed(tokens);
  const std::vector<float> gated = Runner(FakeInfini(1), GetParam()).Feed(tokens);
  EXPECT_TRUE(
      SameBits(std::span(a).first(kSegment * kVocab), std::span(b).first(kSegment * kVocab)));
  EXPECT_FALSE(AllClose(From(a, 0).first(kVocab), From(gated, 0).first(kVocab), {1e-5, 1e-5}));
  EXPECT_TRUE(AllClose(From(a, kSegment), From(gated, kSegment), {1e-5, 1e-5}));
}

TEST_P(InfiniTest, StateIsWhatTheDocumentSays) {
  const int64_t fixed = 8 * (4 * 6 + 4);
  for (const auto& [dtype, bytes] : {std::pair{DType::kF32, 4}, std::pair{DType::kF16, 2}}) {
    // Window and sinks are another architecture's options.
    Runner run(FakeInfini(), GetParam(), {.window_tokens = 3, .sink_tokens = 1, .kv_dtype = dtype});
    const StateSchema& schema = run.arch().schema();
    ASSERT_EQ(schema.tensors().size(), 12);
    int64_t sum = 0;
    for (const StateTensor& tensor : schema.tensors()) sum += tensor.size_bytes;
    EXPECT_EQ(sum, 2 * 2 * (fixed + bytes * kSegment * (4 + 6)));
    EXPECT_THAT(run.arch().info().state_formula,
                testing::EndsWith(" = " + std::to_string(sum) + " bytes"));
    EXPECT_EQ(run.arch().info().effective_context_tokens, 0);
    const StateTensor* k = schema.Find(1, "k");
    ASSERT_NE(k, nullptr);
    EXPECT_EQ(k->kind, StateKind::kRing);
    EXPECT_EQ(k->sinks, 0);
    EXPECT_EQ(k->window, kSegment);
    EXPECT_EQ(k->dtype, dtype);
    EXPECT_THAT(k->shape, testing::ElementsAre(kSegment, 8));
    EXPECT_EQ(schema.Find(1, "memory")->dtype, DType::kF32);
  }
}

// One layer and head, dk = dv = 2, N = 2, of which q, k and v of five tokens are known: token i's
// residual is the i-th unit vector, which the projections turn into its rows, and the output
// projection writes what the mixer gives to channels 6 and 7. `rows` are q, k, v of each token.
std::shared_ptr<FakeCheckpoint> KnownRows(bool delta, const float (&rows)[5][6]) {
  auto c = FakeInfini(1, delta);
  c->Set("vocab_size", int64_t{8});
  c->Set("num_attention_heads", int64_t{1});
  c->Set("num_key_value_heads", int64_t{1});
  c->Set("head_dim", int64_t{2});
  c->Set("value_head_dim", int64_t{2});
  c->Set("segment_tokens", int64_t{2});
  c->Set("rms_norm_eps", 1e-12);
  const std::string layer = "model.layers.0.";
  c->Add(layer + "self_attn.memory_gate", {1}) = {0.0f};
  for (const char* name : {"model.norm.weight", "model.layers.0.input_layernorm.weight"}) {
    c->Add(name, {8}).assign(8, 1.0f);
  }
  std::vector<float>& table = c->Add("model.embed_tokens.weight", {8, 8}, 0);
  std::vector<float>& q = c->Add(layer + "self_attn.q_proj.weight", {2, 8}, 0);
  std::vector<float>& k = c->Add(layer + "self_attn.k_proj.weight", {2, 8}, 0);
  std::vector<float>& v = c->Add(layer + "self_attn.v_proj.weight", {2, 8}, 0);
  std::vector<float>& output = c->Add(layer + "self_attn.o_proj.weight", {8, 2}, 0);
  c->Add(layer + "mlp.down_proj.weight", {8, 12}, 0);
  const float unit = std::sqrt(8.0f);  // what the norm makes of a unit vector's one
  for (int i = 0; i < 8; ++i) table[i * 8 + i] = 1;
  for (int i = 0; i < 5; ++i) {
    for (int j = 0; j < 2; ++j) {
      q[j * 8 + i] = rows[i][j] / unit;
      k[j * 8 + i] = rows[i][2 + j] / unit;
      v[j * 8 + i] = rows[i][4 + j] / unit;
    }
  }
  output[6 * 2] = output[7 * 2 + 1] = 1;
  return c;
}

// What the mixer gave, from the logits: the tied head shows the normalised residual, whose
// channel `token` was 1.
std::vector<float> Mixed(const std::vector<float>& logits, int token) {
  return {logits[6] / logits[token], logits[7] / logits[token]};
}

constexpr float kExample[5][6] = {{1, 0, 1, -1, 1, 2},
                                  {0, 1, 0.5f, 0.5f, 3, -1},
                                  {1, -1, 1, -1, 2, 0},
                                  {-1, 0.5f, -0.5f, 1, 0, 1},
                                  {0.5f, -1, 0, 0, 1, 1}};

// Worked by hand: gate 1/2, angles of r radians. The third segment is partial.
TEST_P(InfiniTest, WorkedExample) {
  constexpr test::Tolerance kDigits = {.absolute = 5e-6, .relative = 5e-6};
  const auto mixed = [&](Runner& run, int token) { return Mixed(run.Feed({token}), token); };
  const auto expect = [&](const std::vector<float>& actual, const std::vector<float>& expected) {
    EXPECT_TRUE(AllClose(actual, expected, kDigits));
  };
  for (const bool delta : {false, true}) {
    SCOPED_TRACE(delta ? "linear_delta" : "linear");
    Runner run(KnownRows(delta, kExample), GetParam());
    expect(mixed(run, 0), {0.5f, 1});
    expect(mixed(run, 1), {1.290942f, -0.186413f});
    expect(run.Copy(0, "memory"), {6.5f, 2.5f, 4.867879f, -0.764241f});
    expect(run.Copy(0, "normalizer"), {3.5f, 1.867879f});
    expect(mixed(run, 2), {1.962046f, 0.306931f});
    expect(mixed(run, 3), {1.457503f, 0.336106f});
    const std::vector<float> memory =
        delta ? std::vector<float>{5.235739f, 1.880065f, 0.226371f, 1.014081f}
              : std::vector<float>{10.5f, 3.106531f, 5.603638f, 1.235759f};
    expect(run.Copy(0, "memory"), memory);
    expect(run.Copy(0, "normalizer"), {6.106531f, 4.235759f});
    expect(mixed(run, 4), delta ? std::vector<float>{0.870258f, 0.648960f}
                                : std::vector<float>{1.330910f, 0.738589f});
    expect(run.Copy(0, "memory"), memory);
    if (!delta) expect(run.Copy(0, "pending_memory"), {1, 1, 1, 1});
  }
}

// Keys far below zero leave a normaliser of almost nothing: e^-60 is far below memory_eps, which
// then decides. What is read stays between zero and what was stored.
TEST_P(InfiniTest, ANormaliserNearZeroReadsAsLittle) {
  for (const bool delta : {false, true}) {
    SCOPED_TRACE(delta ? "linear_delta" : "linear");
    constexpr float kFaint[5][6] = {{3, 3, -60, -60, 5, 7},
                                    {3, 3, -60, -60, 5, 7},
                                    {3, 3, -60, -60, 5, 7},
                                    {3, 3, -60, -60, 5, 7},
                                    {3, 3, -60, -60, 5, 7}};
    Runner run(KnownRows(delta, kFaint), GetParam());
    for (int token = 0; token < 5; ++token) {
      const std::vector<float> mixed = Mixed(run.Feed({token}), token);
      // Half of the local attention, which is v, and nothing of the memory.
      EXPECT_TRUE(AllClose(mixed, std::vector<float>{2.5f, 3.5f}, {1e-5, 1e-5})) << token;
    }
    for (const float z : run.Copy(0, "normalizer")) {
      EXPECT_GT(z, 0);
      EXPECT_LT(z, 1e-20f);
    }
  }
}

TEST_P(InfiniTest, ALongRandomReadStaysFinite) {
  // The reference is some twenty times slower and computes the same.
  const int64_t tokens = GetParam() == "cpu" ? 50'000 : 5'000;
  for (const bool delta : {false, true}) {
    SCOPED_TRACE(delta ? "linear_delta" : "linear");
    Runner run(FakeInfini(2, delta), GetParam());
    ASSERT_NO_FATAL_FAILURE(ExpectLongRunIsFinite(run, tokens));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, InfiniTest, testing::ValuesIn(BackendNameList()),
                         [](const auto& info) { return std::string(info.param); });

TEST(InfiniOptionsTest, RefusesOtherTypesOfKeysAndValues) {
  const absl::Status status = Infini::Create(FakeInfini(), {.kv_dtype = DType::kQ8_0}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("kv_dtype"));
}

}  // namespace
}  // namespace mneme::engine::infini
