#include "engine/arch/decoder_block.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/exec.h"
#include "engine/kernels/kernels.h"

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

MatMulTask Product(const Weight& weight, float* y, bool accumulate) {
  return {.weight = weight, .y = y, .y_stride = weight.rows, .accumulate = accumulate};
}

MatMulTask Product(const Linear& linear, float* y, bool accumulate) {
  MatMulTask task = Product(linear.weight, y, accumulate);
  if (!linear.bias.empty()) task.bias = linear.bias.data();
  return task;
}

std::string LayerPrefix(const DecoderNames& names, int64_t index) {
  return absl::StrCat(names.layer_prefix, index, ".");
}

absl::StatusOr<Linear> LoadLinear(WeightReader& reader, const std::string& name, int64_t rows,
                                  int64_t columns, bool may_have_bias) {
  Linear linear;
  MNEME_ASSIGN_OR_RETURN(linear.weight, reader.Matrix(name + ".weight", rows, columns));
  if (may_have_bias && reader.Has(name + ".bias")) {
    MNEME_ASSIGN_OR_RETURN(linear.bias, reader.Floats(name + ".bias", {{rows}}));
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
  MNEME_ASSIGN_OR_RETURN(layer.ffn_norm, reader.Floats(prefix + names.ffn_norm + ".weight", {{D}}));
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
                         reader.Floats(prefix + names.attention_norm + ".weight", {{D}}));
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

absl::StatusOr<DecoderEnds> LoadDecoderEnds(WeightReader& reader, const DecoderNames& names,
                                            const DecoderShape& shape, bool tied, ArchInfo* info) {
  const int64_t D = shape.width, V = shape.vocab_size;
  info->layer_matrix_parameters = reader.matrix_parameters();
  DecoderEnds ends;
  MNEME_ASSIGN_OR_RETURN(ends.final_norm,
                         reader.Floats(std::string(names.final_norm) + ".weight", {{D}}));
  const int64_t body_bytes = reader.bytes();
  MNEME_ASSIGN_OR_RETURN(ends.embedding,
                         reader.Matrix(std::string(names.embedding) + ".weight", V, D));
  ends.head = ends.embedding;
  if (!tied) {
    MNEME_ASSIGN_OR_RETURN(ends.head, reader.Matrix(std::string(names.head) + ".weight", V, D));
  }
  reader.FillInfo(info);
  info->decode_weight_bytes = body_bytes + static_cast<int64_t>(ends.head.size_bytes()) +
                              static_cast<int64_t>(ends.embedding.row_bytes());
  return ends;
}

void ProjectQkv(Exec& exec, const DecoderLayer& layer, float eps, int64_t T, const float* x,
                float* normed, float* q, float* k, float* v) {
  const auto D = static_cast<int64_t>(layer.attention_norm.size());
  exec.kernels().rms_norm(exec, x, layer.attention_norm.data(), eps, T, D, normed);
  const std::array tasks = {Product(layer.q, q), Product(layer.k, k), Product(layer.v, v)};
  exec.kernels().matmul(exec, tasks, normed, D, T);
}

void AddOutput(Exec& exec, const DecoderLayer& layer, int64_t T, const float* mixed, float* x) {
  const MatMulTask task = Product(layer.output, x, true);
  exec.kernels().matmul(exec, {&task, 1}, mixed, layer.output.weight.columns, T);
}

void FeedForward(Exec& exec, const FeedForwardWeights& layer, float eps, int64_t T, float* x,
                 float* normed, float* gate, float* up) {
  const Kernels& kernels = exec.kernels();
  const int64_t D = layer.down.weight.rows, F = layer.down.weight.columns;
  kernels.rms_norm(exec, x, layer.ffn_norm.data(), eps, T, D, normed);
  const std::array tasks = {Product(layer.gate, gate), Product(layer.up, up)};
  kernels.matmul(exec, tasks, normed, D, T);
  kernels.silu_mul(exec, gate, up, T * F, gate);
  const MatMulTask down = Product(layer.down, x, true);
  kernels.matmul(exec, {&down, 1}, gate, F, T);
}

void WriteLogits(Exec& exec, const DecoderEnds& ends, float eps, std::span<const ArchSlice> slices,
                 const float* x, float* normed, OutputHead& head) {
  const int64_t V = ends.head.rows, D = ends.head.columns;
  const int64_t rows = head.Gather(exec, slices, x, D, V, normed);
  if (rows == 0) return;
  exec.kernels().rms_norm(exec, normed, ends.final_norm.data(), eps, rows, D, normed);
  head.Product(exec, ends.head, normed);
}

absl::Status CheckKvDtype(DType dtype) {
  if (dtype == DType::kF16 || dtype == DType::kF32) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("kv_dtype must be F16 or F32, not ", std::string(Traits(dtype).name)));
}

}  // namespace mneme::engine
