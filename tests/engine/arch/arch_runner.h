// What the tests of one architecture share: refusals by name, and one sequence on one backend.
#pragma once

#include <cmath>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/arch/arch.h"
#include "engine/device/raw.h"
#include "engine/kernels/host.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/ops.h"
#include "engine/sampler/counter_rng.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::engine {

// The message names what is wrong and what was expected.
inline void ExpectRefused(std::shared_ptr<const Checkpoint> checkpoint, const std::string& name,
                          const std::string& expectation = "") {
  SCOPED_TRACE(name);
  const absl::Status status = CreateArch(std::move(checkpoint), {}).status();
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(name));
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(expectation));
}

// Every tensor of what `make` returns, one after the other, missing and in another shape. Those
// whose names contain `optional` may be missing.
template <typename Make>
void ExpectEveryTensorIsNeededInItsShape(const Make& make, const std::string& optional = "") {
  const auto whole = make();
  for (const auto& [name, tensor] : whole->tensors()) {
    auto c = make();
    if (optional.empty() || name.find(optional) == std::string::npos) {
      c->Remove(name);
      ExpectRefused(c, name);
      c = make();
    }
    std::vector<int64_t> shape = tensor.shape;
    ++shape.back();
    c->Add(name, shape);
    ExpectRefused(c, name, std::to_string(tensor.shape.back()));
  }
}

// For tests of every backend: "reference", "cpu".
inline std::vector<std::string_view> BackendNameList() {
  std::vector<std::string_view> names;
  for (const Kernels* kernels : AllBackends()) names.push_back(kernels->name);
  return names;
}

// One model on one backend, and one sequence.
class ArchRunner {
 public:
  explicit ArchRunner(std::shared_ptr<const Checkpoint> checkpoint,
                      std::string_view backend = "cpu",
                      ArchOptions options = {.kv_dtype = DType::kF32})
      : exec_(*FindBackend(backend), Contract::kF32, 1) {
    auto arch = CreateArch(std::move(checkpoint), options);
    EXPECT_TRUE(arch.ok()) << arch.status();
    arch_ = *std::move(arch);
    state_.block = HostMemory().Allocate(arch_->schema().size_bytes());
    arch_->InitState(exec_, SlotAt(state_.block.data()));
  }

  // Logits after the last `count` tokens.
  std::vector<float> Feed(std::span<const TokenId> tokens, int64_t count) {
    const Matrix& head = arch_->head();
    std::vector<float> hidden(count * head.columns()), logits(count * head.rows());
    Batch batch;
    batch.Add(SlotAt(state_.block.data()), state_.position, tokens, count);
    const Rows rows = RowsAt(hidden.data(), count, head.columns());
    arch_->Forward(exec_, batch, rows);
    ops::MatMul(exec_, rows, {.weight = head, .y = RowsAt(logits.data(), count, head.rows())});
    state_.position += static_cast<int64_t>(tokens.size());
    return logits;
  }
  // Logits after every token.
  std::vector<float> Feed(std::span<const TokenId> tokens) {
    return Feed(tokens, static_cast<int64_t>(tokens.size()));
  }
  std::vector<float> Feed(std::initializer_list<TokenId> tokens) {
    return Feed(std::span(tokens.begin(), tokens.size()));
  }

  // A tensor of f32 of the state.
  std::span<float> Values(int layer, const std::string& name) {
    const StateTensor* tensor = arch_->schema().Find(layer, name);
    EXPECT_NE(tensor, nullptr) << name;
    return {state_.block.as<float>(tensor->offset_bytes), tensor->size_bytes / sizeof(float)};
  }
  std::vector<float> Copy(int layer, const std::string& name) const {
    const StateTensor* tensor = arch_->schema().Find(layer, name);
    EXPECT_NE(tensor, nullptr) << name;
    const float* values = state_.block.as<float>(tensor->offset_bytes);
    return {values, values + tensor->size_bytes / sizeof(float)};
  }
  const Arch& arch() const { return *arch_; }
  const State& state() const { return state_; }
  State& state() { return state_; }

 private:
  HostExec exec_;
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
