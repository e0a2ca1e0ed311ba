#include "engine/arch/llama/weights.h"

#include <array>
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::llama {
namespace {

// Names inside a layer, without ".weight" or ".bias".
struct Names {
  const char* embedding;
  const char* final_norm;
  const char* head;
  const char* layer_prefix;
  const char *attention_norm, *q, *k, *v, *output, *ffn_norm, *gate, *up, *down;
};

constexpr Names kGgufNames = {"token_embd", "output_norm", "output",  "blk.",        "attn_norm",
                              "attn_q",     "attn_k",      "attn_v",  "attn_output", "ffn_norm",
                              "ffn_gate",   "ffn_up",      "ffn_down"};
constexpr Names kHfNames = {"model.embed_tokens",
                            "model.norm",
                            "lm_head",
                            "model.layers.",
                            "input_layernorm",
                            "self_attn.q_proj",
                            "self_attn.k_proj",
                            "self_attn.v_proj",
                            "self_attn.o_proj",
                            "post_attention_layernorm",
                            "mlp.gate_proj",
                            "mlp.up_proj",
                            "mlp.down_proj"};

// Tables that older converters wrote and that the configuration already determines.
bool IsDerivedTable(const std::string& name) {
  return name == "rope_freqs.weight" || absl::EndsWith(name, ".attn_rot_embd.weight") ||
         absl::EndsWith(name, ".rotary_emb.inv_freq");
}

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

  absl::StatusOr<Linear> Product(const std::string& name, int64_t rows, int64_t columns,
                                 bool may_have_bias) {
    Linear linear;
    MNEME_ASSIGN_OR_RETURN(linear.weight, Matrix(name + ".weight", rows, columns));
    if (may_have_bias && checkpoint_.tensors().contains(name + ".bias")) {
      MNEME_ASSIGN_OR_RETURN(linear.bias, Vector(name + ".bias", rows));
    }
    return linear;
  }

  // The first tensor that nobody asked for.
  absl::Status RefuseUnused(const std::string& tied_head) const {
    for (const auto& [name, tensor] : checkpoint_.tensors()) {
      if (used_.contains(name) || IsDerivedTable(name) || name == tied_head) continue;
      return absl::InvalidArgumentError(absl::StrCat(checkpoint_.path(), ": tensor '", name,
                                                     "' is not part of the llama architecture"));
    }
    return absl::OkStatus();
  }

  int64_t bytes() const { return bytes_; }
  int64_t parameters() const { return parameters_; }
  const std::array<int64_t, kNumDTypes>& bytes_by_dtype() const { return bytes_by_dtype_; }

 private:
  const Checkpoint& checkpoint_;
  std::set<std::string> used_;
  int64_t bytes_ = 0;
  int64_t parameters_ = 0;
  std::array<int64_t, kNumDTypes> bytes_by_dtype_{};
};

}  // namespace

absl::StatusOr<Weights> LoadWeights(const Checkpoint& checkpoint, const Config& config,
                                    ArchInfo* info) {
  const Names& names = checkpoint.format() == Checkpoint::Format::kGguf ? kGgufNames : kHfNames;
  const int64_t D = config.width, F = config.ffn_width, V = config.vocab_size;
  const int64_t q_width = config.heads * config.head_dim;
  const int64_t kv_width = config.kv_heads * config.head_dim;
  const bool attention_bias = config.may_have_attention_bias;
  const bool mlp_bias = config.may_have_mlp_bias;

  Loader loader(checkpoint);
  Weights weights;
  // Layers first, so that what every token multiplies by can be told from embedding and head.
  weights.layers.reserve(std::min<int64_t>(config.num_layers, checkpoint.tensors().size()));
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string prefix = absl::StrCat(names.layer_prefix, i, ".");
    Layer layer;
    MNEME_ASSIGN_OR_RETURN(layer.attention_norm,
                           loader.Vector(prefix + names.attention_norm + ".weight", D));
    MNEME_ASSIGN_OR_RETURN(layer.q, loader.Product(prefix + names.q, q_width, D, attention_bias));
    MNEME_ASSIGN_OR_RETURN(layer.k, loader.Product(prefix + names.k, kv_width, D, attention_bias));
    MNEME_ASSIGN_OR_RETURN(layer.v, loader.Product(prefix + names.v, kv_width, D, attention_bias));
    MNEME_ASSIGN_OR_RETURN(layer.output,
                           loader.Product(prefix + names.output, D, q_width, attention_bias));
    MNEME_ASSIGN_OR_RETURN(layer.ffn_norm, loader.Vector(prefix + names.ffn_norm + ".weight", D));
    MNEME_ASSIGN_OR_RETURN(layer.gate, loader.Product(prefix + names.gate, F, D, mlp_bias));
    MNEME_ASSIGN_OR_RETURN(layer.up, loader.Product(prefix + names.up, F, D, mlp_bias));
    MNEME_ASSIGN_OR_RETURN(layer.down, loader.Product(prefix + names.down, D, F, mlp_bias));
    weights.layers.push_back(std::move(layer));
  }
  info->layer_matrix_parameters =
      config.num_layers * (2 * D * q_width + 2 * D * kv_width + 3 * D * F);
  MNEME_ASSIGN_OR_RETURN(weights.final_norm,
                         loader.Vector(std::string(names.final_norm) + ".weight", D));
  const int64_t body_bytes = loader.bytes();
  MNEME_ASSIGN_OR_RETURN(weights.embedding,
                         loader.Matrix(std::string(names.embedding) + ".weight", V, D));

  const std::string head = std::string(names.head) + ".weight";
  const bool has_head = checkpoint.tensors().contains(head);
  const bool tied = config.requires_tied_embeddings ||
                    (!has_head && checkpoint.format() == Checkpoint::Format::kGguf);
  if (tied) {
    weights.head = weights.embedding;
  } else {
    MNEME_ASSIGN_OR_RETURN(weights.head, loader.Matrix(head, V, D));
  }
  // A tied checkpoint may carry a second copy of the embedding under the head's name.
  MNEME_RETURN_IF_ERROR(loader.RefuseUnused(tied ? head : std::string()));

  info->parameters = loader.parameters();
  info->weight_bytes = loader.bytes();
  info->decode_weight_bytes =
      body_bytes + weights.head.size_bytes() + weights.embedding.row_bytes();
  int64_t most = -1;
  for (int i = 0; i < kNumDTypes; ++i) {
    const int64_t bytes = loader.bytes_by_dtype()[i];
    if (bytes > most) {
      most = bytes;
      info->weight_dtype = static_cast<DType>(i);
    }
    if (bytes > 0 && IsQuantized(static_cast<DType>(i))) info->has_quantized_weights = true;
  }
  return weights;
}

}  // namespace mneme::engine::llama
