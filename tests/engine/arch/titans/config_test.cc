#include "engine/arch/titans/config.h"

#include <cmath>
#include <string>
#include <utility>

#include "engine/arch/arch.h"
#include "engine/arch/titans/weights.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/arch/arch_runner.h"
#include "tests/engine/arch/titans/fake_titans.h"

namespace mneme::engine::titans {
namespace {

TEST(TitansConfigTest, ReadsEveryKey) {
  auto c = FakeTitans({.variant = "mag", .depth = 3, .norm = "layer", .read_mode = "token"});
  c->Set("memory_activation", std::string("gelu_erf"));
  c->Set("memory_residual", false);
  c->Set("decay_to", std::string("zero"));
  c->Set("theta_max", 0.5);
  c->Set("eta_max", int64_t{0});
  c->Set("forget", false);
  c->Set("gate_floor", 0.125);
  c->Set("gradient_clip", 0.25);
  c->Set("gate_mix", std::string("sigmoid"));
  c->Set("rope_pairing", std::string("half"));
  c->Set("rope_theta", int64_t{100});
  c->Set("rms_norm_eps", 1e-5);
  const absl::StatusOr<Config> config = ParseConfig(*c);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->variant, Variant::kGate);
  EXPECT_EQ(config->num_layers, 2);
  EXPECT_EQ(config->width, 12);
  EXPECT_EQ(config->vocab_size, 10);
  EXPECT_EQ(config->ffn_width, 14);
  EXPECT_EQ(config->memory_heads, 2);
  EXPECT_EQ(config->memory_width(), 10);
  EXPECT_EQ(config->memory.width, 5);
  EXPECT_EQ(config->memory.depth, 3);
  EXPECT_EQ(config->memory.hidden, 7);
  EXPECT_EQ(config->memory.Parameters(), 5 * 7 + 7 * 7 + 7 * 5);
  EXPECT_EQ(config->memory.activation, TitansActivation::kGeluErf);
  EXPECT_EQ(config->memory.norm, TitansNorm::kLayer);
  EXPECT_FALSE(config->memory.residual);
  EXPECT_EQ(config->chunk_tokens, 4);
  EXPECT_TRUE(config->token_mode);
  EXPECT_FALSE(config->decay_to_init);
  EXPECT_EQ(config->theta_max, 0.5f);
  EXPECT_EQ(config->eta_max, 0);
  EXPECT_FALSE(config->forget);
  EXPECT_EQ(config->gate_floor, 0.125f);
  EXPECT_EQ(config->gradient_clip, 0.25f);
  EXPECT_EQ(config->conv_taps, 3);
  EXPECT_EQ(config->attention_heads, 3);
  EXPECT_EQ(config->head_dim, 4);
  EXPECT_EQ(config->window_tokens, 6);
  EXPECT_EQ(config->persistent_tokens, 2);
  EXPECT_TRUE(config->sigmoid_mix);
  EXPECT_EQ(config->rope_layout, RopeLayout::kHalf);
  EXPECT_THAT(config->rope_theta, testing::ElementsAre(1.0, testing::DoubleNear(0.1, 1e-15)));
  EXPECT_EQ(config->rms_eps, 1e-5f);
  EXPECT_EQ(config->memory.eps, 1e-5f);
}

TEST(TitansConfigTest, DefaultsAreThoseOfTheDocument) {
  auto c = FakeTitans({.variant = "mag", .persistent = 0});
  for (const char* key :
       {"memory_depth", "memory_norm", "read_mode", "conv_taps", "persistent_tokens"}) {
    c->Unset(key);
  }
  absl::StatusOr<Config> config = ParseConfig(*c);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->memory.depth, 2);
  EXPECT_EQ(config->memory.activation, TitansActivation::kSilu);
  EXPECT_TRUE(config->memory.residual);
  EXPECT_EQ(config->memory.norm, TitansNorm::kNone);
  EXPECT_FALSE(config->token_mode);
  EXPECT_TRUE(config->decay_to_init);
  EXPECT_EQ(config->theta_max, 1);
  EXPECT_EQ(config->eta_max, 0.95f);
  EXPECT_TRUE(config->forget);
  EXPECT_EQ(config->gate_floor, 0.02f);
  EXPECT_EQ(config->gradient_clip, 1);
  EXPECT_EQ(config->conv_taps, 4);
  EXPECT_EQ(config->persistent_tokens, 0);
  EXPECT_FALSE(config->sigmoid_mix);
  EXPECT_EQ(config->rope_layout, RopeLayout::kInterleaved);
  EXPECT_EQ(config->rms_eps, 1e-6f);
  EXPECT_FALSE(config->tied_embeddings);
  config = ParseConfig(*FakeTitans({.depth = 1}));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_FALSE(config->decay_to_init);
}

TEST(TitansConfigTest, RefusesMissingKeysByName) {
  const auto expect_needed = [](const char* variant, std::initializer_list<const char*> keys) {
    for (const char* key : keys) {
      auto c = FakeTitans({.variant = variant});
      c->Unset(key);
      ExpectRefused(c, key);
    }
  };
  expect_needed("lmm", {"mneme_config_version", "variant", "vocab_size", "hidden_size",
                        "num_hidden_layers", "intermediate_size", "memory_heads", "memory_head_dim",
                        "memory_hidden_dim", "memory_chunk_tokens"});
  expect_needed("mac", {"num_attention_heads", "segment_tokens"});
  expect_needed("mag", {"num_attention_heads", "window_tokens"});
  expect_needed("mal", {"num_attention_heads", "window_tokens"});
}

TEST(TitansConfigTest, RefusesValuesByName) {
  const std::pair<const char*, MetadataValue> bad[] = {
      {"mneme_config_version", int64_t{2}},
      {"mneme_config_version", std::string("1")},
      {"variant", std::string("map")},
      {"variant", int64_t{1}},
      {"vocab_size", int64_t{0}},
      {"hidden_size", int64_t{-8}},
      {"hidden_size", int64_t{1} << 40},
      {"num_hidden_layers", int64_t{5000}},
      {"intermediate_size", 12.5},
      {"memory_heads", int64_t{0}},
      {"memory_heads", int64_t{1} << 30},
      {"memory_head_dim", int64_t{1} << 20},
      {"memory_depth", int64_t{0}},
      {"memory_depth", int64_t{1000}},
      {"memory_depth", std::string("deep")},
      {"memory_hidden_dim", int64_t{0}},
      {"memory_activation", std::string("relu")},
      {"memory_residual", int64_t{1}},
      {"memory_norm", std::string("batch")},
      {"memory_chunk_tokens", int64_t{0}},
      {"memory_chunk_tokens", int64_t{1} << 40},
      {"read_mode", std::string("segment")},
      {"decay_to", std::string("one")},
      {"theta_max", -1.0},
      {"theta_max", std::nan("")},
      {"eta_max", 1.5},
      {"forget", std::string("no")},
      {"gate_floor", 1.0},
      {"gate_floor", -0.1},
      {"gradient_clip", -1.0},
      {"gradient_clip", HUGE_VAL},
      {"conv_taps", int64_t{0}},
      {"num_attention_heads", int64_t{5}},
      {"num_attention_heads", int64_t{12}},  // width 1, not even
      {"window_tokens", int64_t{1}},
      {"persistent_tokens", int64_t{-1}},
      {"gate_mix", std::string("convex")},
      {"rope_theta", 0.0},
      {"rope_pairing", std::string("quarter")},
      {"rms_norm_eps", 0.0},
      {"tie_word_embeddings", int64_t{1}},
      {"sliding_window", int64_t{4}},
      {"rope_scaling.factor", 2.0},
  };
  for (const auto& [key, value] : bad) {
    auto c = FakeTitans({.variant = "mag"});
    c->Set(key, value);
    ExpectRefused(c, key);
  }
}

TEST(TitansConfigTest, RefusesKeysOfOtherVariants) {
  const std::pair<const char*, std::pair<const char*, MetadataValue>> bad[] = {
      {"lmm", {"num_attention_heads", int64_t{3}}},  {"lmm", {"window_tokens", int64_t{6}}},
      {"lmm", {"persistent_tokens", int64_t{0}}},    {"lmm", {"segment_tokens", int64_t{4}}},
      {"lmm", {"gate_mix", std::string("sigmoid")}}, {"mal", {"gate_mix", std::string("sigmoid")}},
      {"mal", {"segment_tokens", int64_t{4}}},       {"mag", {"segment_tokens", int64_t{4}}},
      {"mac", {"window_tokens", int64_t{6}}},
  };
  for (const auto& [variant, entry] : bad) {
    auto c = FakeTitans({.variant = variant});
    c->Set(entry.first, entry.second);
    ExpectRefused(c, entry.first, "variant");
  }
  auto c = FakeTitans({.variant = "mac"});
  c->Set("read_mode", std::string("token"));
  ExpectRefused(c, "read_mode", "'chunk'");
  c = FakeTitans({.variant = "mac"});
  c->Set("segment_tokens", int64_t{5});
  ExpectRefused(c, "segment_tokens", "memory_chunk_tokens 4");
  c = FakeTitans({.depth = 1});
  c->Set("memory_hidden_dim", int64_t{7});
  ExpectRefused(c, "memory_hidden_dim", "memory_depth");
}

TEST(TitansConfigTest, IgnoresWhatTheDocumentSaysIsIgnored) {
  auto c = FakeTitans();
  c->Set("architectures", std::vector<std::string>{"TitansForCausalLM"});
  c->Set("tokenizer", std::string("bytes"));
  c->Set("eos_token_id", int64_t{3});
  EXPECT_TRUE(ParseConfig(*c).ok());
}

TEST(TitansConfigTest, MatchesLooksAtTheModelTypeOnly) {
  EXPECT_TRUE(Matches(*FakeTitans()));
  auto c = FakeTitans();
  c->Set("model_type", std::string("titan"));
  EXPECT_FALSE(Matches(*c));
  ExpectRefused(c, "'titan'", "not supported");
  c->Set("model_type", int64_t{1});
  EXPECT_FALSE(Matches(*c));
  EXPECT_FALSE(Matches(FakeCheckpoint(Checkpoint::Format::kGguf)));
}

class TitansWeightsTest : public testing::TestWithParam<const char*> {};

TEST_P(TitansWeightsTest, EveryTensorIsNeededInItsShape) {
  const auto make = [] { return FakeTitans({.variant = GetParam(), .layers = 1, .norm = "rms"}); };
  ExpectEveryTensorIsNeededInItsShape(make);
  const auto whole = make();
  for (const auto& [name, tensor] : whole->tensors()) {
    auto c = make();
    c->Add(name, {1});  // another rank
    ExpectRefused(c, name);
    c = make();
    c->Add(name, tensor.shape)[0] = NAN;
    ExpectRefused(c, name);
  }
}

TEST_P(TitansWeightsTest, RefusesTensorsOfAnotherModelOrVariant) {
  for (const std::string name :
       {"model.layers.2.memory.q_proj.weight", "model.layers.0.memory.init.2",
        "model.layers.0.memory.norm.weight", "model.layers.0.memory.q_proj.bias"}) {
    auto c = FakeTitans({.variant = GetParam()});
    c->Add(name, {2, 5});
    ExpectRefused(c, name, "not part of");
  }
  const std::string variant = GetParam();
  const auto refused = [&](const std::string& name, const std::vector<int64_t>& shape) {
    auto c = FakeTitans({.variant = variant, .persistent = 0});
    c->Add(name, shape);
    ExpectRefused(c, name, "not part of");
  };
  refused("model.layers.0.self_attn.persistent", {2, 12});
  if (variant == "lmm") refused("model.layers.0.self_attn.q_proj.weight", {12, 12});
  if (variant != "mac") refused("model.layers.0.memory.q2_proj.weight", {10, 12});
  if (variant != "mal") refused("model.layers.0.attention_layernorm.weight", {12});
  if (variant == "lmm" || variant == "mal") refused("model.layers.0.mix.o_proj.weight", {12, 12});
}

INSTANTIATE_TEST_SUITE_P(Variants, TitansWeightsTest, testing::ValuesIn(kTitansVariants),
                         [](const auto& info) { return std::string(info.param); });

TEST(TitansTensorsTest, SmallTensorsMustBeFloats) {
  for (const char* part : {"init.0", "q_conv.weight", "gate.bias", "output_norm.weight"}) {
    const std::string name = std::string("model.layers.0.memory.") + part;
    auto c = FakeTitans();
    c->SetDType(name, DType::kQ8_0);
    ExpectRefused(c, name, "F32, F16 or BF16");
  }
}

TEST(TitansTensorsTest, TiedEmbeddingsHaveNoHead) {
  auto c = FakeTitans();
  c->Set("tie_word_embeddings", true);
  ExpectRefused(c, "lm_head.weight", "not part of");
  c->Remove("lm_head.weight");
  EXPECT_TRUE(CreateArch(c, {}).ok());
}

TEST(TitansTensorsTest, CountsWhatItUses) {
  auto c = FakeTitans({.variant = "mag"});
  ArchInfo info;
  const absl::StatusOr<Weights> weights = LoadWeights(*c, *ParseConfig(*c), HostMemory(), &info);
  ASSERT_TRUE(weights.ok()) << weights.status();
  const int64_t layer = 4 * 10 * 12 + 12 * 10 + 6 * 12 + 4 * 12 * 12 + 12 * 12 + 3 * 14 * 12;
  EXPECT_EQ(info.layer_matrix_parameters, 2 * layer);
  const int64_t vectors = 12 + 12 + 3 * 10 * 3 + 6 + 2 * 70 + 5 + 2 * 12 + 12 + 12;
  EXPECT_EQ(info.parameters, 2 * (layer + vectors) + 12 + 2 * 120);
  EXPECT_EQ(info.weight_bytes, info.parameters * 4);
  EXPECT_EQ(info.decode_weight_bytes, info.weight_bytes - 120 * 4 + 12 * 4);
}

}  // namespace
}  // namespace mneme::engine::titans
