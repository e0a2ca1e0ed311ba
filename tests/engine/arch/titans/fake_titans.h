// A valid Titans model made in memory.
#pragma once

#include <memory>
#include <string>

#include "tests/engine/arch/fake_checkpoint.h"

namespace mneme::engine {

struct FakeTitansOptions {
  std::string variant = "lmm";
  int layers = 2;
  int64_t depth = 2;
  std::string norm = "none";
  std::string read_mode = "chunk";
  int64_t persistent = 2;
};

// D 12, V 10, F 14, H 2, e 5, h 7, b 4 (C 4), K 3, 3 heads of width 4, W 6, untied.
inline std::shared_ptr<FakeCheckpoint> FakeTitans(const FakeTitansOptions& options = {}) {
  const std::string& variant = options.variant;
  const bool mac = variant == "mac", attention = variant != "lmm";
  auto c = std::make_shared<FakeCheckpoint>(Checkpoint::Format::kSafetensors);
  c->Set("model_type", std::string("titans"));
  c->Set("mneme_config_version", int64_t{1});
  c->Set("variant", variant);
  c->Set("vocab_size", int64_t{10});
  c->Set("hidden_size", int64_t{12});
  c->Set("num_hidden_layers", int64_t{options.layers});
  c->Set("intermediate_size", int64_t{14});
  c->Set("memory_heads", int64_t{2});
  c->Set("memory_head_dim", int64_t{5});
  c->Set("memory_depth", options.depth);
  if (options.depth > 1) c->Set("memory_hidden_dim", int64_t{7});
  c->Set("memory_norm", options.norm);
  c->Set("memory_chunk_tokens", int64_t{4});
  c->Set("read_mode", options.read_mode);
  c->Set("conv_taps", int64_t{3});
  if (attention) {
    c->Set("num_attention_heads", int64_t{3});
    c->Set("persistent_tokens", options.persistent);
    if (mac) {
      c->Set("segment_tokens", int64_t{4});
    } else {
      c->Set("window_tokens", int64_t{6});
    }
  }
  const bool mix = mac || variant == "mag";
  c->Add("model.embed_tokens.weight", {10, 12}, 1);
  c->Add("lm_head.weight", {10, 12}, 1);
  c->Add("model.norm.weight", {12}, 1);
  for (int i = 0; i < options.layers; ++i) {
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    const std::string memory = prefix + "memory.";
    c->Add(prefix + "input_layernorm.weight", {12}, 1);
    c->Add(prefix + "post_attention_layernorm.weight", {12}, 1);
    c->Add(prefix + "mlp.gate_proj.weight", {14, 12});
    c->Add(prefix + "mlp.up_proj.weight", {14, 12});
    c->Add(prefix + "mlp.down_proj.weight", {12, 14});
    for (const char* name : {"q", "k", "v"}) {
      c->Add(memory + name + "_proj.weight", {10, 12}, 1);
      c->Add(memory + name + "_conv.weight", {10, 3}, 1);
    }
    c->Add(memory + "gate.weight", {6, 12}, 1);
    c->Add(memory + "gate.bias", {6}, 1);
    for (int64_t l = 0; l < options.depth; ++l) {
      const int64_t in = l == 0 ? 5 : 7, out = l == options.depth - 1 ? 5 : 7;
      c->Add(memory + "init." + std::to_string(l), {2, in, out});
    }
    if (options.norm != "none") c->Add(memory + "norm.weight", {2, 5}, 1);
    c->Add(memory + "output_norm.weight", {5}, 1);
    c->Add(memory + "output_gate.weight", {10, 12}, 1);
    c->Add(memory + "o_proj.weight", {12, 10}, 1);
    if (mac) {
      c->Add(memory + "q2_proj.weight", {10, 12}, 1);
      c->Add(memory + "q2_conv.weight", {10, 3}, 1);
      c->Add(memory + "output_norm2.weight", {5}, 1);
      c->Add(memory + "output_gate2.weight", {10, 12}, 1);
      c->Add(memory + "o2_proj.weight", {12, 10}, 1);
      c->Add(memory + "input_norm.weight", {12}, 1);
    }
    if (attention) {
      for (const char* name : {"q", "k", "v", "o"}) {
        c->Add(prefix + "self_attn." + name + "_proj.weight", {12, 12});
      }
      if (options.persistent > 0) {
        c->Add(prefix + "self_attn.persistent", {options.persistent, 12}, 1);
      }
    }
    if (variant == "mal") c->Add(prefix + "attention_layernorm.weight", {12}, 1);
    if (mix) {
      c->Add(prefix + "mix.attention_norm.weight", {12}, 1);
      c->Add(prefix + "mix.memory_norm.weight", {12}, 1);
      c->Add(prefix + "mix.o_proj.weight", {12, 12}, 1);
    }
  }
  return c;
}

inline constexpr const char* kTitansVariants[] = {"lmm", "mac", "mag", "mal"};

}  // namespace mneme::engine
