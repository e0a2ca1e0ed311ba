// Valid models of every version of RWKV made in memory.
#pragma once

#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "tests/engine/arch/fake_checkpoint.h"

namespace mneme::engine {

// C 12, H 3, N 4, F 10, V 11, low ranks 2 to 5; options that agree with the tensors are set.
struct RwkvVersion {
  const char* name;        // of the test
  const char* arch;        // registry name
  const char* model_type;  // config.json
  int64_t state_bytes;     // of a layer
};

inline constexpr RwkvVersion kRwkvVersions[] = {
    {"v4", "rwkv4", "rwkv", 20 * 12},
    {"v51", "rwkv5", "rwkv5", 4 * 12 * (2 + 4)},
    {"v51_gate", "rwkv5", "rwkv5", 4 * 12 * (2 + 4)},
    {"v52", "rwkv5", "rwkv5", 4 * 12 * (2 + 4)},
    {"v6", "rwkv6", "rwkv6", 4 * 12 * (2 + 4)},
    {"v7", "rwkv7", "rwkv7", 4 * 12 * (2 + 4)},
};

inline void PrintTo(const RwkvVersion& version, std::ostream* out) { *out << version.name; }

namespace fake_rwkv_internal {

using TensorList = std::vector<std::pair<const char*, std::vector<int64_t>>>;

inline void AddAll(FakeCheckpoint& c, const std::string& prefix, const TensorList& tensors) {
  for (const auto& [name, shape] : tensors) c.Add(prefix + name, shape, 1);
}

inline void AddNorm(FakeCheckpoint& c, const std::string& name) {
  AddAll(c, name, {{".weight", {12}}, {".bias", {12}}});
}

inline void AddHfLayer(FakeCheckpoint& c, const std::string& version, const std::string& layer) {
  AddNorm(c, layer + "ln1");
  AddNorm(c, layer + "ln2");
  const std::string attention = layer + "attention.", ffn = layer + "feed_forward.";
  AddAll(c, ffn,
         {{"key.weight", {10, 12}}, {"value.weight", {12, 10}}, {"receptance.weight", {12, 12}}});
  AddAll(c, attention,
         {{"receptance.weight", {12, 12}},
          {"key.weight", {12, 12}},
          {"value.weight", {12, 12}},
          {"output.weight", {12, 12}}});
  if (version != "v4") AddNorm(c, attention + "ln_x");
  if (version == "v6") {
    AddAll(c, ffn, {{"time_maa_k", {1, 1, 12}}, {"time_maa_r", {12}}});
    AddAll(c, attention,
           {{"time_maa_x", {12}},
            {"time_maa_w", {1, 1, 12}},
            {"time_maa_k", {12}},
            {"time_maa_v", {12}},
            {"time_maa_r", {12}},
            {"time_maa_g", {12}},
            {"time_maa_w1", {12, 5 * 2}},
            {"time_maa_w2", {5, 2, 12}},
            {"time_decay", {1, 1, 12}},
            {"time_decay_w1", {12, 3}},
            {"time_decay_w2", {3, 12}},
            {"time_faaaa", {3, 4}},
            {"gate.weight", {12, 12}}});
    return;
  }
  AddAll(c, ffn, {{"time_mix_key", {1, 1, 12}}, {"time_mix_receptance", {12}}});
  AddAll(c, attention,
         {{"time_mix_key", {1, 1, 12}}, {"time_mix_value", {12}}, {"time_mix_receptance", {12}}});
  if (version == "v4") AddAll(c, attention, {{"time_decay", {12}}, {"time_first", {12}}});
  if (version == "v51") AddAll(c, attention, {{"time_decay", {3}}, {"time_first", {3}}});
  if (version == "v51_gate") {
    AddAll(c, attention, {{"time_decay", {3, 1}}, {"time_first", {3, 1}}});
  }
  if (version == "v52") AddAll(c, attention, {{"time_decay", {3, 4}}, {"time_faaaa", {3, 4}}});
  if (version == "v52" || version == "v51_gate") {
    AddAll(c, attention, {{"gate.weight", {12, 12}}, {"time_mix_gate", {1, 1, 12}}});
  }
}

inline void AddFlaLayer(FakeCheckpoint& c, const std::string& layer, bool first) {
  AddNorm(c, layer + "attn_norm");
  AddNorm(c, layer + "ffn_norm");
  AddNorm(c, layer + "attn.g_norm");
  AddAll(c, layer,
         {{"attn.r_proj.weight", {12, 12}},
          {"attn.k_proj.weight", {12, 12}},
          {"attn.v_proj.weight", {12, 12}},
          {"attn.o_proj.weight", {12, 12}},
          {"attn.x_r", {1, 1, 12}},
          {"attn.x_w", {12}},
          {"attn.x_k", {12}},
          {"attn.x_v", {12}},
          {"attn.x_a", {12}},
          {"attn.x_g", {12}},
          {"attn.w_lora.lora.0.weight", {3, 12}},
          {"attn.w_lora.lora.2.weight", {12, 3}},
          {"attn.w_lora.lora.2.bias", {12}},
          {"attn.a_lora.lora.0.weight", {4, 12}},
          {"attn.a_lora.lora.2.weight", {12, 4}},
          {"attn.a_lora.lora.2.bias", {12}},
          {"attn.g_lora.lora.0.weight", {5, 12}},
          {"attn.g_lora.lora.2.weight", {12, 5}},
          {"attn.k_k", {12}},
          {"attn.k_a", {1, 1, 12}},
          {"attn.r_k", {3, 4}},
          {"ffn.x_k", {12}},
          {"ffn.key.weight", {10, 12}},
          {"ffn.value.weight", {12, 10}}});
  if (first) return;
  AddAll(c, layer,
         {{"attn.v_lora.lora.0.weight", {2, 12}},
          {"attn.v_lora.lora.2.weight", {12, 2}},
          {"attn.v_lora.lora.2.bias", {12}}});
}

}  // namespace fake_rwkv_internal

// Folder of the tensors of layer `index`.
inline std::string RwkvLayer(const RwkvVersion& version, int index) {
  const bool fla = std::string(version.arch) == "rwkv7";
  return (fla ? "model.layers." : "rwkv.blocks.") + std::to_string(index) + ".";
}

inline std::shared_ptr<FakeCheckpoint> FakeRwkv(const RwkvVersion& version, int layers = 2) {
  namespace internal = fake_rwkv_internal;
  auto c = std::make_shared<FakeCheckpoint>(Checkpoint::Format::kSafetensors);
  c->Set("model_type", std::string(version.model_type));
  c->Set("vocab_size", int64_t{11});
  c->Set("hidden_size", int64_t{12});
  c->Set("num_hidden_layers", int64_t{layers});
  c->Set("intermediate_size", int64_t{10});
  const bool fla = std::string(version.arch) == "rwkv7";
  for (int i = 0; i < layers; ++i) {
    const std::string layer = RwkvLayer(version, i);
    if (fla) {
      internal::AddFlaLayer(*c, layer, i == 0);
    } else {
      internal::AddHfLayer(*c, version.name, layer);
    }
  }
  if (fla) {
    c->Set("head_dim", int64_t{4});
    c->Set("num_heads", int64_t{3});
    internal::AddNorm(*c, "model.layers.0.pre_norm");
    internal::AddNorm(*c, "model.norm");
    internal::AddAll(*c, "", {{"model.embeddings.weight", {11, 12}}, {"lm_head.weight", {11, 12}}});
  } else {
    c->Set("attention_hidden_size", int64_t{12});
    if (std::string(version.name) != "v4") c->Set("head_size", int64_t{4});
    internal::AddNorm(*c, "rwkv.blocks.0.pre_ln");
    internal::AddNorm(*c, "rwkv.ln_out");
    internal::AddAll(*c, "", {{"rwkv.embeddings.weight", {11, 12}}, {"head.weight", {11, 12}}});
  }
  return c;
}

}  // namespace mneme::engine
