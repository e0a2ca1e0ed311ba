#include "engine/arch/infini/weights.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::infini {
namespace {

class Loader {
 public:
  explicit Loader(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  absl::StatusOr<Weight> Matrix(const std::string& name, int64_t rows, int64_t columns) {
    MNEME_ASSIGN_OR_RETURN(const Weight weight, checkpoint_.GetWeight(name, rows, columns));
    used_.insert(name);
    bytes_ += weight.size_bytes();
    parameters_ += rows * columns;
    bytes_by_dtype_[static_cast<size_t>(weight.dtype)] += weight.size_bytes();
    return weight;
  }

  absl::StatusOr<std::vector<float>> Vector(const std::string& name, int64_t size) {
    MNEME_ASSIGN_OR_RETURN(std::vector<float> values, checkpoint_.GetVector(name, size));
    used_.insert(name);
    bytes_ += size * sizeof(float);
    parameters_ += size;
    return values;
  }

  // The first tensor that nobody asked for.
  absl::Status RefuseUnused() const {
    for (const auto& [name, tensor] : checkpoint_.tensors()) {
      if (used_.contains(name)) continue;
      return absl::InvalidArgumentError(absl::StrCat(checkpoint_.path(), ": tensor '", name,
                                                     "' is not part of the infini architecture"));
    }
    return absl::OkStatus();
  }

  void FillInfo(ArchInfo* info) const {
    info->parameters = parameters_;
    info->weight_bytes = bytes_;
    int64_t most = -1;
    for (int i = 0; i < kNumDTypes; ++i) {
      if (bytes_by_dtype_[i] > most) {
        most = bytes_by_dtype_[i];
        info->weight_dtype = static_cast<DType>(i);
      }
      if (bytes_by_dtype_[i] > 0 && IsQuantized(static_cast<DType>(i))) {
        info->has_quantized_weights = true;
      }
    }
  }

  int64_t bytes() const { return bytes_; }

 private:
  const Checkpoint& checkpoint_;
  std::set<std::string> used_;
  int64_t bytes_ = 0;
  int64_t parameters_ = 0;
  std::array<int64_t, kNumDTypes> bytes_by_dtype_{};
};

absl::StatusOr<Layer> LoadLayer(Loader& loader, const Config& config, int64_t index) {
  const int64_t D = config.width, F = config.ffn_width;
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  Layer layer;
  MNEME_ASSIGN_OR_RETURN(layer.attention_norm, loader.Vector(prefix + "input_layernorm.weight", D));
  MNEME_ASSIGN_OR_RETURN(layer.q, loader.Matrix(prefix + "self_attn.q_proj.weight",
                                                config.heads * config.head_dim, D));
  MNEME_ASSIGN_OR_RETURN(layer.k, loader.Matrix(prefix + "self_attn.k_proj.weight",
                                                config.kv_heads * config.head_dim, D));
  MNEME_ASSIGN_OR_RETURN(layer.v, loader.Matrix(prefix + "self_attn.v_proj.weight",
                                                config.kv_heads * config.value_head_dim, D));
  MNEME_ASSIGN_OR_RETURN(layer.output, loader.Matrix(prefix + "self_attn.o_proj.weight", D,
                                                     config.heads * config.value_head_dim));
  MNEME_ASSIGN_OR_RETURN(const std::vector<float> beta,
                         loader.Vector(prefix + "self_attn.memory_gate", config.heads));
  for (const float b : beta) {
    layer.memory_share.push_back(static_cast<float>(1 / (1 + std::exp(-double(b)))));
    layer.local_share.push_back(static_cast<float>(1 / (1 + std::exp(double(b)))));
  }
  MNEME_ASSIGN_OR_RETURN(layer.ffn_norm,
                         loader.Vector(prefix + "post_attention_layernorm.weight", D));
  MNEME_ASSIGN_OR_RETURN(layer.gate, loader.Matrix(prefix + "mlp.gate_proj.weight", F, D));
  MNEME_ASSIGN_OR_RETURN(layer.up, loader.Matrix(prefix + "mlp.up_proj.weight", F, D));
  MNEME_ASSIGN_OR_RETURN(layer.down, loader.Matrix(prefix + "mlp.down_proj.weight", D, F));
  return layer;
}

}  // namespace

absl::StatusOr<Weights> LoadWeights(const Checkpoint& checkpoint, const Config& config,
                                    ArchInfo* info) {
  const int64_t D = config.width, V = config.vocab_size;
  Loader loader(checkpoint);
  Weights weights;
  weights.layers.reserve(std::min<int64_t>(config.num_layers, checkpoint.tensors().size()));
  for (int64_t i = 0; i < config.num_layers; ++i) {
    MNEME_ASSIGN_OR_RETURN(Layer layer, LoadLayer(loader, config, i));
    weights.layers.push_back(std::move(layer));
  }
  info->layer_matrix_parameters =
      config.num_layers * D *
      ((config.heads + config.kv_heads) * (config.head_dim + config.value_head_dim) +
       3 * config.ffn_width);
  MNEME_ASSIGN_OR_RETURN(weights.final_norm, loader.Vector("model.norm.weight", D));
  const int64_t body_bytes = loader.bytes();
  MNEME_ASSIGN_OR_RETURN(weights.embedding, loader.Matrix("model.embed_tokens.weight", V, D));
  weights.head = weights.embedding;
  if (!config.tied_embeddings) {
    MNEME_ASSIGN_OR_RETURN(weights.head, loader.Matrix("lm_head.weight", V, D));
  }
  MNEME_RETURN_IF_ERROR(loader.RefuseUnused());
  loader.FillInfo(info);
  info->decode_weight_bytes =
      body_bytes + weights.head.size_bytes() + weights.embedding.row_bytes();
  return weights;
}

}  // namespace mneme::engine::infini
