#include "engine/arch/llama/weights.h"

#include <algorithm>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/arch/weight_reader.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::llama {
namespace {

// Tables that older converters wrote and that the configuration already determines.
bool IsDerivedTable(const std::string& name) {
  return name == "rope_freqs.weight" || absl::EndsWith(name, ".attn_rot_embd.weight") ||
         absl::EndsWith(name, ".rotary_emb.inv_freq");
}

// [n, F], from a tensor that may say it once per branch only; `fallback` everywhere if there is
// none.
absl::StatusOr<Vector> LoadSeries(WeightReader& reader, const std::string& name, int64_t n,
                                  int64_t F, float fallback) {
  if (!reader.Has(name)) return reader.Place(std::vector<float>(n * F, fallback));
  MNEME_ASSIGN_OR_RETURN(std::vector<float> values, reader.Floats(name, {{n, F}, {n, 1}, {n}}));
  if (static_cast<int64_t>(values.size()) == n * F) return reader.Place(values);
  std::vector<float> spread(n * F);
  for (int64_t i = 0; i < n; ++i) std::fill_n(spread.begin() + i * F, F, values[i]);
  return reader.Place(spread);
}

absl::Status LoadPangu(WeightReader& reader, const Config& config, const std::string& prefix,
                       Layer* layer) {
  const PanguOptions& options = config.pangu;
  const int64_t D = config.width, F = config.ffn_width;
  const auto n = static_cast<int64_t>(options.series.size());
  const std::string series = prefix + "mlp.siaf.";
  if (options.projected) {
    for (int64_t i = 0; i < n; ++i) {
      MNEME_ASSIGN_OR_RETURN(layer->gates.emplace_back(),
                             LoadLinear(reader, absl::StrCat(prefix, "mlp.gate_proj.", i), F, D));
    }
  } else if (n > 1 || options.series[0] != Activation::kSilu || reader.Has(series + "scale") ||
             reader.Has(series + "bias")) {
    MNEME_ASSIGN_OR_RETURN(layer->series_scale, LoadSeries(reader, series + "scale", n, F, 1));
    MNEME_ASSIGN_OR_RETURN(layer->series_bias, LoadSeries(reader, series + "bias", n, F, 0));
  }
  for (int64_t j = 0; j < options.shortcuts; ++j) {
    Shortcut shortcut;
    for (const auto& [linear, name, rows, columns] :
         {std::tuple{&shortcut.down, ".down", options.shortcut_width, D},
          std::tuple{&shortcut.up, ".up", D, options.shortcut_width}}) {
      const std::string full = absl::StrCat(prefix, "self_attn.aug.", j, name);
      MNEME_ASSIGN_OR_RETURN(*linear, LoadLinear(reader, full, rows, columns));
      if (!options.shortcut_bias) continue;
      MNEME_ASSIGN_OR_RETURN(linear->bias, reader.Vector(full + ".bias", {{rows}}));
    }
    layer->shortcuts.push_back(std::move(shortcut));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Weights> LoadWeights(const Checkpoint& checkpoint, const Config& config,
                                    Memory& memory, ArchInfo* info) {
  const bool gguf = checkpoint.format() == Checkpoint::Format::kGguf;
  const DecoderNames& names = gguf ? kGgufDecoderNames : kHfDecoderNames;
  const int64_t q_width = config.heads * config.head_dim;
  const int64_t kv_width = config.kv_heads * config.head_dim;
  const DecoderShape shape = {.width = config.width,
                              .q_width = q_width,
                              .k_width = kv_width,
                              .v_width = kv_width,
                              .mixed_width = q_width,
                              .ffn_width = config.ffn_width,
                              .vocab_size = config.vocab_size,
                              .may_have_attention_bias = config.may_have_attention_bias,
                              .may_have_mlp_bias = config.may_have_mlp_bias};

  Weights weights;
  weights.store = WeightStore(memory);
  WeightReader reader(checkpoint, config.architecture, weights.store);
  weights.layers.reserve(std::min<int64_t>(config.num_layers, checkpoint.tensors().size()));
  for (int64_t i = 0; i < config.num_layers; ++i) {
    Layer& layer = weights.layers.emplace_back();
    MNEME_ASSIGN_OR_RETURN(static_cast<DecoderLayer&>(layer),
                           LoadDecoderLayer(reader, names, shape, i, !config.pangu.projected));
    if (!gguf) {
      MNEME_RETURN_IF_ERROR(LoadPangu(reader, config, LayerPrefix(names, i), &layer));
    }
  }
  const std::string head = std::string(names.head) + ".weight";
  const bool tied = config.requires_tied_embeddings || (gguf && !reader.Has(head));
  MNEME_RETURN_IF_ERROR(LoadDecoderEnds(reader, names, shape, tied, info, &weights));
  // A tied checkpoint may carry a second copy of the embedding under the head's name.
  if (tied) reader.IgnoreTensor(head);
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    if (IsDerivedTable(name)) reader.IgnoreTensor(name);
  }
  MNEME_RETURN_IF_ERROR(reader.RefuseUnused());
  return weights;
}

}  // namespace mneme::engine::llama
