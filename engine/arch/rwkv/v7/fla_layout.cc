// RWKV-7 as the flash-linear-attention checkpoints name and shape it.
#include <algorithm>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/arch/config_reader.h"
#include "engine/arch/rwkv/v7/weights.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::rwkv7 {
namespace {

using rwkv::Block;
using rwkv::Config;

absl::Status RequireValueDim(const Checkpoint& checkpoint, int64_t C) {
  const auto it = checkpoint.metadata().find("value_dim");
  if (it == checkpoint.metadata().end()) return absl::OkStatus();
  std::vector<int64_t> values;
  if (const auto* one = std::get_if<int64_t>(&it->second)) values = {*one};
  if (const auto* many = std::get_if<std::vector<int64_t>>(&it->second)) values = *many;
  const bool agrees = !values.empty() && std::all_of(values.begin(), values.end(),
                                                     [C](int64_t value) { return value == C; });
  if (agrees) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(
      checkpoint.path(), ": key 'value_dim': only hidden_size, ", C, ", is supported"));
}

absl::StatusOr<Config> ParseConfig(const Checkpoint& checkpoint) {
  Config config;
  MNEME_RETURN_IF_ERROR(RequireModelType(checkpoint, "rwkv7"));
  MNEME_ASSIGN_OR_RETURN(config.num_layers, GetCount(checkpoint, "num_hidden_layers", kMaxLayers));
  MNEME_ASSIGN_OR_RETURN(config.width, GetCount(checkpoint, "hidden_size", kMaxWidth));
  MNEME_ASSIGN_OR_RETURN(config.vocab_size, GetCount(checkpoint, "vocab_size", kMaxWidth));
  if (checkpoint.Has("intermediate_size")) {
    MNEME_ASSIGN_OR_RETURN(config.ffn_width, GetCount(checkpoint, "intermediate_size", kMaxWidth));
  } else {
    MNEME_ASSIGN_OR_RETURN(const double ratio, checkpoint.GetFloat("hidden_ratio", 4.0));
    const double width = ratio * static_cast<double>(config.width);
    if (!(width >= 1) || !(width <= kMaxWidth)) {
      return absl::InvalidArgumentError(absl::StrCat(checkpoint.path(), ": key 'hidden_ratio' is ",
                                                     ratio, ", expected a positive ratio"));
    }
    config.ffn_width = static_cast<int64_t>(width);
  }
  MNEME_ASSIGN_OR_RETURN(config.norm_eps, GetPositive(checkpoint, "norm_eps", 1e-5, 1));
  MNEME_ASSIGN_OR_RETURN(const std::string act, checkpoint.GetString("hidden_act", "sqrelu"));
  if (act != "sqrelu") {
    return absl::UnimplementedError(absl::StrCat(checkpoint.path(), ": key 'hidden_act' is '", act,
                                                 "', only 'sqrelu' is supported"));
  }
  MNEME_RETURN_IF_ERROR(RequireBool(checkpoint, "norm_first", true));
  MNEME_RETURN_IF_ERROR(RequireBool(checkpoint, "norm_bias", true));
  MNEME_RETURN_IF_ERROR(RequireBool(checkpoint, "tie_word_embeddings", false));
  MNEME_RETURN_IF_ERROR(RequireValueDim(checkpoint, config.width));
  for (const auto& [key, value] : checkpoint.metadata()) {
    if (key == "attn" || absl::StartsWith(key, "attn.")) {
      return absl::UnimplementedError(absl::StrCat(checkpoint.path(), ": key '", key,
                                                   "': hybrids with attention are not supported"));
    }
  }
  return config;
}

// Tensors of the published extensions, which the plain equations would ignore silently.
absl::Status RefuseExtensions(const Checkpoint& checkpoint) {
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    for (const char* part : {".ffn.s_emb", ".ffn.s0", ".ffn.s1", ".ffn.s2"}) {
      if (!absl::StrContains(name, part)) continue;
      return absl::UnimplementedError(
          absl::StrCat(checkpoint.path(), ": tensor \"", name,
                       "\" belongs to RWKV-7a (DeepEmbed), which is not supported"));
    }
    if (absl::StartsWith(name, "qkv.") || absl::StrContains(name, ".qkv.")) {
      return absl::UnimplementedError(absl::StrCat(
          checkpoint.path(), ": tensor \"", name, "\" belongs to RWKV-7b, which is not supported"));
    }
  }
  return absl::OkStatus();
}

absl::Status LoadShifts(WeightReader& reader, const std::string& prefix, int64_t C,
                        TimeMix* layer) {
  Vector* const mu[] = {&layer->mu_r, &layer->mu_w, &layer->mu_k,
                        &layer->mu_v, &layer->mu_a, &layer->mu_g};
  constexpr const char* kNames[] = {"r", "w", "k", "v", "a", "g"};
  const std::string fused = prefix + "x_x";
  if (reader.Has(fused)) {
    MNEME_ASSIGN_OR_RETURN(const std::vector<float> all, reader.Floats(fused, {{6, C}}));
    for (int i = 0; i < 6; ++i) *mu[i] = reader.Place(std::span(all).subspan(i * C, C));
    return absl::OkStatus();
  }
  for (int i = 0; i < 6; ++i) {
    MNEME_ASSIGN_OR_RETURN(*mu[i],
                           rwkv::LoadVector(reader, absl::StrCat(prefix, "x_", kNames[i]), C));
  }
  return absl::OkStatus();
}

absl::StatusOr<TimeMix> LoadTimeMix(WeightReader& reader, int64_t index, const Config& config) {
  const int64_t C = config.width;
  const std::string prefix = absl::StrCat("model.layers.", index, ".attn.");
  const auto low_rank = [&](const char* name, bool has_bias) {
    const std::string stem = absl::StrCat(prefix, name, "_lora.lora.");
    return rwkv::LoadLowRank(
        reader, {stem + "0.weight", stem + "2.weight", has_bias ? stem + "2.bias" : ""}, C,
        rwkv::FactorLayout::kOutIn);
  };
  TimeMix layer;
  MNEME_ASSIGN_OR_RETURN(layer.group_norm, rwkv::LoadNorm(reader, prefix + "g_norm", C));
  MNEME_RETURN_IF_ERROR(LoadShifts(reader, prefix, C, &layer));
  MNEME_ASSIGN_OR_RETURN(layer.r, reader.Matrix(prefix + "r_proj.weight", C, C));
  MNEME_ASSIGN_OR_RETURN(layer.k, reader.Matrix(prefix + "k_proj.weight", C, C));
  MNEME_ASSIGN_OR_RETURN(layer.v, reader.Matrix(prefix + "v_proj.weight", C, C));
  MNEME_ASSIGN_OR_RETURN(layer.output, reader.Matrix(prefix + "o_proj.weight", C, C));
  MNEME_ASSIGN_OR_RETURN(layer.w, low_rank("w", true));
  MNEME_ASSIGN_OR_RETURN(layer.a, low_rank("a", true));
  MNEME_ASSIGN_OR_RETURN(layer.gate, low_rank("g", false));
  if (index == 0) {
    reader.Ignore(prefix + "v_lora.");
  } else {
    MNEME_ASSIGN_OR_RETURN(layer.v_mix, low_rank("v", true));
  }
  MNEME_ASSIGN_OR_RETURN(layer.k_k, rwkv::LoadVector(reader, prefix + "k_k", C));
  MNEME_ASSIGN_OR_RETURN(layer.k_a, rwkv::LoadVector(reader, prefix + "k_a", C));
  MNEME_ASSIGN_OR_RETURN(layer.r_k,
                         reader.Vector(prefix + "r_k", {{config.heads, config.head_size}}));
  return layer;
}

absl::StatusOr<Block> LoadBlock(WeightReader& reader, int64_t index, const Config& config) {
  const int64_t C = config.width, F = config.ffn_width;
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  Block block;
  MNEME_ASSIGN_OR_RETURN(block.attention_norm, rwkv::LoadNorm(reader, prefix + "attn_norm", C));
  MNEME_ASSIGN_OR_RETURN(block.ffn_norm, rwkv::LoadNorm(reader, prefix + "ffn_norm", C));
  MNEME_ASSIGN_OR_RETURN(block.ffn_mu_k, rwkv::LoadVector(reader, prefix + "ffn.x_k", C));
  MNEME_ASSIGN_OR_RETURN(block.ffn_key, reader.Matrix(prefix + "ffn.key.weight", F, C));
  MNEME_ASSIGN_OR_RETURN(block.ffn_value, reader.Matrix(prefix + "ffn.value.weight", C, F));
  return block;
}

}  // namespace

absl::StatusOr<Weights> LoadFla(const Checkpoint& checkpoint, Memory& memory) {
  Weights weights;
  weights.model.store = WeightStore(memory);
  Config& config = weights.model.config;
  MNEME_ASSIGN_OR_RETURN(config, ParseConfig(checkpoint));
  MNEME_RETURN_IF_ERROR(RefuseExtensions(checkpoint));
  WeightReader reader(checkpoint, "rwkv7", weights.model.store);

  const std::string r_k = "model.layers.0.attn.r_k";
  MNEME_RETURN_IF_ERROR(rwkv::SetHeads(reader, r_k, &config));
  config.group_norm_eps = config.norm_eps * static_cast<float>(config.head_size);
  MNEME_RETURN_IF_ERROR(RequireAgreement(checkpoint, "head_dim", config.head_size, r_k));
  MNEME_RETURN_IF_ERROR(RequireAgreement(checkpoint, "num_heads", config.heads, r_k));

  for (int64_t i = 0; i < config.num_layers; ++i) {
    MNEME_ASSIGN_OR_RETURN(TimeMix time_mix, LoadTimeMix(reader, i, config));
    weights.time_mix.push_back(std::move(time_mix));
    MNEME_ASSIGN_OR_RETURN(Block block, LoadBlock(reader, i, config));
    weights.model.blocks.push_back(std::move(block));
  }
  MNEME_RETURN_IF_ERROR(rwkv::LoadEnds(reader,
                                       {.embedding = "model.embeddings.weight",
                                        .embedding_norm = "model.layers.0.pre_norm",
                                        .final_norm = "model.norm",
                                        .head = "lm_head.weight"},
                                       &weights.model));
  return weights;
}

}  // namespace mneme::engine::rwkv7
