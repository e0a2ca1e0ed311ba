// The options of PanGu-pi beside the Llama block without them: what must be equal to the bit, what
// an option does, and what is refused.
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/arch/fake_host.h"
#include "tests/support/compare.h"

namespace mneme::engine {
namespace {

using test::AllClose;
using test::SameBits;

using CheckpointPtr = std::shared_ptr<FakeCheckpoint>;

CheckpointPtr FakePangu(const std::string& model_type = "pangu_pi") {
  auto c = FakeHost(model_type, 2, 4);
  c->Unset("mneme_config_version");
  c->Set("max_position_embeddings", int64_t{64});
  return c;
}

std::string Layer(int i, const std::string& name) {
  return "model.layers." + std::to_string(i) + "." + name;
}

// Adds what f(c, "model.layers.i.") adds, to both layers.
template <typename F>
CheckpointPtr ForLayers(CheckpointPtr c, F f) {
  for (int i = 0; i < 2; ++i) f(*c, Layer(i, ""));
  return c;
}

// `count` shortcuts of width 2.
CheckpointPtr WithShortcuts(CheckpointPtr c, int count) {
  c->Set("aug_count", int64_t{count});
  c->Set("aug_ratio", int64_t{4});
  return ForLayers(c, [count](FakeCheckpoint& c, const std::string& layer) {
    for (int j = 0; j < count; ++j) {
      const std::string name = layer + "self_attn.aug." + std::to_string(j);
      c.Add(name + ".down.weight", {2, 8}, 1);
      c.Add(name + ".up.weight", {8, 2}, 1);
    }
  });
}

// n branches with scales and biases per channel.
CheckpointPtr WithSeries(CheckpointPtr c, int64_t n) {
  c->Set("siaf_n", n);
  return ForLayers(c, [n](FakeCheckpoint& c, const std::string& layer) {
    c.Add(layer + "mlp.siaf.scale", {n, 12}, 2);
    c.Add(layer + "mlp.siaf.bias", {n, 12}, 1);
  });
}

class PanguTest : public testing::TestWithParam<std::string_view> {
 protected:
  std::vector<float> Read(CheckpointPtr c) {
    return ArchRunner(std::move(c), GetParam()).Feed({3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8});
  }
  static bool Far(const std::vector<float>& a, const std::vector<float>& b) {
    return !AllClose(a, b, {1e-3, 1e-3});
  }
};

TEST_P(PanguTest, WithoutOptionsItIsLlamaToTheBit) {
  const std::vector<float> llama = Read(FakePangu("llama"));
  EXPECT_TRUE(SameBits(Read(FakePangu()), llama));
  auto c = FakePangu();  // every default, said
  c->Set("siaf_n", int64_t{1});
  c->Set("siaf_mode", std::string("scaled"));
  c->Set("siaf_act", std::string("silu"));
  c->Set("aug_count", int64_t{0});
  c->Set("aug_ratio", int64_t{32});
  c->Set("aug_input", std::string("normed"));
  c->Set("aug_act", std::string("gelu_erf"));
  c->Set("aug_bias", false);
  EXPECT_TRUE(SameBits(Read(c), llama));
  // One branch of scale 1 and bias 0 goes another way to the same numbers.
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{1, 12}, {1, 1}, {1}}) {
    c = ForLayers(FakePangu(), [&](FakeCheckpoint& c, const std::string& layer) {
      for (float& x : c.Add(layer + "mlp.siaf.scale", shape)) x = 1;
      c.Add(layer + "mlp.siaf.bias", shape, 0);
    });
    EXPECT_TRUE(SameBits(Read(c), llama));
  }
}

TEST_P(PanguTest, TheSameKeysWorkUnderLlama) {
  const auto options = [](CheckpointPtr c) { return WithShortcuts(WithSeries(c, 3), 2); };
  const std::vector<float> pangu = Read(options(FakePangu()));
  EXPECT_TRUE(SameBits(Read(options(FakePangu("llama"))), pangu));
  auto named = options(FakePangu("llama"));
  named->Set("architectures", std::vector<std::string>{"LlamaForCausalLM"});
  EXPECT_TRUE(SameBits(Read(named), pangu));
  EXPECT_TRUE(Far(pangu, Read(FakePangu())));
}

TEST_P(PanguTest, TwoEqualBranchesDoubleTheFeedForward) {
  auto twice = FakePangu();
  twice->Set("siaf_n", int64_t{2});  // no scale and no bias: 1 and 0
  auto doubled = FakePangu();
  for (int i = 0; i < 2; ++i) {
    const std::string name = Layer(i, "mlp.down_proj.weight");
    const float* old = doubled->Values(name);
    std::vector<float> values(old, old + 8 * 12);
    for (float& x : values) x *= 2;
    doubled->Add(name, {8, 12}) = values;
  }
  EXPECT_TRUE(SameBits(Read(twice), Read(doubled)));
}

TEST_P(PanguTest, ProjectedBranchesHaveGatesOfTheirOwn) {
  // Scales are powers of two, so that a scaled gate is exact.
  const float scales[] = {2, 0.5f};
  auto scaled = FakePangu(), projected = FakePangu();
  for (const auto& c : {scaled, projected}) {
    c->Set("siaf_n", int64_t{2});
    c->Set("siaf_act", std::vector<std::string>{"relu", "gelu_tanh"});
  }
  projected->Set("siaf_mode", std::string("projected"));
  for (int i = 0; i < 2; ++i) {
    scaled->Add(Layer(i, "mlp.siaf.scale"), {2}) = {scales[0], scales[1]};
    const float* gate = projected->Values(Layer(i, "mlp.gate_proj.weight"));
    for (int j = 0; j < 2; ++j) {
      std::vector<float> own(gate, gate + 12 * 8);
      for (float& x : own) x *= scales[j];
      projected->Add(Layer(i, "mlp.gate_proj." + std::to_string(j) + ".weight"), {12, 8}) = own;
    }
    projected->Remove(Layer(i, "mlp.gate_proj.weight"));
  }
  EXPECT_TRUE(AllClose(Read(projected), Read(scaled), {1e-6, 1e-6}));
}

TEST_P(PanguTest, EveryActivationIsAnother) {
  std::vector<std::vector<float>> seen;
  for (const char* name : {"silu", "gelu_erf", "gelu_tanh", "relu", "tanh"}) {
    auto c = WithShortcuts(FakePangu(), 1);
    c->Set("siaf_act", std::string(name));
    c->Set("aug_act", std::string(name));
    seen.push_back(Read(c));
    for (size_t i = 0; i + 1 < seen.size(); ++i) EXPECT_FALSE(SameBits(seen[i], seen.back()));
  }
  // The two forms of GELU are within a thousandth of each other.
  EXPECT_TRUE(AllClose(seen[1], seen[2], {2e-2, 2e-2}));
}

TEST_P(PanguTest, ShortcutsThatGiveNothingChangeNothing) {
  auto c = WithShortcuts(FakePangu(), 2);
  for (int i = 0; i < 2; ++i) {
    for (const char* up : {"self_attn.aug.0.up.weight", "self_attn.aug.1.up.weight"}) {
      c->Add(Layer(i, up), {8, 2}, 0);
    }
  }
  EXPECT_TRUE(SameBits(Read(c), Read(FakePangu())));
}

// Two shortcuts that read the same and write halves are one that writes the whole.
TEST_P(PanguTest, ShortcutsAddUp) {
  auto one = WithShortcuts(FakePangu(), 1), two = WithShortcuts(FakePangu(), 2);
  for (int i = 0; i < 2; ++i) {
    const float* down = one->Values(Layer(i, "self_attn.aug.0.down.weight"));
    const float* up = one->Values(Layer(i, "self_attn.aug.0.up.weight"));
    for (const std::string name : {"self_attn.aug.0", "self_attn.aug.1"}) {
      two->Add(Layer(i, name + ".down.weight"), {2, 8}).assign(down, down + 16);
      std::vector<float>& half = two->Add(Layer(i, name + ".up.weight"), {8, 2});
      for (int e = 0; e < 16; ++e) half[e] = up[e] / 2;
    }
  }
  EXPECT_TRUE(AllClose(Read(two), Read(one), {1e-5, 1e-5}));
  EXPECT_TRUE(Far(Read(one), Read(FakePangu())));
  auto raw = WithShortcuts(FakePangu(), 1);
  raw->Set("aug_input", std::string("raw"));
  EXPECT_TRUE(Far(Read(raw), Read(WithShortcuts(FakePangu(), 1))));
}

// With r = 1 and up the identity, a shortcut is act(W z): here of a bias alone, so that what is
// added to the residual is known.
TEST_P(PanguTest, BiasesEnterWhereTheEquationPutsThem) {
  const float bias = 0.75f, added = 0.25f;
  auto c = FakePangu();
  c->Set("aug_count", int64_t{1});
  c->Set("aug_ratio", int64_t{1});
  c->Set("aug_act", std::string("tanh"));
  c->Set("aug_bias", true);
  auto sum = FakePangu();  // the same constant, by way of the output projection's bias
  sum->Set("attention_bias", true);
  for (int i = 0; i < 2; ++i) {
    const std::string name = Layer(i, "self_attn.aug.0");
    c->Add(name + ".down.weight", {8, 8}, 0);
    c->Add(name + ".down.bias", {8}).assign(8, bias);
    std::vector<float>& up = c->Add(name + ".up.weight", {8, 8}, 0);
    for (int j = 0; j < 8; ++j) up[j * 9] = 1;
    c->Add(name + ".up.bias", {8}).assign(8, added);
    sum->Add(Layer(i, "self_attn.o_proj.bias"), {8}).assign(8, std::tanh(bias) + added);
  }
  EXPECT_TRUE(AllClose(Read(c), Read(sum), {1e-5, 1e-5}));
}

TEST_P(PanguTest, StateIsThatOfLlama) {
  ArchRunner pangu(WithShortcuts(WithSeries(FakePangu(), 2), 1), GetParam());
  EXPECT_EQ(pangu.arch().info().architecture, "pangu_pi");
  const int64_t bytes = 2 * 2 * 2 * 4 * 4 * 64;  // 2 L Hk Dh b (S + R)
  EXPECT_THAT(pangu.arch().info().state_formula,
              testing::EndsWith(" = " + std::to_string(bytes) + " bytes"));
  ArchRunner llama(FakePangu("llama"), GetParam());
  EXPECT_EQ(llama.arch().info().architecture, "llama");
  EXPECT_EQ(pangu.arch().schema().hash(), llama.arch().schema().hash());
}

TEST_P(PanguTest, ALongRandomReadStaysFinite) {
  // The reference is some twenty times slower and computes the same.
  const int64_t tokens = GetParam() == "cpu" ? 50'000 : 5'000;
  ArchRunner run(WithShortcuts(WithSeries(FakePangu(), 2), 1), GetParam(),
                 {.window_tokens = 24, .kv_dtype = DType::kF32});
  ASSERT_NO_FATAL_FAILURE(ExpectLongRunIsFinite(run, tokens));
}

INSTANTIATE_TEST_SUITE_P(Backends, PanguTest, testing::ValuesIn(BackendNameList()),
                         [](const auto& info) { return std::string(info.param); });

TEST(PanguConfigTest, RefusesValuesByName) {
  const std::pair<const char*, MetadataValue> bad[] = {
      {"siaf_n", int64_t{0}},
      {"siaf_n", int64_t{1} << 40},
      {"siaf_n", std::string("two")},
      {"siaf_mode", std::string("series")},
      {"siaf_act", std::string("swish")},
      {"siaf_act", int64_t{1}},
      {"siaf_act", std::vector<std::string>{"silu", "silu"}},
      {"siaf_act", std::vector<std::string>{"swish"}},
      {"siaf_scale", 2.0},
      {"aug_count", int64_t{-1}},
      {"aug_count", 1.5},
      {"aug_ratio", int64_t{0}},
      {"aug_ratio", int64_t{3}},
      {"aug_input", std::string("both")},
      {"aug_act", std::string("swish")},
      {"aug_bias", int64_t{1}},
      {"aug_rank", int64_t{4}},
  };
  for (const char* type : {"pangu_pi", "llama"}) {
    for (const auto& [key, value] : bad) {
      auto c = WithShortcuts(FakePangu(type), 1);
      c->Set(key, value);
      ExpectRefused(c, key);
    }
  }
}

TEST(PanguWeightsTest, EveryTensorIsNeededInItsShape) {
  const auto whole = [] {
    auto c = WithShortcuts(WithSeries(FakePangu(), 2), 1);
    c->Set("aug_bias", true);
    return ForLayers(c, [](FakeCheckpoint& c, const std::string& layer) {
      c.Add(layer + "self_attn.aug.0.down.bias", {2});
      c.Add(layer + "self_attn.aug.0.up.bias", {8});
    });
  };
  ASSERT_TRUE(CreateArch(whole(), {}).ok());
  ExpectEveryTensorIsNeededInItsShape(whole, /*optional=*/"mlp.siaf");
}

TEST(PanguWeightsTest, RefusesTensorsThatItsOptionsDoNotName) {
  for (const char* name : {"mlp.siaf.scale2", "self_attn.aug.1.up.weight",
                           "self_attn.aug.0.up.bias", "mlp.gate_proj.0.weight"}) {
    auto c = WithShortcuts(FakePangu(), 1);
    c->Add(Layer(0, name), {8});
    ExpectRefused(c, name, "not part of the pangu_pi architecture");
  }
  // Each mode has its own.
  auto c = FakePangu();
  c->Set("siaf_mode", std::string("projected"));
  ExpectRefused(c, "mlp.gate_proj.0.weight", "missing");
  ForLayers(c, [](FakeCheckpoint& c, const std::string& layer) {
    c.Add(layer + "mlp.gate_proj.0.weight", {12, 8});
  });
  ExpectRefused(c, "mlp.gate_proj.weight", "not part of");
  ForLayers(c, [](FakeCheckpoint& c, const std::string& layer) {
    c.Remove(layer + "mlp.gate_proj.weight");
  });
  EXPECT_TRUE(CreateArch(c, {}).ok());
  ForLayers(
      c, [](FakeCheckpoint& c, const std::string& layer) { c.Add(layer + "mlp.siaf.scale", {1}); });
  ExpectRefused(c, "mlp.siaf.scale", "not part of");
}

}  // namespace
}  // namespace mneme::engine
