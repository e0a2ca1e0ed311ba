#include "engine/arch/fam/config.h"

#include <cmath>
#include <string>
#include <utility>

#include "engine/arch/fam/weights.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/arch/fam/fake_fam.h"

namespace mneme::engine::fam {
namespace {

TEST(FamConfigTest, ReadsEveryKey) {
  auto c = FakeFam();
  c->Set("fam_query_pos", std::string("cur"));
  c->Set("fam_feedback_norm", true);
  c->Set("rope_pairing", std::string("interleaved"));
  c->Set("rms_norm_eps", 1e-5);
  c->Set("rope_theta", int64_t{100});
  const absl::StatusOr<Config> config = ParseConfig(*c);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->num_layers, 2);
  EXPECT_EQ(config->width, 8);
  EXPECT_EQ(config->heads, 4);
  EXPECT_EQ(config->kv_heads, 2);
  EXPECT_EQ(config->head_dim, 4);
  EXPECT_EQ(config->ffn_width, 12);
  EXPECT_EQ(config->vocab_size, 10);
  EXPECT_EQ(config->block_tokens, 5);
  EXPECT_EQ(config->memory_blocks, 1);
  EXPECT_EQ(config->fam_tokens, 3);
  EXPECT_EQ(config->rms_eps, 1e-5f);
  EXPECT_TRUE(config->query_at_current);
  EXPECT_TRUE(config->feedback_norm);
  EXPECT_TRUE(config->tied_embeddings);
  EXPECT_EQ(config->rope_layout, RopeLayout::kInterleaved);
  EXPECT_THAT(config->theta, testing::ElementsAre(1.0, testing::DoubleNear(0.1, 1e-15)));
}

TEST(FamConfigTest, DefaultsAreThoseOfTheDocument) {
  const absl::StatusOr<Config> config = ParseConfig(*FakeFam());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_FALSE(config->query_at_current);
  EXPECT_FALSE(config->feedback_norm);
  EXPECT_EQ(config->rms_eps, 1e-6f);
  EXPECT_EQ(config->rope_layout, RopeLayout::kHalf);
}

TEST(FamConfigTest, RefusesMissingKeysByName) {
  for (const char* key : {"mneme_config_version", "vocab_size", "hidden_size", "num_hidden_layers",
                          "num_attention_heads", "intermediate_size", "block_tokens",
                          "memory_blocks", "fam_tokens"}) {
    auto c = FakeFam();
    c->Unset(key);
    ExpectRefused(c, key);
  }
}

TEST(FamConfigTest, RefusesValuesByName) {
  const std::pair<const char*, MetadataValue> bad[] = {
      {"mneme_config_version", int64_t{2}},
      {"vocab_size", int64_t{0}},
      {"num_layers", int64_t{2}},
      {"num_key_value_heads", int64_t{3}},
      {"head_dim", int64_t{5}},
      {"intermediate_size", 12.5},
      {"block_tokens", int64_t{0}},
      {"block_tokens", int64_t{1} << 40},
      {"block_tokens", std::string("many")},
      {"memory_blocks", int64_t{-1}},
      {"memory_blocks", int64_t{1} << 40},
      {"memory_blocks", 1.5},
      {"fam_tokens", int64_t{-1}},
      {"fam_tokens", int64_t{6}},
      {"fam_query_pos", std::string("next")},
      {"fam_query_pos", int64_t{1}},
      {"fam_feedback_norm", int64_t{1}},
      {"fam_feedback_norm", std::string("yes")},
      {"rms_norm_eps", std::nan("")},
      {"rope_theta", 0.0},
      {"rope_pairing", std::string("quarter")},
      {"segment_tokens", int64_t{4}},
      {"fam_blocks", int64_t{4}},
  };
  for (const auto& [key, value] : bad) {
    auto c = FakeFam();
    c->Set(key, value);
    ExpectRefused(c, key);
  }
  // A state beyond any machine, from numbers that are each in range.
  auto c = FakeFam();
  c->Set("block_tokens", int64_t{1} << 24);
  c->Set("memory_blocks", int64_t{1} << 16);
  ExpectRefused(c, "block_tokens", "state");
}

TEST(FamConfigTest, MatchesLooksAtTheModelTypeOnly) {
  EXPECT_TRUE(Matches(*FakeFam()));
  EXPECT_TRUE(Matches(*FakeFam(1, 0)));
  auto c = FakeFam();
  c->Set("model_type", std::string("family"));
  EXPECT_FALSE(Matches(*c));
  ExpectRefused(c, "'family'", "not supported");
}

TEST(FamWeightsTest, EveryTensorIsNeededInItsShape) {
  ExpectEveryTensorIsNeededInItsShape([] { return FakeFam(); });
}

TEST(FamWeightsTest, RefusesTensorsOfAnotherModel) {
  for (const char* name : {"model.layers.2.self_attn.q_proj.weight",
                           "model.layers.0.self_attn.q_proj.bias", "lm_head.weight"}) {
    auto c = FakeFam();
    c->Add(name, {10, 8});
    ExpectRefused(c, name, "not part of");
  }
  auto c = FakeFam(2, 0);  // BSWA has no prompt
  c->Add("model.fam_prompt", {3, 8});
  ExpectRefused(c, "model.fam_prompt", "not part of");
}

TEST(FamWeightsTest, RefusesPromptsThatAreNotFinite) {
  auto c = FakeFam();
  c->Add("model.fam_prompt", {3, 8})[5] = INFINITY;
  ExpectRefused(c, "model.fam_prompt", "finite");
}

TEST(FamWeightsTest, CountsWhatItUses) {
  auto c = FakeFam();
  ArchInfo info;
  const absl::StatusOr<Weights> weights = LoadWeights(*c, *ParseConfig(*c), HostMemory(), &info);
  ASSERT_TRUE(weights.ok()) << weights.status();
  const int64_t layer = 16 * 8 + 8 * 8 + 8 * 8 + 8 * 16 + 3 * 12 * 8;
  EXPECT_EQ(info.layer_matrix_parameters, 2 * layer);
  EXPECT_EQ(info.parameters, 2 * (layer + 16) + 8 + 80 + 24);
  EXPECT_EQ(info.weight_bytes, info.parameters * 4);
  // The prompt only makes the initial state; the table is read once as the head, and a row of it.
  EXPECT_EQ(info.decode_weight_bytes, info.weight_bytes - 24 * 4 + 8 * 4);
}

}  // namespace
}  // namespace mneme::engine::fam
