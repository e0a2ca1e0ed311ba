#include "engine/arch/llama/config.h"

#include <cmath>
#include <numbers>
#include <string>

#include "engine/arch/llama/weights.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/arch/llama/fake_llama.h"

namespace mneme::engine::llama {
namespace {

using ::testing::HasSubstr;

void ExpectRefused(const Checkpoint& checkpoint, absl::StatusCode code, const std::string& names) {
  const absl::StatusOr<Config> config = ParseConfig(checkpoint);
  ASSERT_FALSE(config.ok()) << "expected a refusal naming " << names;
  EXPECT_EQ(config.status().code(), code) << config.status();
  EXPECT_THAT(std::string(config.status().message()), HasSubstr(names));
}

TEST(LlamaConfigTest, ReadsGguf) {
  const absl::StatusOr<Config> config = ParseConfig(*FakeGgufLlama());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->num_layers, 2);
  EXPECT_EQ(config->width, 8);
  EXPECT_EQ(config->heads, 2);
  EXPECT_EQ(config->kv_heads, 1);
  EXPECT_EQ(config->head_dim, 4);
  EXPECT_EQ(config->ffn_width, 12);
  EXPECT_EQ(config->vocab_size, 10);
  EXPECT_EQ(config->rope_layout, RopeLayout::kInterleaved);
  EXPECT_FLOAT_EQ(config->attention_scale, 0.5f);
  EXPECT_THAT(config->theta, testing::ElementsAre(1.0, testing::DoubleNear(0.01, 1e-15)));
}

TEST(LlamaConfigTest, ReadsHuggingFace) {
  const absl::StatusOr<Config> config = ParseConfig(*FakeHfLlama());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope_layout, RopeLayout::kHalf);
  EXPECT_EQ(config->kv_heads, 1);
  EXPECT_EQ(config->trained_context, 64);
  EXPECT_FALSE(config->requires_tied_embeddings);
}

TEST(LlamaConfigTest, MatchesLooksAtTheArchitectureOnly) {
  EXPECT_TRUE(Matches(*FakeGgufLlama()));
  EXPECT_TRUE(Matches(*FakeHfLlama()));
  auto other = FakeGgufLlama();
  other->Set("general.architecture", std::string("mamba"));
  EXPECT_FALSE(Matches(*other));
  other->Set("general.architecture", int64_t{3});
  EXPECT_FALSE(Matches(*other));
  auto hf = FakeHfLlama();
  hf->Set("architectures", std::vector<std::string>{"BertModel"});
  EXPECT_FALSE(Matches(*hf));
  hf->Unset("architectures");
  EXPECT_FALSE(Matches(*hf));
}

TEST(ArchRegistryTest, RefusesWhatNoArchitectureMatchesByItsOwnName) {
  auto other = FakeGgufLlama();
  other->Set("general.architecture", std::string("mamba"));
  const absl::Status status = CreateArch(other, {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("'mamba'"));
  EXPECT_TRUE(CreateArch(FakeGgufLlama(), {}).ok());
}

TEST(LlamaConfigTest, MissingKvHeadsMeanAsManyAsQueryHeads) {
  auto c = FakeGgufLlama();
  c->Unset("llama.attention.head_count_kv");
  EXPECT_EQ(ParseConfig(*c)->kv_heads, 2);
}

TEST(LlamaConfigTest, KeyLengthIsTrustedOverTheQuotient) {
  auto c = FakeGgufLlama();
  c->Set("llama.attention.key_length", int64_t{6});
  const absl::StatusOr<Config> config = ParseConfig(*c);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->head_dim, 6);
  EXPECT_EQ(config->rotary_dim, 6);
  c->Set("llama.attention.value_length", int64_t{4});
  ExpectRefused(*c, absl::StatusCode::kUnimplemented, "llama.attention.value_length");
}

TEST(LlamaConfigTest, PerLayerArraysMustBeConstant) {
  auto c = FakeGgufLlama();
  c->Set("llama.attention.head_count_kv", std::vector<int64_t>{1, 1});
  EXPECT_EQ(ParseConfig(*c)->kv_heads, 1);
  c->Set("llama.attention.head_count_kv", std::vector<int64_t>{1, 2});
  ExpectRefused(*c, absl::StatusCode::kUnimplemented, "llama.attention.head_count_kv");
  c->Set("llama.attention.head_count_kv", std::vector<int64_t>{1});
  ExpectRefused(*c, absl::StatusCode::kInvalidArgument, "llama.attention.head_count_kv");
}

TEST(LlamaConfigTest, RefusesValuesOutOfRangeByName) {
  const std::pair<const char*, MetadataValue> bad[] = {
      {"llama.block_count", int64_t{0}},
      {"llama.block_count", int64_t{5000}},
      {"llama.embedding_length", int64_t{-8}},
      {"llama.embedding_length", int64_t{1} << 40},
      {"llama.context_length", int64_t{0}},
      {"llama.feed_forward_length", int64_t{0}},
      {"llama.attention.head_count", int64_t{0}},
      {"llama.attention.head_count_kv", int64_t{3}},
      {"llama.attention.layer_norm_rms_epsilon", 0.0},
      {"llama.attention.layer_norm_rms_epsilon", std::nan("")},
      {"llama.rope.freq_base", -1.0},
      {"llama.rope.dimension_count", int64_t{1}},
      {"llama.block_count", std::string("two")},
  };
  for (const auto& [key, value] : bad) {
    auto c = FakeGgufLlama();
    c->Set(key, value);
    ExpectRefused(*c, absl::StatusCode::kInvalidArgument, key);
  }
  for (const char* key : {"llama.block_count", "llama.embedding_length", "llama.context_length",
                          "llama.feed_forward_length", "llama.attention.head_count",
                          "llama.attention.layer_norm_rms_epsilon"}) {
    auto c = FakeGgufLlama();
    c->Unset(key);
    const absl::StatusOr<Config> config = ParseConfig(*c);
    EXPECT_FALSE(config.ok());
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(key));
  }
}

TEST(LlamaConfigTest, RefusesShapesThatDoNotFit) {
  auto c = FakeGgufLlama();
  c->Set("llama.attention.head_count", int64_t{4});
  c->Set("llama.attention.head_count_kv", int64_t{3});
  ExpectRefused(*c, absl::StatusCode::kInvalidArgument, "not a multiple of 3");
  c = FakeGgufLlama();
  c->Set("llama.attention.key_length", int64_t{5});
  ExpectRefused(*c, absl::StatusCode::kInvalidArgument, "head width 5");
  c = FakeGgufLlama();
  c->Set("llama.rope.dimension_count", int64_t{6});
  ExpectRefused(*c, absl::StatusCode::kInvalidArgument, "rotary dimension 6");
  c = FakeGgufLlama();
  c->Set("tokenizer.ggml.tokens", std::vector<std::string>(11, "x"));
  ExpectRefused(*c, absl::StatusCode::kInvalidArgument, "tokenizer.ggml.tokens");
  c->Set("tokenizer.ggml.tokens", std::vector<std::string>(9, "x"));  // padding is legal
  EXPECT_TRUE(ParseConfig(*c).ok());
}

TEST(LlamaConfigTest, RefusesWhatItDoesNotHaveByName) {
  auto c = FakeGgufLlama();
  c->Set("llama.expert_count", int64_t{8});
  ExpectRefused(*c, absl::StatusCode::kUnimplemented, "llama.expert_count");
  c = FakeGgufLlama();
  c->Set("llama.rope.scaling.type", std::string("longrope"));
  ExpectRefused(*c, absl::StatusCode::kUnimplemented, "'longrope'");
  auto hf = FakeHfLlama();
  hf->Set("rope_scaling.rope_type", std::string("longrope"));
  ExpectRefused(*hf, absl::StatusCode::kUnimplemented, "'longrope'");
  hf = FakeHfLlama();
  hf->Set("hidden_act", std::string("gelu"));
  ExpectRefused(*hf, absl::StatusCode::kUnimplemented, "hidden_act");
}

TEST(LlamaConfigTest, LinearScalingDividesEveryAngle) {
  auto c = FakeGgufLlama();
  c->Set("llama.rope.scaling.type", std::string("linear"));
  c->Set("llama.rope.scaling.factor", 4.0);
  EXPECT_DOUBLE_EQ(ParseConfig(*c)->theta[0], 0.25);
  auto hf = FakeHfLlama();
  hf->Set("rope_scaling.type", std::string("linear"));
  hf->Set("rope_scaling.factor", 4.0);
  EXPECT_DOUBLE_EQ(ParseConfig(*hf)->theta[0], 0.25);
}

TEST(LlamaConfigTest, RopeFreqsDivideEachPair) {
  auto c = FakeGgufLlama();
  std::vector<float>& divisors = c->Add("rope_freqs.weight", {2});
  divisors = {1.0f, 8.0f};
  EXPECT_THAT(ParseConfig(*c)->theta,
              testing::ElementsAre(1.0, testing::DoubleNear(0.00125, 1e-15)));
  divisors[1] = 0.0f;
  ExpectRefused(*c, absl::StatusCode::kInvalidArgument, "rope_freqs.weight");
}

TEST(LlamaConfigTest, Llama3ScalingLeavesFastPairsAndSlowsSlowOnes) {
  auto hf = FakeHfLlama();
  hf->Set("head_dim", int64_t{64});
  hf->Set("rope_scaling.rope_type", std::string("llama3"));
  hf->Set("rope_scaling.factor", 8.0);
  hf->Set("rope_scaling.low_freq_factor", 1.0);
  hf->Set("rope_scaling.high_freq_factor", 4.0);
  hf->Set("rope_scaling.original_max_position_embeddings", int64_t{8192});
  const absl::StatusOr<Config> config = ParseConfig(*hf);
  ASSERT_TRUE(config.ok()) << config.status();
  int kept = 0, slowed = 0, blended = 0;
  for (int j = 0; j < 32; ++j) {
    const double plain = std::pow(10000.0, -j / 32.0);
    const double wavelength = 2 * std::numbers::pi / plain;
    const double ratio = plain / config->theta[j];
    if (wavelength < 8192 / 4.0) {
      EXPECT_DOUBLE_EQ(ratio, 1.0);
      ++kept;
    } else if (wavelength > 8192) {
      EXPECT_NEAR(ratio, 8.0, 1e-12);
      ++slowed;
    } else {
      EXPECT_GT(ratio, 1.0);
      EXPECT_LT(ratio, 8.0);
      ++blended;
    }
  }
  EXPECT_GT(kept, 0);
  EXPECT_GT(slowed, 0);
  EXPECT_GT(blended, 0);
  hf->Unset("rope_scaling.high_freq_factor");
  EXPECT_FALSE(ParseConfig(*hf).ok());
}

// theta and the magnitude of the published definition, computed by Python's math with the formulas
// of transformers' modeling_rope_utils: def yarn(dim=16, base=10000, factor=4, original=2048).
const std::vector<double> kYarnTheta = {1,       0.316227766017,   0.1,     0.0256935059889,
                                        0.00625, 0.00138349647632, 0.00025, 7.90569415042e-05};
constexpr double kYarnMagnitude = 1.138629436111989;

void ExpectTheta(const std::vector<double>& theta, const std::vector<double>& expected) {
  ASSERT_EQ(theta.size(), expected.size());
  for (size_t j = 0; j < theta.size(); ++j) EXPECT_NEAR(theta[j] / expected[j], 1, 1e-11) << j;
}

std::shared_ptr<FakeCheckpoint> HfWithYarn() {
  auto hf = FakeHfLlama();
  hf->Set("head_dim", int64_t{16});
  hf->Set("max_position_embeddings", int64_t{8192});
  hf->Set("rope_scaling.rope_type", std::string("yarn"));
  hf->Set("rope_scaling.factor", 4.0);
  hf->Set("rope_scaling.original_max_position_embeddings", int64_t{2048});
  return hf;
}

TEST(LlamaConfigTest, YarnSlowsSlowPairsAndGrowsScores) {
  auto hf = HfWithYarn();
  absl::StatusOr<Config> config = ParseConfig(*hf);
  ASSERT_TRUE(config.ok()) << config.status();
  ExpectTheta(config->theta, kYarnTheta);
  EXPECT_NEAR(config->attention_scale, 0.25 * kYarnMagnitude * kYarnMagnitude, 1e-7);
  hf->Unset("rope_scaling.factor");  // then it is 8192 / 2048
  ExpectTheta(ParseConfig(*hf)->theta, kYarnTheta);

  hf = HfWithYarn();
  hf->Set("rope_scaling.truncate", false);
  ExpectTheta(ParseConfig(*hf)->theta, {1, 0.316227766017, 0.1, 0.0238701923217, 0.00505697152113,
                                        0.000811290381701, 0.00025, 7.90569415042e-05});
  hf->Set("rope_scaling.attention_factor", 1.5);
  EXPECT_NEAR(ParseConfig(*hf)->attention_scale, 0.25 * 1.5 * 1.5, 1e-7);

  hf = HfWithYarn();
  hf->Set("rope_theta", 1e6);
  hf->Set("rope_scaling.factor", 8.0);
  hf->Set("rope_scaling.original_max_position_embeddings", int64_t{4096});
  hf->Set("rope_scaling.beta_fast", 16.0);
  hf->Set("rope_scaling.beta_slow", 2.0);
  hf->Set("rope_scaling.mscale", 0.7);
  hf->Set("rope_scaling.mscale_all_dim", 1.2);
  config = ParseConfig(*hf);
  ExpectTheta(config->theta, {1, 0.177827941004, 0.0316227766017, 0.0031631699542, 0.000125,
                              2.22284926255e-05, 3.95284707521e-06, 7.02926656488e-07});
  EXPECT_NEAR(config->attention_scale, 0.25 * 0.9167912505456107 * 0.9167912505456107, 1e-7);

  hf->Set("rope_scaling.beta_fast", 2.0);
  ExpectRefused(*hf, absl::StatusCode::kInvalidArgument, "beta_fast");
  hf = HfWithYarn();
  hf->Set("rope_theta", 1.0);
  ExpectRefused(*hf, absl::StatusCode::kInvalidArgument, "base 1");
}

TEST(LlamaConfigTest, YarnInGguf) {
  auto c = FakeGgufLlama();
  c->Set("llama.attention.key_length", int64_t{16});
  c->Set("llama.rope.scaling.type", std::string("yarn"));
  c->Set("llama.rope.scaling.factor", 4.0);
  c->Set("llama.rope.scaling.original_context_length", int64_t{2048});
  const absl::StatusOr<Config> config = ParseConfig(*c);
  ASSERT_TRUE(config.ok()) << config.status();
  ExpectTheta(config->theta, kYarnTheta);
  EXPECT_NEAR(config->attention_scale, 0.25 * kYarnMagnitude * kYarnMagnitude, 1e-7);
}

TEST(LlamaConfigTest, DynamicScalingIsPlainWithinTheTrainedContext) {
  auto hf = FakeHfLlama();
  const std::vector<double> plain = ParseConfig(*hf)->theta;
  hf->Set("rope_scaling.type", std::string("dynamic"));
  hf->Set("rope_scaling.factor", 2.0);
  EXPECT_EQ(ParseConfig(*hf)->theta, plain);
}

TEST(LlamaConfigTest, MistralIsLlamaWithAWindow) {
  auto hf = FakeHfLlama();
  hf->Set("architectures", std::vector<std::string>{"MistralForCausalLM"});
  EXPECT_TRUE(Matches(*hf));
  EXPECT_EQ(ParseConfig(*hf)->trained_context, 64);
  hf->Set("sliding_window", int64_t{16});
  EXPECT_EQ(ParseConfig(*hf)->trained_context, 16);
  hf->Set("sliding_window", int64_t{4096});
  EXPECT_EQ(ParseConfig(*hf)->trained_context, 64);
  hf->Unset("architectures");
  hf->Set("model_type", std::string("mistral"));
  EXPECT_TRUE(Matches(*hf));
  hf->Set("architectures", std::vector<std::string>{"Mistral3ForConditionalGeneration"});
  EXPECT_FALSE(Matches(*hf));
}

TEST(LlamaConfigTest, SwishIsSilu) {
  auto hf = FakeHfLlama();
  hf->Set("hidden_act", std::string("swish"));
  EXPECT_TRUE(ParseConfig(*hf).ok());
}

absl::Status LoadStatus(const Checkpoint& checkpoint) {
  const absl::StatusOr<Config> config = ParseConfig(checkpoint);
  if (!config.ok()) return config.status();
  ArchInfo info;
  return LoadWeights(checkpoint, *config, HostMemory(), &info).status();
}

TEST(LlamaWeightsTest, CountsWhatItUses) {
  auto c = FakeGgufLlama();
  ArchInfo info;
  ASSERT_TRUE(LoadWeights(*c, *ParseConfig(*c), HostMemory(), &info).ok());
  const int64_t layer = 8 * 8 * 2 + 4 * 8 * 2 + 12 * 8 * 3;
  EXPECT_EQ(info.layer_matrix_parameters, 2 * layer);
  EXPECT_EQ(info.parameters, 2 * (layer + 16) + 8 + 2 * 80);
  EXPECT_EQ(info.weight_bytes, info.parameters * 4);
  EXPECT_EQ(info.decode_weight_bytes, info.weight_bytes - 9 * 8 * 4);  // one embedding row of ten
  EXPECT_FALSE(info.has_quantized_weights);
  c->Remove("output.weight");  // tied: the table is read once as the head
  ASSERT_TRUE(LoadWeights(*c, *ParseConfig(*c), HostMemory(), &info).ok());
  EXPECT_EQ(info.decode_weight_bytes, info.weight_bytes + 8 * 4);
}

TEST(LlamaWeightsTest, NamesMissingWrongAndUnexpectedTensors) {
  auto c = FakeGgufLlama();
  c->Remove("blk.1.ffn_up.weight");
  EXPECT_THAT(std::string(LoadStatus(*c).message()), HasSubstr("blk.1.ffn_up.weight"));
  c = FakeGgufLlama();
  c->Add("blk.0.attn_k.weight", {8, 8});
  EXPECT_THAT(std::string(LoadStatus(*c).message()), HasSubstr("blk.0.attn_k.weight"));
  c = FakeGgufLlama();
  c->Add("blk.2.attn_k.weight", {4, 8});
  EXPECT_EQ(LoadStatus(*c).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(LoadStatus(*c).message()), HasSubstr("blk.2.attn_k.weight"));
  c = FakeGgufLlama();
  c->Set("llama.block_count", int64_t{3});
  EXPECT_THAT(std::string(LoadStatus(*c).message()), HasSubstr("blk.2.attn_norm.weight"));
}

}  // namespace
}  // namespace mneme::engine::llama
