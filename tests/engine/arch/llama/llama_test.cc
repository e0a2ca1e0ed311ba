// What goldens do not reach: biases against the equations in double, options, positions in the
// millions.
#include "engine/arch/llama/llama.h"

#include <cmath>
#include <string>
#include <vector>

#include "engine/device/raw.h"
#include "engine/kernels/host.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/ops.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/arch/llama/fake_llama.h"
#include "tests/support/compare.h"

namespace mneme::engine {
namespace {

using ::testing::HasSubstr;
using Row = std::vector<double>;

// The equations of one token stream, from the checkpoint's tensors, in double.
class Equations {
 public:
  explicit Equations(const FakeCheckpoint& c) : c_(c) {}

  std::vector<float> LastLogits(const std::vector<TokenId>& tokens) const {
    std::vector<Row> x;
    for (const TokenId token : tokens) {
      const float* e = c_.Values("token_embd.weight") + token * 8;
      x.emplace_back(e, e + 8);
    }
    for (const std::string p : {"blk.0.", "blk.1."}) {
      std::vector<Row> q, k, v;
      for (size_t t = 0; t < x.size(); ++t) {
        const Row a = Norm(p + "attn_norm", x[t]);
        q.push_back(Rope(Linear(p + "attn_q", a, 8), t));
        k.push_back(Rope(Linear(p + "attn_k", a, 4), t));
        v.push_back(Linear(p + "attn_v", a, 4));
      }
      for (size_t t = 0; t < x.size(); ++t) {
        Row mixed(8);
        for (int h = 0; h < 2; ++h) {
          Row weights;
          double sum = 0;
          for (size_t j = 0; j <= t; ++j) {
            double score = 0;
            for (int d = 0; d < 4; ++d) score += q[t][h * 4 + d] * k[j][d];
            weights.push_back(std::exp(score / 2));
            sum += weights.back();
          }
          for (size_t j = 0; j <= t; ++j) {
            for (int d = 0; d < 4; ++d) mixed[h * 4 + d] += weights[j] / sum * v[j][d];
          }
        }
        AddTo(x[t], Linear(p + "attn_output", mixed, 8));
        const Row c = Norm(p + "ffn_norm", x[t]);
        Row gate = Linear(p + "ffn_gate", c, 12);
        const Row up = Linear(p + "ffn_up", c, 12);
        for (int i = 0; i < 12; ++i) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
        AddTo(x[t], Linear(p + "ffn_down", gate, 8));
      }
    }
    const Row logits = Linear("output", Norm("output_norm", x.back()), 10);
    return {logits.begin(), logits.end()};
  }

 private:
  Row Linear(const std::string& name, const Row& x, int rows) const {
    const float* w = c_.Values(name + ".weight");
    Row y(rows);
    for (int n = 0; n < rows; ++n) {
      if (c_.tensors().contains(name + ".bias")) y[n] = c_.Values(name + ".bias")[n];
      for (size_t k = 0; k < x.size(); ++k) y[n] += w[n * x.size() + k] * x[k];
    }
    return y;
  }
  Row Norm(const std::string& name, const Row& x) const {
    double squares = 0;
    for (const double v : x) squares += v * v;
    Row y(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      y[i] = x[i] * c_.Values(name + ".weight")[i] / std::sqrt(squares / x.size() + 1e-5);
    }
    return y;
  }
  static Row Rope(Row x, size_t position) {
    for (size_t pair = 0; pair < x.size() / 2; ++pair) {
      const double angle = position * (pair % 2 == 0 ? 1.0 : 0.01);
      const double a = x[2 * pair], b = x[2 * pair + 1];
      x[2 * pair] = a * std::cos(angle) - b * std::sin(angle);
      x[2 * pair + 1] = a * std::sin(angle) + b * std::cos(angle);
    }
    return x;
  }
  static void AddTo(Row& x, const Row& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  const FakeCheckpoint& c_;
};

std::vector<float> EngineLogits(Arch& arch, const Kernels& kernels, State& state,
                                const std::vector<TokenId>& tokens) {
  HostExec exec(kernels, Contract::kF32, 1);
  std::vector<float> hidden(arch.head().columns()), logits(arch.head().rows());
  Batch batch;
  batch.Add(SlotAt(state.block.data()), state.position, tokens, 1);
  const Rows row = RowsAt(hidden.data(), 1, arch.head().columns());
  arch.Forward(exec, batch, row);
  ops::MatMul(exec, row,
              {.weight = arch.head(), .y = RowsAt(logits.data(), 1, arch.head().rows())});
  state.position += tokens.size();
  return logits;
}

State NewState(const Arch& arch) {
  return {.block = HostMemory().Allocate(arch.schema().size_bytes())};
}

TEST(LlamaTest, BiasesEnterWhereTheEquationsPutThem) {
  auto c = FakeGgufLlama();
  const std::vector<TokenId> tokens = {3, 1, 4, 1, 5, 9, 2, 6};
  const std::vector<float> plain = Equations(*c).LastLogits(tokens);
  for (const std::string p : {"blk.0.", "blk.1."}) {
    c->Add(p + "attn_q.bias", {8}, 1);
    c->Add(p + "attn_k.bias", {4}, 1);
    c->Add(p + "attn_v.bias", {4}, 1);
    c->Add(p + "attn_output.bias", {8}, 1);
    c->Add(p + "ffn_gate.bias", {12}, 1);
    c->Add(p + "ffn_up.bias", {12}, 1);
    c->Add(p + "ffn_down.bias", {8}, 1);
  }
  const std::vector<float> expected = Equations(*c).LastLogits(tokens);
  EXPECT_FALSE(test::AllClose(plain, expected, {1e-2, 1e-2})) << "biases must matter here";
  auto arch = llama::Llama::Create(c, {.kv_dtype = DType::kF32});
  ASSERT_TRUE(arch.ok()) << arch.status();
  for (const Kernels* kernels : AllBackends()) {
    State state = NewState(**arch);
    EXPECT_TRUE(
        test::AllClose(EngineLogits(**arch, *kernels, state, tokens), expected, {1e-5, 1e-5}))
        << kernels->name;
  }
}

TEST(LlamaTest, StateFollowsTheOptions) {
  auto c = FakeGgufLlama();
  auto arch = llama::Llama::Create(c, {});
  ASSERT_TRUE(arch.ok()) << arch.status();
  // Two layers of k and v, 64 rows of one head of 4, f16.
  EXPECT_EQ((*arch)->schema().size_bytes(), 2u * 2 * 64 * 4 * 2);
  EXPECT_THAT((*arch)->info().state_formula, HasSubstr("= 2048 bytes"));
  arch = llama::Llama::Create(c, {.window_tokens = 16, .sink_tokens = 0, .kv_dtype = DType::kF32});
  ASSERT_TRUE(arch.ok()) << arch.status();
  const StateTensor& k = (*arch)->schema().tensors().front();
  EXPECT_EQ(k.name, "k");
  EXPECT_EQ(k.kind, StateKind::kRing);
  EXPECT_EQ(k.sinks, 0);
  EXPECT_EQ(k.window, 16);
  EXPECT_EQ((*arch)->info().effective_context_tokens, 16);
  EXPECT_EQ((*arch)->info().trained_context_tokens, 64);
}

TEST(LlamaTest, RefusesWindowsThatCannotBe) {
  auto c = FakeGgufLlama();
  for (const ArchOptions& options :
       {ArchOptions{.window_tokens = 4}, ArchOptions{.window_tokens = 3},
        ArchOptions{.window_tokens = -1}, ArchOptions{.sink_tokens = -1},
        ArchOptions{.window_tokens = int64_t{1} << 60},
        ArchOptions{.window_tokens = 10, .kv_dtype = DType::kQ8_0}}) {
    EXPECT_EQ(llama::Llama::Create(c, options).status().code(), absl::StatusCode::kInvalidArgument)
        << options.window_tokens;
  }
  EXPECT_TRUE(llama::Llama::Create(c, {.window_tokens = 5}).ok());
}

// Relative positions are what attention sees: without sinks, the same recent tokens give the same
// logits at position 20 and at position 20 million, up to the rounding of cos and sin.
TEST(LlamaTest, AnglesStayExactInTheMillions) {
  auto arch = llama::Llama::Create(FakeGgufLlama(),
                                   {.window_tokens = 6, .sink_tokens = 0, .kv_dtype = DType::kF32});
  ASSERT_TRUE(arch.ok()) << arch.status();
  // Twice the window per layer, so that nothing of what lies before reaches the last token.
  const std::vector<TokenId> tokens = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4};
  for (const Kernels* kernels : AllBackends()) {
    State near = NewState(**arch), far = NewState(**arch);
    far.position = 20'000'004;  // the ring's rows there are zero, and out of reach at the end
    const std::vector<float> expected = EngineLogits(**arch, *kernels, near, tokens);
    EXPECT_TRUE(test::AllClose(EngineLogits(**arch, *kernels, far, tokens), expected, {1e-4, 1e-4}))
        << kernels->name;
  }
}

}  // namespace
}  // namespace mneme::engine
