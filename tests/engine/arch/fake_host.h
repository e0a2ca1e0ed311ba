// Models made in memory whose layers are the host block: D 8, H 4, Hk 2, dk 4, F 12, V 10, tied.
#pragma once

#include <memory>
#include <string>

#include "tests/engine/arch/arch_runner.h"
#include "tests/engine/arch/fake_checkpoint.h"

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

}  // namespace mneme::engine
