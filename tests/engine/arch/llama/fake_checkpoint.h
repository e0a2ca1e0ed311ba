// A checkpoint made in memory: metadata and tensors as a test wants them.
#pragma once

#include <list>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "engine/arch/llama/config.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/sampler/counter_rng.h"

namespace mneme::engine {

class FakeCheckpoint final : public Checkpoint {
 public:
  explicit FakeCheckpoint(Format format) : format_(format) {}

  Format format() const override { return format_; }
  const std::map<std::string, MetadataValue, std::less<>>& metadata() const override {
    return metadata_;
  }
  const std::map<std::string, Tensor, std::less<>>& tensors() const override { return tensors_; }
  const std::string& path() const override { return path_; }
  std::string Fingerprint() const override { return std::string(32, 'f'); }

  absl::StatusOr<std::string> ReadSideFile(std::string_view, size_t) const override {
    return absl::NotFoundError("no side files");
  }

  void Set(const std::string& key, MetadataValue value) { metadata_[key] = std::move(value); }
  void Unset(const std::string& key) { metadata_.erase(key); }
  void Remove(const std::string& name) { tensors_.erase(name); }
  // Claims another type; for refusals that look no further.
  void SetDType(const std::string& name, DType dtype) { tensors_.at(name).dtype = dtype; }

  // A tensor of F32, filled with fixed pseudo-random values in [-scale, scale).
  std::vector<float>& Add(const std::string& name, std::vector<int64_t> shape, float scale = 0.5f) {
    int64_t size = 1;
    for (const int64_t n : shape) size *= n;
    std::vector<float>& values = storage_.emplace_back(size);
    const uint64_t stream = storage_.size();
    for (int64_t i = 0; i < size; ++i) {
      values[i] = static_cast<float>((2 * CounterUniform(stream, i) - 1) * scale);
    }
    tensors_[name] = {.name = name,
                      .dtype = DType::kF32,
                      .shape = std::move(shape),
                      .data = reinterpret_cast<const std::byte*>(values.data()),
                      .size_bytes = size * sizeof(float)};
    return values;
  }
  const float* Values(const std::string& name) const {
    return reinterpret_cast<const float*>(tensors_.at(name).data);
  }

 private:
  const Format format_;
  const std::string path_ = "fake";
  std::map<std::string, MetadataValue, std::less<>> metadata_;
  std::map<std::string, Tensor, std::less<>> tensors_;
  std::list<std::vector<float>> storage_;  // elements do not move
};

// A valid model of two layers: D 8, H 2, Hk 1, Dh 4, F 12, V 10, context 64, untied head.
inline std::shared_ptr<FakeCheckpoint> FakeGgufLlama() {
  auto c = std::make_shared<FakeCheckpoint>(Checkpoint::Format::kGguf);
  c->Set("general.architecture", std::string("llama"));
  c->Set("llama.block_count", int64_t{2});
  c->Set("llama.context_length", int64_t{64});
  c->Set("llama.embedding_length", int64_t{8});
  c->Set("llama.feed_forward_length", int64_t{12});
  c->Set("llama.attention.head_count", int64_t{2});
  c->Set("llama.attention.head_count_kv", int64_t{1});
  c->Set("llama.attention.layer_norm_rms_epsilon", 1e-5);
  c->Set("llama.rope.freq_base", 10000.0);
  c->Add("token_embd.weight", {10, 8}, 1);
  c->Add("output_norm.weight", {8}, 1);
  c->Add("output.weight", {10, 8});
  for (const std::string prefix : {"blk.0.", "blk.1."}) {
    c->Add(prefix + "attn_norm.weight", {8}, 1);
    c->Add(prefix + "attn_q.weight", {8, 8});
    c->Add(prefix + "attn_k.weight", {4, 8});
    c->Add(prefix + "attn_v.weight", {4, 8});
    c->Add(prefix + "attn_output.weight", {8, 8});
    c->Add(prefix + "ffn_norm.weight", {8}, 1);
    c->Add(prefix + "ffn_gate.weight", {12, 8});
    c->Add(prefix + "ffn_up.weight", {12, 8});
    c->Add(prefix + "ffn_down.weight", {8, 12});
  }
  return c;
}

// The metadata of the same shapes as config.json has them (no tensors).
inline std::shared_ptr<FakeCheckpoint> FakeHfLlama() {
  auto c = std::make_shared<FakeCheckpoint>(Checkpoint::Format::kSafetensors);
  c->Set("architectures", std::vector<std::string>{"LlamaForCausalLM"});
  c->Set("num_hidden_layers", int64_t{2});
  c->Set("hidden_size", int64_t{8});
  c->Set("intermediate_size", int64_t{12});
  c->Set("num_attention_heads", int64_t{2});
  c->Set("num_key_value_heads", int64_t{1});
  c->Set("max_position_embeddings", int64_t{64});
  c->Set("vocab_size", int64_t{10});
  c->Set("rms_norm_eps", 1e-5);
  c->Set("rope_theta", 10000.0);
  return c;
}

}  // namespace mneme::engine
