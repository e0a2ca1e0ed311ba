#include "engine/arch/infini/config.h"

#include <cmath>
#include <string>
#include <utility>

#include "engine/arch/arch.h"
#include "engine/arch/infini/weights.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/arch/infini/fake_infini.h"
#include "tests/engine/arch/weight_values.h"

namespace mneme::engine::infini {
namespace {

TEST(InfiniConfigTest, ReadsEveryKey) {
  auto c = FakeInfini();
  c->Set("memory_update", std::string("linear_delta"));
  c->Set("first_segment", std::string("local"));
  c->Set("rope_pairing", std::string("interleaved"));
  c->Set("memory_eps", 0.25);
  c->Set("rms_norm_eps", 1e-5);
  c->Set("rope_theta", int64_t{100});
  const absl::StatusOr<Config> config = ParseConfig(*c);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->num_layers, 2);
  EXPECT_EQ(config->width, 8);
  EXPECT_EQ(config->heads, 4);
  EXPECT_EQ(config->kv_heads, 2);
  EXPECT_EQ(config->head_dim, 4);
  EXPECT_EQ(config->value_head_dim, 6);
  EXPECT_EQ(config->ffn_width, 12);
  EXPECT_EQ(config->vocab_size, 10);
  EXPECT_EQ(config->segment_tokens, 5);
  EXPECT_EQ(config->memory_eps, 0.25f);
  EXPECT_EQ(config->rms_eps, 1e-5f);
  EXPECT_TRUE(config->delta);
  EXPECT_TRUE(config->first_segment_local);
  EXPECT_TRUE(config->tied_embeddings);
  EXPECT_EQ(config->rope_layout, RopeLayout::kInterleaved);
  EXPECT_THAT(config->theta, testing::ElementsAre(1.0, testing::DoubleNear(0.1, 1e-15)));
}

TEST(InfiniConfigTest, DefaultsAreThoseOfTheDocument) {
  auto c = FakeInfini();
  for (const char* key :
       {"num_key_value_heads", "head_dim", "value_head_dim", "tie_word_embeddings"}) {
    c->Unset(key);
  }
  const absl::StatusOr<Config> config = ParseConfig(*c);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->kv_heads, 4);
  EXPECT_EQ(config->head_dim, 2);
  EXPECT_EQ(config->value_head_dim, 2);
  EXPECT_EQ(config->memory_eps, 1e-6f);
  EXPECT_EQ(config->rms_eps, 1e-6f);
  EXPECT_FALSE(config->delta);
  EXPECT_FALSE(config->first_segment_local);
  EXPECT_FALSE(config->tied_embeddings);
  EXPECT_EQ(config->rope_layout, RopeLayout::kHalf);
}

TEST(InfiniConfigTest, RefusesMissingKeysByName) {
  for (const char* key :
       {"mneme_config_version", "vocab_size", "hidden_size", "num_hidden_layers",
        "num_attention_heads", "intermediate_size", "segment_tokens", "memory_update"}) {
    auto c = FakeInfini();
    c->Unset(key);
    ExpectRefused(c, key);
  }
}

TEST(InfiniConfigTest, RefusesValuesByName) {
  const std::pair<const char*, MetadataValue> bad[] = {
      {"mneme_config_version", int64_t{2}},
      {"mneme_config_version", std::string("1")},
      {"vocab_size", int64_t{0}},
      {"hidden_size", int64_t{-8}},
      {"hidden_size", int64_t{1} << 40},
      {"num_hidden_layers", int64_t{5000}},
      {"num_attention_heads", int64_t{1} << 30},
      {"num_key_value_heads", int64_t{3}},
      {"num_key_value_heads", int64_t{8}},
      {"head_dim", int64_t{5}},
      {"head_dim", int64_t{1} << 19},
      {"value_head_dim", int64_t{0}},
      {"intermediate_size", 12.5},
      {"segment_tokens", int64_t{0}},
      {"segment_tokens", std::string("many")},
      {"memory_update", std::string("quadratic")},
      {"memory_update", true},
      {"memory_eps", 0.0},
      {"memory_eps", 1e-60},
      {"memory_eps", std::nan("")},
      {"rms_norm_eps", -1.0},
      {"rope_theta", 0.0},
      {"rope_pairing", std::string("quarter")},
      {"first_segment", std::string("none")},
      {"tie_word_embeddings", int64_t{1}},
      {"sliding_window", int64_t{4}},
      {"rope_scaling.factor", 2.0},
  };
  for (const auto& [key, value] : bad) {
    auto c = FakeInfini();
    c->Set(key, value);
    ExpectRefused(c, key);
  }
  auto c = FakeInfini();
  c->Unset("head_dim");
  c->Set("hidden_size", int64_t{9});
  ExpectRefused(c, "head_dim");
}

TEST(InfiniConfigTest, IgnoresWhatTheDocumentSaysIsIgnored) {
  auto c = FakeInfini();
  c->Set("architectures", std::vector<std::string>{"InfiniForCausalLM"});
  c->Set("tokenizer", std::string("bytes"));
  c->Set("eos_token_id", int64_t{3});
  EXPECT_TRUE(ParseConfig(*c).ok());
}

TEST(InfiniConfigTest, MatchesLooksAtTheModelTypeOnly) {
  EXPECT_TRUE(Matches(*FakeInfini()));
  auto c = FakeInfini();
  c->Set("model_type", std::string("infinity"));
  EXPECT_FALSE(Matches(*c));
  ExpectRefused(c, "'infinity'", "not supported");
  c->Set("model_type", int64_t{1});
  EXPECT_FALSE(Matches(*c));
  EXPECT_FALSE(Matches(FakeCheckpoint(Checkpoint::Format::kGguf)));
}

TEST(InfiniWeightsTest, EveryTensorIsNeededInItsShape) {
  ExpectEveryTensorIsNeededInItsShape([] { return FakeInfini(); });
}

TEST(InfiniWeightsTest, RefusesTensorsOfAnotherModel) {
  for (const char* name : {"model.layers.2.self_attn.q_proj.weight",
                           "model.layers.0.self_attn.q_proj.bias", "lm_head.weight"}) {
    auto c = FakeInfini();
    c->Add(name, {10, 8});
    ExpectRefused(c, name, "not part of");
  }
  auto c = FakeInfini();
  c->Set("tie_word_embeddings", false);
  ExpectRefused(c, "lm_head.weight");
  c->Add("lm_head.weight", {10, 8});
  EXPECT_TRUE(CreateArch(c, {}).ok());
}

TEST(InfiniWeightsTest, CountsWhatItUses) {
  auto c = FakeInfini();
  ArchInfo info;
  const absl::StatusOr<Weights> weights = LoadWeights(*c, *ParseConfig(*c), HostMemory(), &info);
  ASSERT_TRUE(weights.ok()) << weights.status();
  const int64_t layer = 16 * 8 + 8 * 8 + 12 * 8 + 8 * 24 + 3 * 12 * 8;
  EXPECT_EQ(info.layer_matrix_parameters, 2 * layer);
  EXPECT_EQ(info.parameters, 2 * (layer + 16 + 4) + 8 + 80);
  EXPECT_EQ(info.weight_bytes, info.parameters * 4);
  EXPECT_EQ(info.decode_weight_bytes, info.weight_bytes + 8 * 4);  // the table once, and a row
}

TEST(InfiniWeightsTest, AGateOfAnySizeGivesShares) {
  auto c = FakeInfini(1);
  c->Add("model.layers.0.self_attn.memory_gate", {4}) = {0.0f, -1e9f, 1e9f, 2.0f};
  ArchInfo info;
  const absl::StatusOr<Weights> weights = LoadWeights(*c, *ParseConfig(*c), HostMemory(), &info);
  ASSERT_TRUE(weights.ok()) << weights.status();
  const Layer& layer = weights->layers[0];
  EXPECT_THAT(Values(layer.memory_share), testing::ElementsAre(0.5f, 0.0f, 1.0f, 0.880797078f));
  EXPECT_THAT(Values(layer.local_share), testing::ElementsAre(0.5f, 1.0f, 0.0f, 0.119202922f));
}

}  // namespace
}  // namespace mneme::engine::infini
