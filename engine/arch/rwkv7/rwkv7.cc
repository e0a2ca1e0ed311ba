#include "engine/arch/rwkv7/rwkv7.h"

#include <algorithm>
#include <array>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/exec.h"
#include "engine/kernels/kernels.h"

namespace mneme::engine::rwkv7 {
namespace {

// Order of a layer's tensors in the schema.
enum StateIndex { kAttShift, kFfnShift, kWkv, kTensorsPerLayer };

MatMulTask Product(const Weight& weight, float* y, bool accumulate = false) {
  return {.weight = weight, .y = y, .y_stride = weight.rows, .accumulate = accumulate};
}

// y = B x + bias, x [T, R] being what the first factor and its function left.
void Expand(Exec& exec, const LowRank& map, const float* x, int64_t T, float* y) {
  const int64_t C = map.b.weight.rows;
  if (!map.bias.empty()) {
    for (int64_t t = 0; t < T; ++t) std::copy(map.bias.begin(), map.bias.end(), y + t * C);
  }
  const MatMulTask task = Product(map.b.weight, y, !map.bias.empty());
  exec.kernels().matmul(exec, {&task, 1}, x, map.rank(), T);
}

void Normalize(Exec& exec, const Norm& norm, float eps, const float* x, int64_t T, int64_t D,
               int64_t groups, float* y) {
  exec.kernels().layer_norm(exec, {.x = x,
                                   .w = norm.weight.data(),
                                   .b = norm.bias.data(),
                                   .eps = eps,
                                   .T = T,
                                   .D = D,
                                   .groups = groups,
                                   .y = y});
}

}  // namespace

// Arrays of one pass over T tokens, row-major.
struct Rwkv7::Activations {
  int64_t T = 0;
  float* x = nullptr;        // [T, C] residual stream
  float* z = nullptr;        // [T, C] normalised
  float* delta = nullptr;    // [T, C] the row before minus z
  float* mixed = nullptr;    // [T, C] one blend of the two at a time
  float* r = nullptr;        // [T, C]
  float* w = nullptr;        // [T, C]
  float* k = nullptr;        // [T, C]
  float* v = nullptr;        // [T, C]
  float* a = nullptr;        // [T, C]
  float* gate = nullptr;     // [T, C]
  float* kappa = nullptr;    // [T, C]
  float* v_mix = nullptr;    // [T, C]
  float* v_first = nullptr;  // [T, C] layer 0's v
  float* y = nullptr;        // [T, C]
  float* low = nullptr;      // [T, largest rank]
  float* ffn = nullptr;      // [T, F]
};

absl::StatusOr<std::unique_ptr<Arch>> Rwkv7::Create(std::shared_ptr<const Checkpoint> checkpoint,
                                                    const ArchOptions& options) {
  std::unique_ptr<Rwkv7> arch(new Rwkv7);
  ArchInfo& info = arch->info_;
  MNEME_ASSIGN_OR_RETURN(arch->weights_, Load(*checkpoint, &arch->config_, &info));
  const Config& config = arch->config_;
  const int64_t C = config.width, N = config.head_size;
  std::vector<StateTensor> tensors;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const auto layer = static_cast<int32_t>(i);
    tensors.push_back({.layer = layer, .name = "att_shift", .shape = {C}});
    tensors.push_back({.layer = layer, .name = "ffn_shift", .shape = {C}});
    tensors.push_back({.layer = layer, .name = "wkv", .shape = {config.heads, N, N}});
  }
  arch->schema_ = StateSchema(std::move(tensors));

  info.architecture = "rwkv7";
  info.vocab_size = config.vocab_size;
  info.num_layers = config.num_layers;
  info.state_formula =
      absl::StrCat("4 * L * C * (2 + S) = 4 * ", config.num_layers, " * ", C, " * (2 + ", N,
                   ") = ", 4 * config.num_layers * C * (2 + N), " bytes");
  arch->checkpoint_ = std::move(checkpoint);
  return arch;
}

Rwkv7::Activations Rwkv7::Reserve(int64_t T) {
  Activations act{.T = T};
  const int64_t size = T * config_.width;
  const StepBuffers::Part parts[] = {{&act.x, size},
                                     {&act.z, size},
                                     {&act.delta, size},
                                     {&act.mixed, size},
                                     {&act.r, size},
                                     {&act.w, size},
                                     {&act.k, size},
                                     {&act.v, size},
                                     {&act.a, size},
                                     {&act.gate, size},
                                     {&act.kappa, size},
                                     {&act.v_mix, size},
                                     {&act.v_first, size},
                                     {&act.y, size},
                                     {&act.low, T * config_.max_rank},
                                     {&act.ffn, T * config_.ffn_width}};
  buffers_.Reserve(parts);
  return act;
}

absl::Status Rwkv7::Forward(Exec& exec, std::span<const ArchSlice> slices) {
  const Kernels& kernels = exec.kernels();
  const int64_t C = config_.width;
  FlattenTokens(slices, &tokens_);
  const auto T = static_cast<int64_t>(tokens_.size());
  if (T == 0) return absl::OkStatus();
  const Activations act = Reserve(T);

  kernels.embed_rows(exec, weights_.embedding, tokens_, act.x);
  Normalize(exec, weights_.embedding_norm, config_.norm_eps, act.x, T, C, 1, act.x);
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    TimeMix(exec, slices, i, act);
    ChannelMix(exec, slices, i, act);
  }
  const int64_t rows = head_.Gather(slices, act.x, C, config_.vocab_size, act.z);
  if (rows == 0) return absl::OkStatus();
  Normalize(exec, weights_.final_norm, config_.norm_eps, act.z, rows, C, 1, act.z);
  head_.Product(exec, weights_.head, act.z);
  return absl::OkStatus();
}

void Rwkv7::Shift(Exec& exec, std::span<const ArchSlice> slices, size_t tensor,
                  const Activations& act) {
  const int64_t C = config_.width;
  const size_t offset = schema_.tensors()[tensor].offset_bytes;
  shifts_.clear();
  int64_t first = 0;
  for (const ArchSlice& slice : slices) {
    const auto T = static_cast<int64_t>(slice.tokens.size());
    if (T == 0) continue;
    shifts_.push_back({.x = act.z + first * C,
                       .previous = slice.state->block.as<float>(offset),
                       .delta = act.delta + first * C,
                       .T = T,
                       .C = C});
    first += T;
  }
  exec.kernels().token_shift(exec, shifts_);
}

void Rwkv7::TimeMix(Exec& exec, std::span<const ArchSlice> slices, int64_t index,
                    const Activations& act) {
  const Kernels& kernels = exec.kernels();
  const Layer& layer = weights_.layers[index];
  const int64_t C = config_.width, H = config_.heads, N = config_.head_size, T = act.T;
  Normalize(exec, layer.attention_norm, config_.norm_eps, act.x, T, C, 1, act.z);
  Shift(exec, slices, index * kTensorsPerLayer + kAttShift, act);

  // act.mixed = the blend that a product reads.
  const auto blend = [&](const std::vector<float>& mu) {
    kernels.lerp(exec,
                 {.x = act.z, .delta = act.delta, .mu = mu.data(), .T = T, .C = C, .y = act.mixed});
  };
  const auto product = [&](const Weight& weight, float* y) {
    const MatMulTask task = Product(weight, y);
    kernels.matmul(exec, {&task, 1}, act.mixed, C, T);
  };
  blend(layer.mu_r);
  product(layer.r, act.r);
  blend(layer.mu_w);
  product(layer.w.a.weight, act.low);
  kernels.activate(exec, Activation::kTanh, act.low, T * layer.w.rank(), act.low);
  Expand(exec, layer.w, act.low, T, act.w);
  blend(layer.mu_k);
  product(layer.k, act.k);
  blend(layer.mu_v);
  product(layer.v, act.v);
  if (index == 0) {
    std::copy_n(act.v, T * C, act.v_first);
  } else {
    product(layer.v_mix.a.weight, act.low);
    Expand(exec, layer.v_mix, act.low, T, act.v_mix);
  }
  blend(layer.mu_a);
  product(layer.a.a.weight, act.low);
  Expand(exec, layer.a, act.low, T, act.a);
  blend(layer.mu_g);
  product(layer.gate.a.weight, act.low);
  kernels.activate(exec, Activation::kSigmoid, act.low, T * layer.gate.rank(), act.low);
  Expand(exec, layer.gate, act.low, T, act.gate);

  kernels.wkv7_prepare(exec, {.w = act.w,
                              .a = act.a,
                              .k = act.k,
                              .v = act.v,
                              .kappa = act.kappa,
                              .mix = index == 0 ? nullptr : act.v_mix,
                              .first = act.v_first,
                              .k_k = layer.k_k.data(),
                              .k_a = layer.k_a.data(),
                              .T = T,
                              .heads = H,
                              .head_size = N});
  const size_t offset = schema_.tensors()[index * kTensorsPerLayer + kWkv].offset_bytes;
  scans_.clear();
  int64_t first = 0;
  for (const ArchSlice& slice : slices) {
    const auto tokens = static_cast<int64_t>(slice.tokens.size());
    const int64_t at = first * C;
    scans_.push_back({.state = slice.state->block.as<float>(offset),
                      .r = act.r + at,
                      .decay = act.w + at,
                      .k = act.k + at,
                      .v = act.v + at,
                      .kappa = act.kappa + at,
                      .b = act.a + at,
                      .y = act.y + at,
                      .T = tokens,
                      .heads = H,
                      .head_size = N});
    first += tokens;
  }
  kernels.wkv7(exec, scans_);
  Normalize(exec, layer.group_norm, config_.norm_eps * static_cast<float>(N), act.y, T, C, H,
            act.y);
  kernels.wkv7_bonus(exec, {.r = act.r,
                            .k = act.k,
                            .v = act.v,
                            .gate = act.gate,
                            .r_k = layer.r_k.data(),
                            .y = act.y,
                            .T = T,
                            .heads = H,
                            .head_size = N});
  const MatMulTask output = Product(layer.output, act.x, true);
  kernels.matmul(exec, {&output, 1}, act.y, C, T);
}

void Rwkv7::ChannelMix(Exec& exec, std::span<const ArchSlice> slices, int64_t index,
                       const Activations& act) {
  const Kernels& kernels = exec.kernels();
  const Layer& layer = weights_.layers[index];
  const int64_t C = config_.width, F = config_.ffn_width, T = act.T;
  Normalize(exec, layer.ffn_norm, config_.norm_eps, act.x, T, C, 1, act.z);
  Shift(exec, slices, index * kTensorsPerLayer + kFfnShift, act);
  kernels.lerp(exec, {.x = act.z,
                      .delta = act.delta,
                      .mu = layer.ffn_mu_k.data(),
                      .T = T,
                      .C = C,
                      .y = act.mixed});
  const MatMulTask key = Product(layer.ffn_key, act.ffn);
  kernels.matmul(exec, {&key, 1}, act.mixed, C, T);
  kernels.activate(exec, Activation::kReluSquared, act.ffn, T * F, act.ffn);
  const MatMulTask value = Product(layer.ffn_value, act.x, true);
  kernels.matmul(exec, {&value, 1}, act.ffn, F, T);
}

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  return Rwkv7::Create(std::move(checkpoint), options);
}

// "arwkv7", which has another body, is taken too, so that it is refused by its name.
bool Matches(const Checkpoint& checkpoint) {
  if (checkpoint.format() != Checkpoint::Format::kSafetensors) return false;
  const auto it = checkpoint.metadata().find("model_type");
  if (it == checkpoint.metadata().end()) return false;
  const auto* type = std::get_if<std::string>(&it->second);
  return type != nullptr && (*type == "rwkv7" || *type == "arwkv7");
}

}  // namespace mneme::engine::rwkv7
