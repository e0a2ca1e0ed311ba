// Properties that hold for any weights (the goldens hold for some).
#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/arch/arch_runner.h"
#include "tests/engine/arch/rwkv/fake_rwkv.h"
#include "tests/support/compare.h"

namespace mneme::engine {
namespace {

using test::AllClose;
using test::SameBits;

constexpr uint32_t kSeed = 20241122;
constexpr int64_t kVocab = 11;
const RwkvVersion kV4 = kRwkvVersions[0], kV51 = kRwkvVersions[1], kV51Gate = kRwkvVersions[2],
                  kV52 = kRwkvVersions[3], kV6 = kRwkvVersions[4], kV7 = kRwkvVersions[5];

using Runner = ArchRunner;

bool AllFinite(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
}

class RwkvTest : public testing::TestWithParam<RwkvVersion> {};

TEST_P(RwkvTest, StateIsWhatTheDocumentSays) {
  for (const int layers : {1, 3}) {
    // Windows and types of keys are other architectures' options.
    const auto arch =
        CreateArch(FakeRwkv(GetParam(), layers), {.window_tokens = 5, .kv_dtype = DType::kF32});
    ASSERT_TRUE(arch.ok()) << arch.status();
    const StateSchema& schema = (*arch)->schema();
    const bool v4 = std::string(GetParam().name) == "v4";
    const std::vector<std::string> names =
        v4 ? std::vector<std::string>{"att_shift", "ffn_shift", "numerator", "denominator",
                                      "exponent"}
           : std::vector<std::string>{"att_shift", "ffn_shift", "wkv"};
    ASSERT_EQ(schema.tensors().size(), names.size() * layers);
    int64_t bytes = 0;
    for (size_t i = 0; i < schema.tensors().size(); ++i) {
      const StateTensor& tensor = schema.tensors()[i];
      EXPECT_EQ(tensor.layer, static_cast<int32_t>(i / names.size()));
      EXPECT_EQ(tensor.name, names[i % names.size()]);
      EXPECT_EQ(tensor.shape,
                (tensor.name == "wkv" ? std::vector<int64_t>{3, 4, 4} : std::vector<int64_t>{12}));
      EXPECT_EQ(tensor.dtype, DType::kF32);
      EXPECT_EQ(tensor.kind, StateKind::kFixed);
      bytes += static_cast<int64_t>(tensor.size_bytes);
    }
    EXPECT_EQ(bytes, layers * GetParam().state_bytes);
    EXPECT_THAT((*arch)->info().state_formula,
                testing::EndsWith(" = " + std::to_string(bytes) + " bytes"));
  }
}

TEST_P(RwkvTest, BeginsAsTheDocumentSays) {
  const Runner run(FakeRwkv(GetParam()));
  for (const StateTensor& tensor : run.arch().schema().tensors()) {
    const std::vector<float> values = run.Copy(tensor.layer, tensor.name);
    const float expected = tensor.name == "exponent" ? -1e30f : 0.0f;
    EXPECT_THAT(values, testing::Each(expected)) << tensor.name;
  }
}

// Every token of the past counts, the one before in particular.
TEST_P(RwkvTest, RemembersAndDistinguishesOrder) {
  const auto last = [&](const std::vector<TokenId>& tokens) {
    return Runner(FakeRwkv(GetParam())).Feed(tokens, 1);
  };
  const std::vector<float> base = last({1, 2, 3, 4, 5});
  EXPECT_FALSE(AllClose(last({9, 2, 3, 4, 5}), base, {1e-6, 1e-6}));
  EXPECT_FALSE(AllClose(last({2, 1, 3, 4, 5}), base, {1e-6, 1e-6}));
  EXPECT_FALSE(AllClose(last({1, 2, 3, 9, 5}), base, {1e-6, 1e-6}));
}

TEST_P(RwkvTest, FiftyThousandTokensLeaveAFiniteStateOfTheSameSize) {
  RecordProperty("seed", kSeed);
  Runner run(FakeRwkv(GetParam()));
  std::mt19937 random(kSeed);
  const size_t bytes = run.state().block.size();
  int64_t fed = 0;
  while (fed < 50'000) {
    std::vector<TokenId> tokens(std::min<int64_t>(1 + random() % 512, 50'000 - fed));
    for (TokenId& token : tokens) token = static_cast<TokenId>(random() % kVocab);
    ASSERT_TRUE(AllFinite(run.Feed(tokens, 1))) << "at " << fed << ", seed " << kSeed;
    fed += static_cast<int64_t>(tokens.size());
  }
  EXPECT_EQ(run.state().position, 50'000);
  EXPECT_EQ(run.state().block.size(), bytes);
  EXPECT_EQ(bytes, run.arch().schema().size_bytes());
  for (const StateTensor& tensor : run.arch().schema().tensors()) {
    EXPECT_TRUE(AllFinite(run.Copy(tensor.layer, tensor.name))) << tensor.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Versions, RwkvTest, testing::ValuesIn(kRwkvVersions),
                         [](const auto& info) { return std::string(info.param.name); });

const std::vector<TokenId> kText = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 10, 8};

class RwkvBackendTest : public testing::TestWithParam<std::string_view> {};

// Decays far outside what models have: forget at once, never forget.
TEST_P(RwkvBackendTest, ExtremeDecaysGiveNumbers) {
  for (const RwkvVersion& version : {kV4, kV51, kV52, kV6}) {
    for (const float extreme : {-1000.0f, 80.0f, 1000.0f}) {
      auto c = FakeRwkv(version);
      for (const int layer : {0, 1}) {
        const std::string name = RwkvLayer(version, layer) + "attention.time_decay";
        std::vector<float>& values = c->Add(name, c->tensors().at(name).shape);
        std::fill(values.begin(), values.end(), extreme);
      }
      EXPECT_TRUE(AllFinite(Runner(c, GetParam()).Feed(kText)))
          << version.name << " time_decay " << extreme;
    }
  }
}

// With keys that do not reach it, what was read decays to nothing: version 4 then reports the
// newest value alone. Keys of 1000 and -1000 would overflow sums that were not kept relative.
TEST_P(RwkvBackendTest, Version4SurvivesLargeKeys) {
  auto c = FakeRwkv(kV4);
  for (const int layer : {0, 1}) {
    const std::string name = RwkvLayer(kV4, layer) + "attention.key.weight";
    for (float& w : c->Add(name, {12, 12})) w *= 4000;
  }
  Runner run(c, GetParam());
  EXPECT_TRUE(AllFinite(run.Feed(kText)));
  const std::vector<float> exponent = run.Copy(0, "exponent");
  EXPECT_GT(*std::max_element(exponent.begin(), exponent.end()), 100.0f);
}

// Version 5.1 is 5.2 with one decay and one bonus a head, e^time_first.
TEST_P(RwkvBackendTest, Version51IsASpecialCaseOf52) {
  auto old = FakeRwkv(kV51Gate), spread = FakeRwkv(kV52);
  for (const auto& [name, tensor] : old->tensors()) {
    if (!spread->tensors().contains(name)) continue;
    if (spread->tensors().at(name).shape != tensor.shape) continue;
    const float* values = old->Values(name);
    std::vector<float>& copy = spread->Add(name, tensor.shape);
    copy.assign(values, values + copy.size());
  }
  for (const int layer : {0, 1}) {
    const std::string attention = RwkvLayer(kV52, layer) + "attention.";
    std::vector<float>& decay = spread->Add(attention + "time_decay", {3, 4});
    std::vector<float>& bonus = spread->Add(attention + "time_faaaa", {3, 4});
    for (int i = 0; i < 12; ++i) {
      decay[i] = old->Values(attention + "time_decay")[i / 4];
      bonus[i] = std::exp(old->Values(attention + "time_first")[i / 4]);
    }
  }
  EXPECT_TRUE(
      SameBits(Runner(spread, GetParam()).Feed(kText), Runner(old, GetParam()).Feed(kText)));
}

// Version 6 whose low-rank maps give nothing is 5.2 with the complementary shares.
TEST_P(RwkvBackendTest, Version52IsASpecialCaseOf6) {
  auto v5 = FakeRwkv(kV52), v6 = FakeRwkv(kV6);
  const auto copy = [&](const std::string& to, const std::string& from, bool share) {
    std::vector<float>& values = v6->Add(to, v6->tensors().at(to).shape);
    const float* source = v5->Values(from);
    for (size_t i = 0; i < values.size(); ++i) values[i] = share ? 1.0f - source[i] : source[i];
  };
  for (const auto& [name, tensor] : v5->tensors()) {
    if (v6->tensors().contains(name)) copy(name, name, false);
  }
  for (const int layer : {0, 1}) {
    const std::string attention = RwkvLayer(kV6, layer) + "attention.";
    const std::string ffn = RwkvLayer(kV6, layer) + "feed_forward.";
    copy(attention + "time_maa_r", attention + "time_mix_receptance", true);
    copy(attention + "time_maa_k", attention + "time_mix_key", true);
    copy(attention + "time_maa_v", attention + "time_mix_value", true);
    copy(attention + "time_maa_g", attention + "time_mix_gate", true);
    copy(ffn + "time_maa_k", ffn + "time_mix_key", true);
    copy(ffn + "time_maa_r", ffn + "time_mix_receptance", true);
    for (const char* name : {"time_maa_w2", "time_decay_w2"}) {
      std::vector<float>& zeros =
          v6->Add(attention + name, v6->tensors().at(attention + name).shape);
      std::fill(zeros.begin(), zeros.end(), 0.0f);
    }
  }
  EXPECT_TRUE(AllClose(Runner(v6, GetParam()).Feed(kText), Runner(v5, GetParam()).Feed(kText),
                       {1e-5, 1e-5}));
}

INSTANTIATE_TEST_SUITE_P(Backends, RwkvBackendTest, testing::ValuesIn(BackendNameList()),
                         [](const auto& info) { return std::string(info.param); });

TEST(RwkvKeysTest, TheDivisorAndTheEpsilonReachTheMathematics) {
  for (const RwkvVersion& version : {kV52, kV6}) {
    auto c = FakeRwkv(version);
    const std::vector<float> base = Runner(c).Feed(kText);
    c->Set("head_size_divisor", int64_t{100});
    EXPECT_FALSE(AllClose(Runner(c).Feed(kText), base, {1e-4, 1e-4})) << version.name;
  }
  auto c = FakeRwkv(kV7);
  const std::vector<float> base = Runner(c).Feed(kText);
  c->Set("norm_eps", 0.1);
  EXPECT_FALSE(AllClose(Runner(c).Feed(kText), base, {1e-4, 1e-4}));
}

// Public files have these keys with values that say nothing of the stored weights.
TEST(RwkvKeysTest, RescalingAndHeadCountsOfTheFileAreNotUsed) {
  auto c = FakeRwkv(kV6);
  const std::vector<float> base = Runner(c).Feed(kText);
  c->Set("rescale_every", int64_t{1});
  c->Set("num_attention_heads", int64_t{64});
  EXPECT_TRUE(SameBits(Runner(c).Feed(kText), base));
}

}  // namespace
}  // namespace mneme::engine
