// Properties of the architecture that hold for any weights (the goldens hold for some).
#include "engine/arch/fam/fam.h"

#include <algorithm>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/arch/fam/fake_fam.h"
#include "tests/support/compare.h"

namespace mneme::engine::fam {
namespace {

using test::AllClose;
using test::SameBits;

constexpr int64_t kVocab = 10;
constexpr int64_t kBlock = 5;

std::vector<TokenId> Tokens(int64_t count) {
  std::vector<TokenId> tokens(count);
  for (int64_t i = 0; i < count; ++i)
    tokens[i] = static_cast<TokenId>((i * i + 3 * i + 1) % kVocab);
  return tokens;
}

std::span<const float> Row(const std::vector<float>& logits, int64_t token) {
  return std::span(logits).subspan(token * kVocab, kVocab);
}

// The first token whose logits differ in a bit, and one past the last one.
std::pair<int64_t, int64_t> Changed(const std::vector<float>& a, const std::vector<float>& b) {
  std::pair<int64_t, int64_t> range = {-1, -1};
  for (int64_t t = 0; t < static_cast<int64_t>(a.size()) / kVocab; ++t) {
    if (SameBits(Row(a, t), Row(b, t))) continue;
    if (range.first < 0) range.first = t;
    range.second = t + 1;
  }
  return range;
}

class FamTest : public testing::TestWithParam<std::string_view> {
 protected:
  std::vector<float> Read(std::shared_ptr<FakeCheckpoint> c, const std::vector<TokenId>& tokens) {
    return ArchRunner(std::move(c), GetParam()).Feed(tokens);
  }
};

// Token j shows in the logits of j and later ones only; in the first block too, where a memory that
// had already read the block would betray it.
TEST_P(FamTest, NoTokenSeesItsFuture) {
  const std::vector<TokenId> tokens = Tokens(3 * kBlock + 2);
  const std::vector<float> before = Read(FakeFam(3), tokens);
  for (size_t j = 0; j < tokens.size(); ++j) {
    std::vector<TokenId> other = tokens;
    other[j] = (other[j] + 1) % kVocab;
    EXPECT_EQ(Changed(before, Read(FakeFam(3), other)).first, static_cast<int64_t>(j));
  }
}

// Without a memory a token reaches L * m blocks beyond its own and not one token further; with one,
// the end of the text.
TEST_P(FamTest, ReceptiveFieldIsThatOfTheBlocks) {
  const std::vector<TokenId> tokens = Tokens(6 * kBlock);
  std::vector<TokenId> other = tokens;
  other[0] = (other[0] + 1) % kVocab;
  for (const int64_t m : {0, 1, 2}) {
    const auto last = [&](int64_t f) {
      return Changed(Read(FakeFam(2, f, m), tokens), Read(FakeFam(2, f, m), other)).second;
    };
    EXPECT_EQ(last(0), (2 * m + 1) * kBlock) << m;
    EXPECT_EQ(last(3), 6 * kBlock) << m;
  }
}

TEST_P(FamTest, WithEnoughBlocksBswaIsACausalTransformer) {
  auto llama = FakeFam(2, 0);
  for (const char* key : {"block_tokens", "memory_blocks", "fam_tokens"}) llama->Unset(key);
  llama->Set("model_type", std::string("llama"));
  llama->Set("max_position_embeddings", int64_t{64});
  const std::vector<TokenId> tokens = Tokens(23);
  EXPECT_TRUE(AllClose(Read(FakeFam(2, 0, 5), tokens), Read(llama, tokens), {1e-5, 1e-5}));
}

TEST_P(FamTest, OnlyAWholeBlockUpdatesTheMemory) {
  ArchRunner run(FakeFam(), GetParam());
  const std::vector<float> initial = run.Copy(1, "fam"), keys = run.Copy(1, "fam_k");
  run.Feed(Tokens(kBlock - 1));
  EXPECT_TRUE(SameBits(run.Copy(1, "fam"), initial));
  run.Feed({3});
  const std::vector<float> once = run.Copy(1, "fam");
  EXPECT_FALSE(AllClose(once, initial, {1e-3, 1e-3}));
  EXPECT_FALSE(AllClose(run.Copy(1, "fam_k"), keys, {1e-3, 1e-3}));
  run.Feed(Tokens(kBlock - 1));
  EXPECT_TRUE(SameBits(run.Copy(1, "fam"), once));
}

// The first layer's memory begins as the prompt; the prompt never meets the text of a session.
TEST_P(FamTest, TheMemoryBeginsAsTheWeightsSay) {
  auto c = FakeFam();
  const std::vector<float> prompt(c->Values("model.fam_prompt"),
                                  c->Values("model.fam_prompt") + 24);
  ArchRunner run(c, GetParam());
  EXPECT_TRUE(SameBits(run.Copy(0, "fam"), prompt));
  for (const float x : run.Copy(0, "k")) ASSERT_EQ(x, 0);
  ArchRunner other(c, GetParam() == "cpu" ? "reference" : "cpu");
  for (const char* name : {"fam", "fam_k", "fam_v"}) {
    EXPECT_TRUE(AllClose(run.Copy(1, name), other.Copy(1, name), {1e-5, 1e-5})) << name;
    EXPECT_FALSE(SameBits(run.Copy(1, name), std::vector<float>(run.Copy(1, name).size())));
  }
}

// Without queries the residual is the only way from a memory to the next one: it is there after the
// first update and not at it.
TEST_P(FamTest, TheFirstUpdateKeepsNothingOfThePrompt) {
  auto c = FakeFam(1);
  c->Add("model.layers.0.self_attn.q_proj.weight", {16, 8}, 0);
  ArchRunner plain(c, GetParam()), moved(c, GetParam());
  for (float& x : moved.Values(0, "fam")) x += 5;
  plain.Feed(Tokens(kBlock));
  moved.Feed(Tokens(kBlock));
  EXPECT_TRUE(SameBits(moved.Copy(0, "fam"), plain.Copy(0, "fam")));
  for (float& x : moved.Values(0, "fam")) x += 5;
  plain.Feed(Tokens(kBlock));
  moved.Feed(Tokens(kBlock));
  EXPECT_FALSE(AllClose(moved.Copy(0, "fam"), plain.Copy(0, "fam"), {1e-2, 1e-2}));
}

TEST_P(FamTest, FeedbackNormKeepsRowsAtUnitLength) {
  auto c = FakeFam();
  c->Set("fam_feedback_norm", true);
  ArchRunner run(c, GetParam());
  run.Feed(Tokens(4 * kBlock));
  for (const int layer : {0, 1}) {
    const std::vector<float> memory = run.Copy(layer, "fam");
    for (int row = 0; row < 3; ++row) {
      double squares = 0;
      for (int i = 0; i < 8; ++i) squares += memory[row * 8 + i] * memory[row * 8 + i] / 8;
      EXPECT_NEAR(squares, 1, 1e-4);
    }
  }
}

TEST_P(FamTest, QueryPositionMatters) {
  auto c = FakeFam();
  c->Set("fam_query_pos", std::string("cur"));
  const std::vector<TokenId> tokens = Tokens(3 * kBlock);
  EXPECT_EQ(Changed(Read(FakeFam(), tokens), Read(c, tokens)).first, kBlock);
}

// Sixty blocks, whole and token by token.
TEST_P(FamTest, BlocksInParallelGiveTheBitsOfTokenByToken) {
  for (const int64_t f : {0, 3}) {
    const std::vector<TokenId> tokens = Tokens(300);
    ArchRunner whole(FakeFam(2, f), GetParam()), single(FakeFam(2, f), GetParam());
    const std::vector<float> expected = whole.Feed(tokens);
    std::vector<float> actual;
    for (const TokenId token : tokens) {
      const std::vector<float> one = single.Feed({token});
      actual.insert(actual.end(), one.begin(), one.end());
    }
    EXPECT_TRUE(SameBits(actual, expected));
    EXPECT_TRUE(SameBits(single.Copy(1, "k"), whole.Copy(1, "k")));
  }
}

TEST_P(FamTest, ALongRandomReadStaysFinite) {
  // The reference is some twenty times slower and computes the same.
  const int64_t tokens = GetParam() == "cpu" ? 50'000 : 5'000;
  for (const bool norm : {false, true}) {
    auto c = FakeFam();
    c->Set("fam_feedback_norm", norm);
    ArchRunner run(c, GetParam());
    ASSERT_NO_FATAL_FAILURE(ExpectLongRunIsFinite(run, tokens));
  }
  ArchRunner bswa(FakeFam(2, 0), GetParam());
  ASSERT_NO_FATAL_FAILURE(ExpectLongRunIsFinite(bswa, tokens));
}

// The same token for ever is the worst case for a residual stream through time.
TEST_P(FamTest, EqualTokensForManyBlocksStayFinite) {
  auto c = FakeFam(1, 1, 0);
  c->Set("block_tokens", int64_t{1});
  ArchRunner run(c, GetParam());
  for (int i = 0; i < 20; ++i) {
    for (const float logit : run.Feed(std::vector<TokenId>(500, 7))) {
      ASSERT_TRUE(std::isfinite(logit));
    }
  }
}

TEST_P(FamTest, StateIsWhatTheDocumentSays) {
  for (const auto& [dtype, bytes] : {std::pair{DType::kF32, 4}, std::pair{DType::kF16, 2}}) {
    for (const int64_t f : {0, 3}) {
      // Window and sinks are another architecture's options.
      ArchRunner run(FakeFam(2, f, 2), GetParam(),
                     {.window_tokens = 3, .sink_tokens = 1, .kv_dtype = dtype});
      const StateSchema& schema = run.arch().schema();
      ASSERT_EQ(schema.tensors().size(), f > 0 ? 10 : 4);
      int64_t sum = 0;
      for (const StateTensor& tensor : schema.tensors()) sum += tensor.size_bytes;
      EXPECT_EQ(sum, 2 * (4 * f * 8 + 2 * bytes * 2 * 4 * (3 * kBlock + f)));
      EXPECT_THAT(run.arch().info().state_formula,
                  testing::EndsWith(" = " + std::to_string(sum) + " bytes"));
      EXPECT_EQ(run.arch().info().effective_context_tokens, f > 0 ? 0 : 3 * kBlock);
      const StateTensor* k = schema.Find(1, "k");
      ASSERT_NE(k, nullptr);
      EXPECT_EQ(k->kind, StateKind::kRing);
      EXPECT_EQ(k->sinks, 0);
      EXPECT_EQ(k->window, 3 * kBlock);
      EXPECT_EQ(k->dtype, dtype);
      EXPECT_EQ(schema.Find(1, "fam") != nullptr, f > 0);
      if (f > 0) {
        EXPECT_EQ(schema.Find(1, "fam")->dtype, DType::kF32);
        EXPECT_EQ(schema.Find(1, "fam_k")->dtype, dtype);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, FamTest, testing::ValuesIn(BackendNameList()),
                         [](const auto& info) { return std::string(info.param); });

TEST(FamOptionsTest, RefusesOtherTypesOfKeysAndValues) {
  const absl::Status status = Fam::Create(FakeFam(), {.kv_dtype = DType::kQ8_0}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("kv_dtype"));
}

}  // namespace
}  // namespace mneme::engine::fam
