// Tensors: each is needed, in its shape, finite; others are refused.
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "engine/arch/arch.h"
#include "engine/arch/rwkv/v4/weights.h"
#include "engine/arch/rwkv/v5/weights.h"
#include "engine/arch/rwkv/v6/weights.h"
#include "engine/arch/rwkv/v7/weights.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/arch/rwkv/fake_rwkv.h"
#include "tests/engine/arch/weight_values.h"
#include "tests/support/compare.h"

namespace mneme::engine {
namespace {

using test::SameBits;
using ::testing::AnyOf;
using ::testing::HasSubstr;

const RwkvVersion kV51 = kRwkvVersions[1], kV51Gate = kRwkvVersions[2], kV6 = kRwkvVersions[4],
                  kV7 = kRwkvVersions[5];

class RwkvWeightsTest : public testing::TestWithParam<RwkvVersion> {};

std::string Message(std::shared_ptr<const Checkpoint> checkpoint) {
  const absl::Status status = CreateArch(std::move(checkpoint), {}).status();
  return status.ok() ? "accepted" : std::string(status.message());
}

TEST_P(RwkvWeightsTest, EveryTensorIsNeededInItsShape) {
  const auto whole = FakeRwkv(GetParam());
  for (const auto& [name, tensor] : whole->tensors()) {
    SCOPED_TRACE(name);
    auto c = FakeRwkv(GetParam());
    c->Remove(name);
    EXPECT_THAT(Message(c), HasSubstr("\"" + name + "\""));
    // The first factor of a low-rank map says what the rank is: another one is the second's fault.
    const std::string second =
        absl::StrReplaceAll(name, {{"lora.0.", "lora.2."}, {"decay_w1", "decay_w2"}});
    for (const size_t axis : {size_t{0}, tensor.shape.size() - 1}) {
      for (const int64_t change : {1, -1}) {
        c = FakeRwkv(GetParam());
        std::vector<int64_t> shape = tensor.shape;
        shape[axis] += change;
        if (shape[axis] == 0) continue;
        c->Add(name, shape);
        EXPECT_THAT(Message(c), AnyOf(HasSubstr(name), HasSubstr(second)))
            << "axis " << axis << " by " << change;
      }
    }
    c = FakeRwkv(GetParam());
    std::vector<int64_t> shape = tensor.shape;
    shape.push_back(2);
    c->Add(name, shape);
    EXPECT_THAT(Message(c), HasSubstr(name)) << "one axis more";
    c->Add(name, {});
    EXPECT_THAT(Message(c), HasSubstr(name)) << "a scalar";
    c->Add(name, {0, 12});
    EXPECT_THAT(Message(c), HasSubstr(name)) << "nothing";
  }
}

TEST_P(RwkvWeightsTest, EveryTensorIsFinite) {
  const auto whole = FakeRwkv(GetParam());
  for (const auto& [name, tensor] : whole->tensors()) {
    auto c = FakeRwkv(GetParam());
    c->Add(name, tensor.shape).back() = std::numeric_limits<float>::infinity();
    EXPECT_THAT(Message(c), HasSubstr(name));
    c->Add(name, tensor.shape).front() = std::nanf("");
    EXPECT_THAT(Message(c), HasSubstr(name));
  }
}

TEST_P(RwkvWeightsTest, RefusesTensorsOfAnotherModel) {
  const std::string first = RwkvLayer(GetParam(), 0), beyond = RwkvLayer(GetParam(), 2);
  for (const std::string& name :
       {beyond + "ln1.weight", first + "attention.key.bias", first + "attention.time_state",
        first + "attn.q_proj.weight", RwkvLayer(GetParam(), 1) + "pre_ln.weight",
        std::string("model.layers.1.pre_norm.weight"), std::string("extra")}) {
    auto c = FakeRwkv(GetParam());
    c->Add(name, {12});
    EXPECT_THAT(Message(c), HasSubstr("\"" + name + "\" is not part of the " + GetParam().arch));
  }
}

TEST_P(RwkvWeightsTest, CountsWhatItUses) {
  const auto c = FakeRwkv(GetParam());
  const auto arch = CreateArch(c, {});
  ASSERT_TRUE(arch.ok()) << arch.status();
  int64_t parameters = 0, layer_matrices = 0;
  for (const auto& [name, tensor] : c->tensors()) {
    int64_t size = 1;
    for (const int64_t n : tensor.shape) size *= n;
    parameters += size;
    const bool low_rank = absl::StrContains(name, "_w1") || absl::StrContains(name, "_w2");
    const bool matrix = absl::EndsWith(name, ".weight") && tensor.shape.size() == 2;
    const bool ends = absl::StrContains(name, "head.") || absl::StrContains(name, "embeddings");
    if ((matrix && !ends) || low_rank) layer_matrices += size;
  }
  const ArchInfo& info = (*arch)->info();
  EXPECT_EQ(info.layer_matrix_parameters, layer_matrices);
  EXPECT_GE(info.parameters, parameters);
  // A value of a head stands for each of its channels.
  EXPECT_EQ(info.parameters, parameters);
  EXPECT_EQ(info.weight_bytes, 4 * parameters);
  EXPECT_EQ(info.decode_weight_bytes, 4 * (parameters - 11 * 12 + 12)) << "one embedding row";
  EXPECT_FALSE(info.has_quantized_weights);
}

INSTANTIATE_TEST_SUITE_P(Versions, RwkvWeightsTest, testing::ValuesIn(kRwkvVersions),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Rwkv4WeightsTest, RatesAndSharesAreThoseOfTheKernels) {
  const auto c = FakeRwkv(kRwkvVersions[0]);
  const std::string attention = "rwkv.blocks.1.attention.";
  c->Add(attention + "time_decay", {12}) = {0, 1, -1, 100, -1000, 2, 0, 0, 0, 0, 0, 0};
  c->Add(attention + "time_mix_value", {12}) = {0, 1, 0.25, 0.75, 0, 0, 0, 0, 0, 0, 0, 0};
  const auto weights = rwkv4::LoadHf(*c, HostMemory());
  ASSERT_TRUE(weights.ok()) << weights.status();
  const rwkv4::TimeMix& layer = weights->time_mix[1];
  const std::vector<float> decay = Values(layer.decay), mu_v = Values(layer.mu_v);
  EXPECT_THAT(
      std::vector<float>(decay.begin(), decay.begin() + 3),
      testing::ElementsAre(-1, testing::FloatEq(-2.7182818f), testing::FloatEq(-0.36787944f)));
  EXPECT_EQ(decay[3], -std::numeric_limits<float>::infinity());
  EXPECT_EQ(decay[4], 0);
  EXPECT_THAT(std::vector<float>(mu_v.begin(), mu_v.begin() + 4),
              testing::ElementsAre(1, 0, 0.75f, 0.25f));
  EXPECT_TRUE(SameBits(Values(layer.bonus), {c->Values(attention + "time_first"), 12}));
}

TEST(Rwkv5WeightsTest, RatesOfVersion51AreOfAHead) {
  const auto c = FakeRwkv(kV51);
  const std::string attention = "rwkv.blocks.1.attention.";
  c->Add(attention + "time_decay", {3}) = {0, 100, -100};
  c->Add(attention + "time_first", {3}) = {0, 1, -1};
  const auto weights = rwkv5::LoadHf(*c, HostMemory());
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->model.config.heads, 3);
  EXPECT_EQ(weights->model.config.head_size, 4);
  const float e = 2.7182818f, decay = 0.36787944f;
  EXPECT_THAT(Values(weights->time_mix[1].decay),
              testing::Pointwise(testing::FloatEq(), {decay, decay, decay, decay, 0.f, 0.f, 0.f,
                                                      0.f, 1.f, 1.f, 1.f, 1.f}));
  EXPECT_THAT(Values(weights->time_mix[1].bonus),
              testing::Pointwise(testing::FloatEq(),
                                 {1.f, 1.f, 1.f, 1.f, e, e, e, e, decay, decay, decay, decay}));
  c->Add(attention + "time_first", {3}) = {0, 100, 0};
  EXPECT_THAT(Message(c), HasSubstr("time_first"));
}

TEST(Rwkv5WeightsTest, TheFirstLayerSaysWhichVersionAllAre) {
  // A gate in one layer only.
  auto c = FakeRwkv(kV51Gate);
  c->Remove("rwkv.blocks.0.attention.gate.weight");
  EXPECT_THAT(Message(c), HasSubstr("gate"));
  c->Remove("rwkv.blocks.0.attention.time_mix_gate");
  EXPECT_THAT(Message(c), HasSubstr("rwkv.blocks.1.attention.gate.weight"));
  c = FakeRwkv(kV51);
  c->Add("rwkv.blocks.0.attention.time_faaaa", {3, 4});
  EXPECT_THAT(Message(c), HasSubstr("time_faaaa")) << "both";
  c->Remove("rwkv.blocks.0.attention.time_first");
  EXPECT_THAT(Message(c), HasSubstr("time_decay")) << "of a head, but the bonus is not";
  c->Remove("rwkv.blocks.0.attention.time_faaaa");
  EXPECT_THAT(Message(c), AllOf(HasSubstr("time_faaaa"), HasSubstr("time_first"))) << "neither";
}

TEST(Rwkv6WeightsTest, LowRankMapsAreTurned) {
  const auto c = FakeRwkv(kV6);
  const auto weights = rwkv6::LoadHf(*c, HostMemory());
  ASSERT_TRUE(weights.ok()) << weights.status();
  const std::string attention = "rwkv.blocks.1.attention.";
  const rwkv6::TimeMix& layer = weights->time_mix[1];
  const float* w1 = c->Values(attention + "time_maa_w1");  // [12, 10]
  const float* w2 = c->Values(attention + "time_maa_w2");  // [5, 2, 12]
  EXPECT_EQ(layer.mix_a.rows(), 10);
  EXPECT_EQ(Values(layer.mix_a)[7 * 12 + 3], w1[3 * 10 + 7]);
  ASSERT_EQ(layer.mix_b.size(), 5u);
  EXPECT_EQ(layer.mix_b[rwkv6::kG].rows(), 12);
  EXPECT_EQ(Values(layer.mix_b[rwkv6::kG])[11 * 2 + 1], w2[(4 * 2 + 1) * 12 + 11]);
  EXPECT_EQ(layer.decay.rank(), 3);
  EXPECT_EQ(Values(layer.decay.a)[2 * 12 + 5], c->Values(attention + "time_decay_w1")[5 * 3 + 2]);
}

TEST(Rwkv7WeightsTest, RefusesExtensionsByName) {
  for (const char* name :
       {"ffn.s_emb.weight", "ffn.s_emb_x.weight", "ffn.s0", "ffn.s1", "ffn.s2"}) {
    auto c = FakeRwkv(kV7);
    c->Add("model.layers.1." + std::string(name), {12});
    EXPECT_THAT(Message(c), AllOf(HasSubstr(name), HasSubstr("RWKV-7a")));
  }
  for (const char* name : {"qkv.weight", "model.layers.0.qkv.q.weight"}) {
    auto c = FakeRwkv(kV7);
    c->Add(name, {12});
    EXPECT_THAT(Message(c), AllOf(HasSubstr(name), HasSubstr("RWKV-7b")));
  }
}

TEST(Rwkv7WeightsTest, ReadsEveryFormOfTheSameModel) {
  const auto original = FakeRwkv(kV7);
  const auto plain = rwkv7::LoadFla(*original, HostMemory());
  ASSERT_TRUE(plain.ok()) << plain.status();
  // One tensor of shares, factors for products from the right, a value map of layer 0 that nobody
  // uses.
  auto c = FakeRwkv(kV7);
  const std::string attention = "model.layers.1.attn.";
  const char* const kShares[] = {"x_r", "x_w", "x_k", "x_v", "x_a", "x_g"};
  std::vector<float> fused;
  for (const char* name : kShares) {
    const float* share = c->Values(attention + name);
    fused.insert(fused.end(), share, share + 12);
    c->Remove(attention + name);
  }
  c->Add(attention + "x_x", {6, 12}) = fused;
  const auto turn = [&](const std::string& name, int64_t rows, int64_t columns) {
    const std::vector<float> old(c->Values(name), c->Values(name) + rows * columns);
    std::vector<float>& turned = c->Add(name, {columns, rows});
    for (int64_t i = 0; i < rows * columns; ++i) turned[i % columns * rows + i / columns] = old[i];
  };
  turn(attention + "w_lora.lora.0.weight", 3, 12);
  turn(attention + "w_lora.lora.2.weight", 12, 3);
  c->Add("model.layers.0.attn.v_lora.lora.0.weight", {7, 7});
  const auto other = rwkv7::LoadFla(*c, HostMemory());
  ASSERT_TRUE(other.ok()) << other.status();
  const rwkv7::TimeMix &a = plain->time_mix[1], &b = other->time_mix[1];
  EXPECT_TRUE(SameBits(Values(b.mu_r), Values(a.mu_r)));
  EXPECT_TRUE(SameBits(Values(b.mu_w), Values(a.mu_w)));
  EXPECT_TRUE(SameBits(Values(b.mu_k), Values(a.mu_k)));
  EXPECT_TRUE(SameBits(Values(b.mu_v), Values(a.mu_v)));
  EXPECT_TRUE(SameBits(Values(b.mu_a), Values(a.mu_a)));
  EXPECT_TRUE(SameBits(Values(b.mu_g), Values(a.mu_g)));
  EXPECT_EQ(b.w.rank(), 3);
  EXPECT_TRUE(SameBits(Values(b.w.a), Values(a.w.a)));
  EXPECT_TRUE(SameBits(Values(b.w.b), Values(a.w.b)));
}

}  // namespace
}  // namespace mneme::engine
