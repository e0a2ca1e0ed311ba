// Valid Llama models made in memory.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tests/engine/arch/fake_checkpoint.h"

namespace mneme::engine {

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
