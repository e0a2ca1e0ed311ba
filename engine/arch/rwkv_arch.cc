#include "engine/arch/rwkv_arch.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/kernels/exec.h"
#include "engine/kernels/kernels.h"

namespace mneme::engine::rwkv {
namespace {

// The tensors of a layer that every version has come first in the schema.
enum ShiftIndex { kAttShift, kFfnShift, kNumShifts };

}  // namespace

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

void Multiply(Exec& exec, const Weight& weight, const float* x, int64_t stride, int64_t T, float* y,
              const ProductOptions& options) {
  const MatMulTask task{.weight = weight,
                        .y = y,
                        .y_stride = weight.rows,
                        .accumulate = options.accumulate,
                        .bias = options.bias,
                        .scale = options.scale};
  exec.kernels().matmul(exec, {&task, 1}, x, stride, T);
}

void Expand(Exec& exec, const LowRank& map, const float* x, int64_t T, float* y) {
  Multiply(exec, map.b.weight, x, map.rank(), T, y,
           {.bias = map.bias.empty() ? nullptr : map.bias.data()});
}

RwkvArch::RwkvArch(std::shared_ptr<const Checkpoint> checkpoint, Model model, std::string name)
    : checkpoint_(std::move(checkpoint)), model_(std::move(model)) {
  const int64_t L = config().num_layers, C = config().width;
  const int64_t H = config().heads, N = config().head_size;
  Describe(std::move(name),
           absl::StrCat("4 * L * C * (2 + S) = 4 * ", L, " * ", C, " * (2 + ", N,
                        ") = ", 4 * L * C * (2 + N), " bytes"),
           {{.name = "wkv", .shape = {H, N, N}}});
}

RwkvArch::RwkvArch(std::shared_ptr<const Checkpoint> checkpoint, Model model, std::string name,
                   std::initializer_list<const char*> memory)
    : checkpoint_(std::move(checkpoint)), model_(std::move(model)) {
  const int64_t L = config().num_layers, C = config().width;
  std::vector<StateTensor> tensors;
  for (const char* vector : memory) tensors.push_back({.name = vector, .shape = {C}});
  const int64_t bytes = 4 * (kNumShifts + static_cast<int64_t>(tensors.size()));
  Describe(
      std::move(name),
      absl::StrCat(bytes, " * L * C = ", bytes, " * ", L, " * ", C, " = ", bytes * L * C, " bytes"),
      tensors);
}

void RwkvArch::Describe(std::string name, std::string state_formula,
                        const std::vector<StateTensor>& memory) {
  ArchInfo& info = model_.info;
  info.architecture = std::move(name);
  info.vocab_size = config().vocab_size;
  info.num_layers = config().num_layers;
  info.state_formula = std::move(state_formula);
  tensors_per_layer_ = kNumShifts + static_cast<int64_t>(memory.size());
  std::vector<StateTensor> tensors;
  for (int64_t i = 0; i < config().num_layers; ++i) {
    tensors.push_back({.name = "att_shift", .shape = {config().width}});
    tensors.push_back({.name = "ffn_shift", .shape = {config().width}});
    tensors.insert(tensors.end(), memory.begin(), memory.end());
    for (int64_t j = 0; j < tensors_per_layer_; ++j) {
      tensors[i * tensors_per_layer_ + j].layer = static_cast<int32_t>(i);
    }
  }
  schema_ = StateSchema(std::move(tensors));
}

size_t RwkvArch::MemoryOffset(int64_t layer, int64_t index) const {
  return schema_.tensors()[layer * tensors_per_layer_ + kNumShifts + index].offset_bytes;
}

absl::Status RwkvArch::Forward(Exec& exec, std::span<const ArchSlice> slices) {
  const Config& config = model_.config;
  const int64_t C = config.width;
  FlattenTokens(slices, &tokens_);
  const auto T = static_cast<int64_t>(tokens_.size());
  if (T == 0) return absl::OkStatus();
  Pass pass{.slices = slices, .T = T};
  std::vector<StepBuffers::Part> parts = TimeMixArrays(T);
  for (float** array : {&pass.x, &pass.z, &pass.delta, &pass.mixed}) {
    parts.push_back({array, T * C});
  }
  parts.push_back({&pass.ffn, T * config.ffn_width});
  buffers_.Reserve(parts);

  exec.kernels().embed_rows(exec, model_.embedding, tokens_, pass.x);
  Normalize(exec, model_.embedding_norm, config.norm_eps, pass.x, T, C, 1, pass.x);
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const Block& block = model_.blocks[i];
    Normalize(exec, block.attention_norm, config.norm_eps, pass.x, T, C, 1, pass.z);
    Shift(exec, pass, i * tensors_per_layer_ + kAttShift);
    TimeMix(exec, pass, i);
    Normalize(exec, block.ffn_norm, config.norm_eps, pass.x, T, C, 1, pass.z);
    Shift(exec, pass, i * tensors_per_layer_ + kFfnShift);
    ChannelMix(exec, pass, block);
  }
  const int64_t rows = head_.Gather(exec, slices, pass.x, C, config.vocab_size, pass.z);
  if (rows == 0) return absl::OkStatus();
  Normalize(exec, model_.final_norm, config.norm_eps, pass.z, rows, C, 1, pass.z);
  head_.Product(exec, model_.head, pass.z);
  return absl::OkStatus();
}

void RwkvArch::Shift(Exec& exec, const Pass& pass, size_t tensor) {
  const int64_t C = model_.config.width;
  const size_t offset = schema_.tensors()[tensor].offset_bytes;
  shifts_.clear();
  ForEachSlice(pass.slices, [&](const ArchSlice& slice, int64_t first) {
    shifts_.push_back({.x = pass.z + first * C,
                       .previous = slice.state->block.as<float>(offset),
                       .delta = pass.delta + first * C,
                       .T = static_cast<int64_t>(slice.tokens.size()),
                       .C = C});
  });
  exec.kernels().token_shift(exec, shifts_);
}

void RwkvArch::Blend(Exec& exec, const Pass& pass, const std::vector<float>& mu,
                     const float* dynamic) const {
  const int64_t C = model_.config.width;
  exec.kernels().lerp(exec, {.x = pass.z,
                             .delta = pass.delta,
                             .mu = mu.data(),
                             .dynamic = dynamic,
                             .dynamic_stride = C,
                             .T = pass.T,
                             .C = C,
                             .y = pass.mixed});
}

void RwkvArch::Project(Exec& exec, const Pass& pass, const Weight& weight, float* y) const {
  Multiply(exec, weight, pass.mixed, model_.config.width, pass.T, y);
}

void RwkvArch::ChannelMix(Exec& exec, const Pass& pass, const Block& block) {
  const Kernels& kernels = exec.kernels();
  const int64_t F = model_.config.ffn_width, T = pass.T, size = T * model_.config.width;
  Blend(exec, pass, block.ffn_mu_k);
  Project(exec, pass, block.ffn_key, pass.ffn);
  kernels.activate(exec, Activation::kReluSquared, pass.ffn, T * F, pass.ffn);
  if (block.ffn_receptance.rows == 0) {
    Multiply(exec, block.ffn_value, pass.ffn, F, T, pass.x, {.accumulate = true});
    return;
  }
  Blend(exec, pass, block.ffn_mu_r);
  // z and delta have been read.
  float* const receptance = pass.z;
  float* const value = pass.delta;
  Project(exec, pass, block.ffn_receptance, receptance);
  kernels.activate(exec, Activation::kSigmoid, receptance, size, receptance);
  Multiply(exec, block.ffn_value, pass.ffn, F, T, value, {.scale = block.output_scale});
  kernels.mul(exec, receptance, size, value);
  kernels.add(exec, value, size, pass.x);
}

void RwkvArch::MixHeads(Exec& exec, const Pass& pass, int64_t layer, const HeadMix& mix) {
  const Config& config = model_.config;
  const int64_t C = config.width, H = config.heads, T = pass.T;
  const size_t offset = MemoryOffset(layer, 0);
  scans_.clear();
  ForEachSlice(pass.slices, [&](const ArchSlice& slice, int64_t first) {
    scans_.push_back({.state = slice.state->block.as<float>(offset),
                      .r = mix.r + first * C,
                      .k = mix.k + first * C,
                      .v = mix.v + first * C,
                      .decay = mix.decay + first * mix.decay_stride,
                      .decay_stride = mix.decay_stride,
                      .bonus = mix.bonus,
                      .y = mix.y + first * C,
                      .T = static_cast<int64_t>(slice.tokens.size()),
                      .heads = H,
                      .head_size = config.head_size});
  });
  exec.kernels().wkv6(exec, scans_);
  Normalize(exec, mix.norm, config.group_norm_eps, mix.y, T, C, H, mix.y);
  if (mix.gate != nullptr) exec.kernels().silu_mul(exec, mix.gate, mix.y, T * C, mix.y);
  Multiply(exec, mix.output, mix.y, C, T, pass.x,
           {.accumulate = true, .scale = model_.blocks[layer].output_scale});
}

}  // namespace mneme::engine::rwkv
