// Models made in memory whose layers are the host block: D 8, H 4, Hk 2, dk 4, F 12, V 10, tied.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/arch/arch.h"
#include "engine/kernels/exec.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/arch/llama/fake_checkpoint.h"

namespace mneme::engine {

// `value_dim` is dv. Every key of the host block that has no default is set.
inline std::shared_ptr<FakeCheckpoint> FakeHost(const std::string& model_type, int layers,
                                                int64_t value_dim) {
  auto c = std::make_shared<FakeCheckpoint>(Checkpoint::Format::kSafetensors);
  c->Set("model_type", model_type);
  c->Set("mneme_config_version", int64_t{1});
  c->Set("vocab_size", int64_t{10});
  c->Set("hidden_size", int64_t{8});
  c->Set("num_hidden_layers", int64_t{layers});
  c->Set("num_attention_heads", int64_t{4});
  c->Set("num_key_value_heads", int64_t{2});
  c->Set("head_dim", int64_t{4});
  c->Set("intermediate_size", int64_t{12});
  c->Set("tie_word_embeddings", true);
  c->Add("model.embed_tokens.weight", {10, 8}, 1);
  c->Add("model.norm.weight", {8}, 1);
  for (int i = 0; i < layers; ++i) {
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    c->Add(prefix + "input_layernorm.weight", {8}, 1);
    c->Add(prefix + "post_attention_layernorm.weight", {8}, 1);
    c->Add(prefix + "self_attn.q_proj.weight", {16, 8}, 1);
    c->Add(prefix + "self_attn.k_proj.weight", {8, 8}, 1);
    c->Add(prefix + "self_attn.v_proj.weight", {2 * value_dim, 8}, 1);
    c->Add(prefix + "self_attn.o_proj.weight", {8, 4 * value_dim}, 1);
    c->Add(prefix + "mlp.gate_proj.weight", {12, 8});
    c->Add(prefix + "mlp.up_proj.weight", {12, 8});
    c->Add(prefix + "mlp.down_proj.weight", {8, 12});
  }
  return c;
}

// The message names what is wrong and what was expected.
inline void ExpectRefused(std::shared_ptr<const Checkpoint> checkpoint, const std::string& name,
                          const std::string& expectation = "") {
  SCOPED_TRACE(name);
  const absl::Status status = CreateArch(std::move(checkpoint), {}).status();
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(name));
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(expectation));
}

// One model on one backend, and one sequence.
class ArchRunner {
 public:
  ArchRunner(std::shared_ptr<const Checkpoint> checkpoint, std::string_view backend,
             ArchOptions options = {.kv_dtype = DType::kF32})
      : exec_(*FindBackend(backend), Contract::kF32, 1) {
    auto arch = CreateArch(std::move(checkpoint), options);
    EXPECT_TRUE(arch.ok()) << arch.status();
    arch_ = *std::move(arch);
    arch_->Prepare(exec_);
    state_.block = AlignedBuffer(arch_->schema().size_bytes());
    arch_->InitState(state_);
  }

  // Logits after every token.
  std::vector<float> Feed(const std::vector<TokenId>& tokens) {
    std::vector<float> logits(tokens.size() * arch_->info().vocab_size);
    const ArchSlice slice{.state = &state_,
                          .tokens = tokens,
                          .num_logits = static_cast<int64_t>(tokens.size()),
                          .logits = logits.data()};
    const absl::Status status = arch_->Forward(exec_, {&slice, 1});
    EXPECT_TRUE(status.ok()) << status;
    state_.position += static_cast<int64_t>(tokens.size());
    return logits;
  }

  // A tensor of f32 of the state.
  std::span<float> Values(int layer, const char* name) {
    const StateTensor* tensor = arch_->schema().Find(layer, name);
    return {state_.block.as<float>(tensor->offset_bytes), tensor->size_bytes / sizeof(float)};
  }
  std::vector<float> Copy(int layer, const char* name) {
    const std::span<float> values = Values(layer, name);
    return {values.begin(), values.end()};
  }
  const Arch& arch() const { return *arch_; }
  const State& state() const { return state_; }

 private:
  Exec exec_;
  std::unique_ptr<Arch> arch_;
  State state_;
};

// Random tokens in passes as a long read has them: every value stays finite, the state stays where
// and as large as it is.
inline void ExpectLongRunIsFinite(ArchRunner& run, int64_t tokens) {
  const int64_t V = run.arch().info().vocab_size;
  const std::byte* block = run.state().block.data();
  constexpr int64_t kPass = 500;
  std::vector<TokenId> pass(kPass);
  for (int64_t read = 0; read < tokens; read += kPass) {
    for (int64_t i = 0; i < kPass; ++i)
      pass[i] = static_cast<TokenId>(CounterUniform(7, read + i) * V);
    for (const float logit : run.Feed(pass)) ASSERT_TRUE(std::isfinite(logit)) << "after " << read;
    ASSERT_EQ(run.state().block.size(), run.arch().schema().size_bytes());
    ASSERT_EQ(run.state().block.data(), block);
  }
  ASSERT_EQ(run.state().position, tokens);
  for (const StateTensor& tensor : run.arch().schema().tensors()) {
    if (tensor.dtype != DType::kF32) continue;
    const float* values = run.state().block.as<float>(tensor.offset_bytes);
    for (size_t i = 0; i < tensor.size_bytes / sizeof(float); ++i) {
      ASSERT_TRUE(std::isfinite(values[i])) << tensor.name << " " << i;
    }
  }
}

}  // namespace mneme::engine
