#include "engine/arch/rwkv7/weights.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::rwkv7 {
namespace {

// Far above any real model, far below what could overflow a product of a few of them.
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxWidth = int64_t{1} << 24;

absl::StatusOr<int64_t> GetIntIn(const Checkpoint& checkpoint, std::string_view key, int64_t low,
                                 int64_t high) {
  MNEME_ASSIGN_OR_RETURN(const int64_t value, checkpoint.GetInt(key));
  if (value >= low && value <= high) return value;
  return absl::InvalidArgumentError(absl::StrCat(checkpoint.path(), ": key '", std::string(key),
                                                 "' is ", value, ", expected ", low, "..", high));
}

absl::Status RequireBool(const Checkpoint& checkpoint, std::string_view key, bool expected) {
  MNEME_ASSIGN_OR_RETURN(const bool value, checkpoint.GetBool(key, expected));
  if (value == expected) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(checkpoint.path(), ": key '", std::string(key),
                                               "' is ", value ? "true" : "false", ", only ",
                                               expected ? "true" : "false", " is supported"));
}

// An absent key or one that says what the tensors say.
absl::Status RequireAgreement(const Checkpoint& checkpoint, std::string_view key, int64_t value,
                              std::string_view source) {
  if (!checkpoint.Has(key)) return absl::OkStatus();
  MNEME_ASSIGN_OR_RETURN(const int64_t stated, checkpoint.GetInt(key));
  if (stated == value) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(checkpoint.path(), ": key '", std::string(key),
                                                 "' is ", stated, ", but ", std::string(source),
                                                 " makes it ", value));
}

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
  MNEME_ASSIGN_OR_RETURN(const std::string type, checkpoint.GetString("model_type"));
  if (type != "rwkv7") {
    return absl::UnimplementedError(
        absl::StrCat(checkpoint.path(), ": model_type '", type, "' is not supported"));
  }
  MNEME_ASSIGN_OR_RETURN(config.num_layers,
                         GetIntIn(checkpoint, "num_hidden_layers", 1, kMaxLayers));
  MNEME_ASSIGN_OR_RETURN(config.width, GetIntIn(checkpoint, "hidden_size", 1, kMaxWidth));
  MNEME_ASSIGN_OR_RETURN(config.vocab_size, GetIntIn(checkpoint, "vocab_size", 1, kMaxWidth));
  if (checkpoint.Has("intermediate_size")) {
    MNEME_ASSIGN_OR_RETURN(config.ffn_width,
                           GetIntIn(checkpoint, "intermediate_size", 1, kMaxWidth));
  } else {
    MNEME_ASSIGN_OR_RETURN(const double ratio, checkpoint.GetFloat("hidden_ratio", 4.0));
    const double width = ratio * static_cast<double>(config.width);
    if (!(width >= 1) || !(width <= kMaxWidth)) {
      return absl::InvalidArgumentError(absl::StrCat(checkpoint.path(), ": key 'hidden_ratio' is ",
                                                     ratio, ", expected a positive ratio"));
    }
    config.ffn_width = static_cast<int64_t>(width);
  }
  MNEME_ASSIGN_OR_RETURN(const double eps, checkpoint.GetFloat("norm_eps", 1e-5));
  if (!(eps > 0) || !(eps <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat(checkpoint.path(), ": key 'norm_eps' is ", eps,
                                                   ", expected more than 0 and at most 1"));
  }
  config.norm_eps = static_cast<float>(eps);
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

absl::StatusOr<Norm> LoadNorm(WeightReader& reader, const std::string& name, int64_t C) {
  Norm norm;
  MNEME_ASSIGN_OR_RETURN(norm.weight, reader.Vector(name + ".weight", C));
  MNEME_ASSIGN_OR_RETURN(norm.bias, reader.Vector(name + ".bias", C));
  return norm;
}

// A matrix [rows, columns] of which one side is the rank, stored this way or transposed. Where both
// fit (rank = C) the layout is the one of the format.
absl::StatusOr<OwnedMatrix> LoadFactor(WeightReader& reader, const std::string& name, int64_t rows,
                                       int64_t columns) {
  MNEME_ASSIGN_OR_RETURN(const std::vector<int64_t> shape,
                         reader.Shape(name, absl::StrCat("[", rows, ", ", columns, "]")));
  if (shape == std::vector<int64_t>{columns, rows} && rows != columns) {
    return reader.Transposed(name, rows, columns);
  }
  OwnedMatrix matrix;
  MNEME_ASSIGN_OR_RETURN(matrix.weight, reader.Matrix(name, rows, columns));
  return matrix;
}

absl::StatusOr<LowRank> LoadLowRank(WeightReader& reader, const Checkpoint& checkpoint,
                                    const std::string& name, int64_t C, bool has_bias,
                                    int64_t* max_rank) {
  LowRank map;
  const std::string a = name + ".lora.0.weight";
  MNEME_ASSIGN_OR_RETURN(const std::vector<int64_t> shape,
                         reader.Shape(a, absl::StrCat("[R, ", C, "]")));
  if (shape.size() != 2 || (shape[0] != C && shape[1] != C)) {
    return absl::InvalidArgumentError(absl::StrCat(
        checkpoint.path(), ": tensor \"", a, "\": expected shape [R, ", C, "] or [", C, ", R]"));
  }
  const int64_t rank = shape[1] == C ? shape[0] : shape[1];
  if (rank < 1 || rank > kMaxWidth) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint.path(), ": tensor \"", a, "\" has rank ", rank));
  }
  MNEME_ASSIGN_OR_RETURN(map.a, LoadFactor(reader, a, rank, C));
  MNEME_ASSIGN_OR_RETURN(map.b, LoadFactor(reader, name + ".lora.2.weight", C, rank));
  if (has_bias) {
    MNEME_ASSIGN_OR_RETURN(map.bias, reader.Vector(name + ".lora.2.bias", C));
  }
  *max_rank = std::max(*max_rank, rank);
  return map;
}

absl::Status LoadShifts(WeightReader& reader, const std::string& prefix, int64_t C, Layer* layer) {
  std::vector<float>* const mu[] = {&layer->mu_r, &layer->mu_w, &layer->mu_k,
                                    &layer->mu_v, &layer->mu_a, &layer->mu_g};
  constexpr const char* kNames[] = {"r", "w", "k", "v", "a", "g"};
  const std::string fused = prefix + "attn.x_x";
  if (reader.Has(fused)) {
    MNEME_ASSIGN_OR_RETURN(const std::vector<float> all, reader.Floats(fused, {{6, C}}));
    for (int i = 0; i < 6; ++i) mu[i]->assign(all.begin() + i * C, all.begin() + (i + 1) * C);
    return absl::OkStatus();
  }
  for (int i = 0; i < 6; ++i) {
    MNEME_ASSIGN_OR_RETURN(*mu[i], reader.Vector(absl::StrCat(prefix, "attn.x_", kNames[i]), C));
  }
  return absl::OkStatus();
}

absl::StatusOr<Layer> LoadLayer(WeightReader& reader, const Checkpoint& checkpoint, int64_t index,
                                Config* config) {
  const int64_t C = config->width, F = config->ffn_width;
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  Layer layer;
  MNEME_ASSIGN_OR_RETURN(layer.attention_norm, LoadNorm(reader, prefix + "attn_norm", C));
  MNEME_ASSIGN_OR_RETURN(layer.ffn_norm, LoadNorm(reader, prefix + "ffn_norm", C));
  MNEME_ASSIGN_OR_RETURN(layer.group_norm, LoadNorm(reader, prefix + "attn.g_norm", C));
  MNEME_RETURN_IF_ERROR(LoadShifts(reader, prefix, C, &layer));
  MNEME_ASSIGN_OR_RETURN(layer.r, reader.Matrix(prefix + "attn.r_proj.weight", C, C));
  MNEME_ASSIGN_OR_RETURN(layer.k, reader.Matrix(prefix + "attn.k_proj.weight", C, C));
  MNEME_ASSIGN_OR_RETURN(layer.v, reader.Matrix(prefix + "attn.v_proj.weight", C, C));
  MNEME_ASSIGN_OR_RETURN(layer.output, reader.Matrix(prefix + "attn.o_proj.weight", C, C));
  int64_t* rank = &config->max_rank;
  MNEME_ASSIGN_OR_RETURN(layer.w,
                         LoadLowRank(reader, checkpoint, prefix + "attn.w_lora", C, true, rank));
  MNEME_ASSIGN_OR_RETURN(layer.a,
                         LoadLowRank(reader, checkpoint, prefix + "attn.a_lora", C, true, rank));
  MNEME_ASSIGN_OR_RETURN(layer.gate,
                         LoadLowRank(reader, checkpoint, prefix + "attn.g_lora", C, false, rank));
  if (index == 0) {
    reader.Ignore(prefix + "attn.v_lora.");
  } else {
    MNEME_ASSIGN_OR_RETURN(layer.v_mix,
                           LoadLowRank(reader, checkpoint, prefix + "attn.v_lora", C, true, rank));
  }
  MNEME_ASSIGN_OR_RETURN(layer.k_k, reader.Vector(prefix + "attn.k_k", C));
  MNEME_ASSIGN_OR_RETURN(layer.k_a, reader.Vector(prefix + "attn.k_a", C));
  MNEME_ASSIGN_OR_RETURN(layer.r_k,
                         reader.Floats(prefix + "attn.r_k", {{config->heads, config->head_size}}));
  MNEME_ASSIGN_OR_RETURN(layer.ffn_mu_k, reader.Vector(prefix + "ffn.x_k", C));
  MNEME_ASSIGN_OR_RETURN(layer.ffn_key, reader.Matrix(prefix + "ffn.key.weight", F, C));
  MNEME_ASSIGN_OR_RETURN(layer.ffn_value, reader.Matrix(prefix + "ffn.value.weight", C, F));
  return layer;
}

}  // namespace

absl::StatusOr<Weights> Load(const Checkpoint& checkpoint, Config* config, ArchInfo* info) {
  MNEME_ASSIGN_OR_RETURN(*config, ParseConfig(checkpoint));
  MNEME_RETURN_IF_ERROR(RefuseExtensions(checkpoint));
  const int64_t C = config->width, V = config->vocab_size;
  WeightReader reader(checkpoint, "rwkv7");

  // The head size is r_k's, whatever the usual one is.
  const std::string r_k = "model.layers.0.attn.r_k";
  MNEME_ASSIGN_OR_RETURN(const std::vector<int64_t> heads, reader.Shape(r_k, "[H, S]"));
  if (heads.size() != 2 || heads[0] < 1 || heads[1] < 1 || heads[0] > C || heads[1] > C ||
      heads[0] * heads[1] != C) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint.path(), ": tensor \"", r_k,
                     "\": expected shape [H, S] with H * S = hidden_size ", C));
  }
  config->heads = heads[0];
  config->head_size = heads[1];
  MNEME_RETURN_IF_ERROR(RequireAgreement(checkpoint, "head_dim", config->head_size, r_k));
  MNEME_RETURN_IF_ERROR(RequireAgreement(checkpoint, "num_heads", config->heads, r_k));

  Weights weights;
  for (int64_t i = 0; i < config->num_layers; ++i) {
    MNEME_ASSIGN_OR_RETURN(Layer layer, LoadLayer(reader, checkpoint, i, config));
    weights.layers.push_back(std::move(layer));
  }
  info->layer_matrix_parameters = reader.matrix_parameters();
  MNEME_ASSIGN_OR_RETURN(weights.embedding_norm, LoadNorm(reader, "model.layers.0.pre_norm", C));
  MNEME_ASSIGN_OR_RETURN(weights.final_norm, LoadNorm(reader, "model.norm", C));
  MNEME_ASSIGN_OR_RETURN(weights.head, reader.Matrix("lm_head.weight", V, C));
  info->decode_weight_bytes = reader.bytes();
  MNEME_ASSIGN_OR_RETURN(weights.embedding, reader.Matrix("model.embeddings.weight", V, C));
  info->decode_weight_bytes += static_cast<int64_t>(weights.embedding.row_bytes());
  MNEME_RETURN_IF_ERROR(reader.RefuseUnused());
  reader.FillInfo(info);
  return weights;
}

}  // namespace mneme::engine::rwkv7
