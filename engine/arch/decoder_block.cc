#include "engine/arch/decoder_block.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"

namespace mneme::engine {

const DecoderNames kGgufDecoderNames = {
    "token_embd", "output_norm", "output",   "blk.",     "attn_norm", "attn_q",  "attn_k",
    "attn_v",     "attn_output", "ffn_norm", "ffn_gate", "ffn_up",    "ffn_down"};
const DecoderNames kHfDecoderNames = {"model.embed_tokens",
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

ops::Product Product(const Linear& linear, Rows y, bool accumulate) {
  return {.weight = linear.weight, .y = y, .accumulate = accumulate, .bias = linear.bias};
}

std::string LayerPrefix(const DecoderNames& names, int64_t index) {
  return absl::StrCat(names.layer_prefix, index, ".");
}

absl::StatusOr<Linear> LoadLinear(WeightReader& reader, const std::string& name, int64_t rows,
                                  int64_t columns, bool may_have_bias) {
  Linear linear;
  MNEME_ASSIGN_OR_RETURN(linear.weight, reader.Matrix(name + ".weight", rows, columns));
  if (may_have_bias && reader.Has(name + ".bias")) {
    MNEME_ASSIGN_OR_RETURN(linear.bias, reader.Vector(name + ".bias", {{rows}}));
  }
  return linear;
}

absl::StatusOr<FeedForwardWeights> LoadFeedForward(WeightReader& reader, const DecoderNames& names,
                                                   const DecoderShape& shape, int64_t index,
                                                   bool with_gate) {
  const int64_t D = shape.width, F = shape.ffn_width;
  const bool bias = shape.may_have_mlp_bias;
  const std::string prefix = LayerPrefix(names, index);
  FeedForwardWeights layer;
  MNEME_ASSIGN_OR_RETURN(layer.ffn_norm, reader.Vector(prefix + names.ffn_norm + ".weight", {{D}}));
  if (with_gate) {
    MNEME_ASSIGN_OR_RETURN(layer.gate, LoadLinear(reader, prefix + names.gate, F, D, bias));
  }
  MNEME_ASSIGN_OR_RETURN(layer.up, LoadLinear(reader, prefix + names.up, F, D, bias));
  MNEME_ASSIGN_OR_RETURN(layer.down, LoadLinear(reader, prefix + names.down, D, F, bias));
  return layer;
}

absl::StatusOr<DecoderLayer> LoadDecoderLayer(WeightReader& reader, const DecoderNames& names,
                                              const DecoderShape& shape, int64_t index,
                                              bool with_gate) {
  const int64_t D = shape.width;
  const bool attention_bias = shape.may_have_attention_bias;
  const std::string prefix = LayerPrefix(names, index);
  DecoderLayer layer;
  MNEME_ASSIGN_OR_RETURN(layer.attention_norm,
                         reader.Vector(prefix + names.attention_norm + ".weight", {{D}}));
  MNEME_ASSIGN_OR_RETURN(layer.q,
                         LoadLinear(reader, prefix + names.q, shape.q_width, D, attention_bias));
  MNEME_ASSIGN_OR_RETURN(layer.k,
                         LoadLinear(reader, prefix + names.k, shape.k_width, D, attention_bias));
  MNEME_ASSIGN_OR_RETURN(layer.v,
                         LoadLinear(reader, prefix + names.v, shape.v_width, D, attention_bias));
  MNEME_ASSIGN_OR_RETURN(layer.output, LoadLinear(reader, prefix + names.output, D,
                                                  shape.mixed_width, attention_bias));
  MNEME_ASSIGN_OR_RETURN(static_cast<FeedForwardWeights&>(layer),
                         LoadFeedForward(reader, names, shape, index, with_gate));
  return layer;
}

absl::Status LoadDecoderEnds(WeightReader& reader, const DecoderNames& names,
                             const DecoderShape& shape, bool tied, ArchInfo* info,
                             DecoderEnds* ends) {
  const int64_t D = shape.width, V = shape.vocab_size;
  info->layer_matrix_parameters = reader.matrix_parameters();
  MNEME_ASSIGN_OR_RETURN(ends->final_norm,
                         reader.Vector(std::string(names.final_norm) + ".weight", {{D}}));
  const int64_t body_bytes = reader.bytes();
  MNEME_ASSIGN_OR_RETURN(ends->embedding,
                         reader.Matrix(std::string(names.embedding) + ".weight", V, D));
  ends->head = ends->embedding;
  if (!tied) {
    MNEME_ASSIGN_OR_RETURN(ends->head, reader.Matrix(std::string(names.head) + ".weight", V, D));
  }
  reader.FillInfo(info);
  info->decode_weight_bytes = body_bytes + static_cast<int64_t>(ends->head.size_bytes()) +
                              static_cast<int64_t>(ends->embedding.row_bytes());
  return absl::OkStatus();
}

void ProjectQkv(Exec& exec, const DecoderLayer& layer, float eps, Rows x, Rows normed, Rows q,
                Rows k, Rows v) {
  ops::RmsNorm(exec, x, layer.attention_norm, eps, normed);
  ops::MatMul(exec, normed,
              std::array{Product(layer.q, q), Product(layer.k, k), Product(layer.v, v)});
}

void AddOutput(Exec& exec, const DecoderLayer& layer, Rows mixed, Rows x) {
  ops::MatMul(exec, mixed, Product(layer.output, x, /*accumulate=*/true));
}

void FeedForward(Exec& exec, const FeedForwardWeights& layer, float eps, Rows x, Rows normed,
                 Rows gate, Rows up) {
  ops::RmsNorm(exec, x, layer.ffn_norm, eps, normed);
  ops::MatMul(exec, normed, std::array{Product(layer.gate, gate), Product(layer.up, up)});
  ops::SiluMul(exec, gate, up, gate);
  ops::MatMul(exec, gate, Product(layer.down, x, /*accumulate=*/true));
}

void WriteHidden(Exec& exec, const DecoderEnds& ends, float eps, std::span<const int64_t> wanted,
                 Rows x, Rows hidden) {
  if (wanted.empty()) return;
  ops::Gather(exec, x, wanted, hidden);
  ops::RmsNorm(exec, hidden, ends.final_norm, eps, hidden);
}

absl::Status CheckKvDtype(DType dtype) {
  if (dtype == DType::kF16 || dtype == DType::kF32) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("kv_dtype must be F16 or F32, not ", std::string(Traits(dtype).name)));
}

}  // namespace mneme::engine
