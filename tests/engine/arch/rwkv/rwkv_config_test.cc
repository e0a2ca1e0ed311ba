// Keys of config.json: what is required, refused, ignored and assumed.
#include <cmath>
#include <string>
#include <utility>

#include "engine/arch/arch.h"
#include "engine/arch/rwkv/v5/weights.h"
#include "engine/arch/rwkv/v6/weights.h"
#include "engine/arch/rwkv/v7/weights.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/arch/rwkv/fake_rwkv.h"

namespace mneme::engine {
namespace {

using ::testing::HasSubstr;
using Values = std::vector<std::pair<const char*, MetadataValue>>;

class RwkvConfigTest : public testing::TestWithParam<RwkvVersion> {
 protected:
  bool Fla() const { return std::string(GetParam().arch) == "rwkv7"; }
  bool HasHeads() const { return std::string(GetParam().arch) != "rwkv4"; }
};

std::string Message(std::shared_ptr<const Checkpoint> checkpoint) {
  const absl::Status status = CreateArch(std::move(checkpoint), {}).status();
  return status.ok() ? "accepted" : std::string(status.message());
}

TEST_P(RwkvConfigTest, IsServedByItsArchitecture) {
  const auto c = FakeRwkv(GetParam());
  for (const ArchEntry& entry : AllArchs()) {
    EXPECT_EQ(entry.matches(*c), entry.name == GetParam().arch) << entry.name;
    EXPECT_FALSE(entry.matches(FakeCheckpoint(Checkpoint::Format::kSafetensors))) << entry.name;
  }
  const auto arch = CreateArch(c, {});
  ASSERT_TRUE(arch.ok()) << arch.status();
  EXPECT_EQ((*arch)->info().architecture, GetParam().arch);
  EXPECT_EQ((*arch)->info().vocab_size, 11);
  EXPECT_EQ((*arch)->info().num_layers, 2);
  EXPECT_EQ((*arch)->info().effective_context_tokens, 0);
}

TEST_P(RwkvConfigTest, RefusesMissingKeysByName) {
  for (const char* key : {"vocab_size", "hidden_size", "num_hidden_layers"}) {
    auto c = FakeRwkv(GetParam());
    c->Unset(key);
    EXPECT_THAT(Message(c), HasSubstr(key));
  }
}

TEST_P(RwkvConfigTest, RefusesValuesByName) {
  Values bad = {
      {"vocab_size", int64_t{0}},        {"vocab_size", int64_t{1} << 40},
      {"vocab_size", std::string("11")}, {"hidden_size", int64_t{-12}},
      {"hidden_size", int64_t{1} << 60}, {"hidden_size", 12.5},
      {"num_hidden_layers", int64_t{0}}, {"num_hidden_layers", int64_t{5000}},
      {"num_hidden_layers", true},       {"intermediate_size", std::string("wide")},
      {"tie_word_embeddings", true},     {"tie_word_embeddings", int64_t{0}},
  };
  const char* eps = Fla() ? "norm_eps" : "layer_norm_epsilon";
  for (const double value : {0.0, -1e-5, 1e-60, 2.0, std::nan("")}) bad.push_back({eps, value});
  bad.push_back({eps, std::string("1e-5")});
  if (Fla()) {
    const Values more = {
        {"head_dim", int64_t{5}},
        {"head_dim", 4.0},
        {"num_heads", int64_t{4}},
        {"hidden_act", std::string("relu")},
        {"hidden_act", int64_t{1}},
        {"norm_first", false},
        {"norm_bias", false},
        {"norm_bias", std::string("true")},
        {"value_dim", int64_t{24}},
        {"value_dim", std::vector<int64_t>{12, 24}},
        {"value_dim", std::string("12")},
        {"attn.layers", std::vector<int64_t>{1}},
    };
    bad.insert(bad.end(), more.begin(), more.end());
  } else {
    bad.push_back({"attention_hidden_size", int64_t{24}});
    bad.push_back({"attention_hidden_size", std::string("12")});
    if (HasHeads()) {
      bad.push_back({"head_size", int64_t{3}});
      bad.push_back({"head_size", true});
      for (const double value : {0.0, -8.0, 1e-30, 1e30}) {
        bad.push_back({"head_size_divisor", value});
      }
      bad.push_back({"head_size_divisor", std::string("8")});
    }
  }
  auto wider = FakeRwkv(GetParam());
  wider->Set("intermediate_size", int64_t{11});
  EXPECT_THAT(Message(wider), HasSubstr("key.weight"));
  for (const auto& [key, value] : bad) {
    auto c = FakeRwkv(GetParam());
    c->Set(key, value);
    EXPECT_THAT(Message(c), HasSubstr(key)) << "value " << value.index();
  }
}

TEST_P(RwkvConfigTest, OptionalKeysMayBeAbsent) {
  auto c = FakeRwkv(GetParam());
  for (const char* key : {"attention_hidden_size", "head_size", "head_dim", "num_heads"}) {
    c->Unset(key);
  }
  if (Fla()) {
    c->Unset("intermediate_size");
    EXPECT_THAT(Message(c), HasSubstr("expected [48, 12]")) << "four times the width by default";
    c->Set("hidden_ratio", -1.0);
    EXPECT_THAT(Message(c), HasSubstr("hidden_ratio"));
    c->Set("hidden_ratio", 10.0 / 12);
  } else {
    c->Unset("intermediate_size");
  }
  EXPECT_EQ(Message(c), "accepted");
}

TEST_P(RwkvConfigTest, IgnoresKeysThatSayNothing) {
  auto c = FakeRwkv(GetParam());
  c->Set("rescale_every", int64_t{6});
  c->Set("num_attention_heads", int64_t{64});
  c->Set("decay_low_rank_dim", int64_t{64});
  c->Set("use_cache", true);
  c->Set("tokenizer", std::string("bytes"));
  c->Set("hidden_act", std::string("sqrelu"));
  EXPECT_EQ(Message(c), "accepted");
}

INSTANTIATE_TEST_SUITE_P(Versions, RwkvConfigTest, testing::ValuesIn(kRwkvVersions),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(RwkvModelTypeTest, OthersAreRefusedByTheirNames) {
  for (const char* type : {"arwkv7", "rwkv6qwen2", "rwkv8", "rwkv-7", "RWKV"}) {
    auto c = FakeRwkv(kRwkvVersions[5]);
    c->Set("model_type", std::string(type));
    const absl::Status status = CreateArch(c, {}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << type;
    EXPECT_THAT(std::string(status.message()), HasSubstr("'" + std::string(type) + "'"));
  }
  // Also where "architectures" calls it something else.
  auto c = FakeRwkv(kRwkvVersions[5]);
  c->Set("architectures", std::vector<std::string>{"SomethingForCausalLM"});
  for (const char* type : {"arwkv7", "rwkv6qwen2"}) {
    c->Set("model_type", std::string(type));
    EXPECT_THAT(Message(c), HasSubstr(type));
  }
  c->Set("model_type", int64_t{7});
  EXPECT_THAT(Message(c), HasSubstr("not supported"));
}

// Of the group norm: the layer norms' epsilon times the square of the divisor, or times the head.
TEST(RwkvEpsilonTest, FollowsTheKeys) {
  auto v5 = FakeRwkv(kRwkvVersions[3]), v6 = FakeRwkv(kRwkvVersions[4]),
       v7 = FakeRwkv(kRwkvVersions[5]);
  EXPECT_FLOAT_EQ(rwkv5::LoadHf(*v5, HostMemory())->model.config.norm_eps, 1e-5f);
  EXPECT_FLOAT_EQ(rwkv5::LoadHf(*v5, HostMemory())->model.config.group_norm_eps, 64e-5f);
  EXPECT_FLOAT_EQ(rwkv6::LoadHf(*v6, HostMemory())->model.config.group_norm_eps, 64e-5f);
  EXPECT_FLOAT_EQ(rwkv7::LoadFla(*v7, HostMemory())->model.config.group_norm_eps, 4e-5f);
  v5->Set("layer_norm_epsilon", 1e-3);
  v6->Set("head_size_divisor", int64_t{2});
  v7->Set("norm_eps", 1e-3);
  EXPECT_FLOAT_EQ(rwkv5::LoadHf(*v5, HostMemory())->model.config.norm_eps, 1e-3f);
  EXPECT_FLOAT_EQ(rwkv5::LoadHf(*v5, HostMemory())->model.config.group_norm_eps, 64e-3f);
  EXPECT_FLOAT_EQ(rwkv6::LoadHf(*v6, HostMemory())->model.config.group_norm_eps, 4e-5f);
  EXPECT_FLOAT_EQ(rwkv7::LoadFla(*v7, HostMemory())->model.config.group_norm_eps, 4e-3f);
}

}  // namespace
}  // namespace mneme::engine
