#include "engine/arch/rwkv/rwkv_arch.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/kernels/ops.h"

namespace mneme::engine::rwkv {
namespace {

// The tensors of a layer that every version has come first in the schema.
enum ShiftIndex { kAttShift, kFfnShift, kNumShifts };

}  // namespace

void Normalize(Exec& exec, const Norm& norm, float eps, Rows x, Rows y, int64_t groups) {
  ops::LayerNorm(exec, x, norm.weight, norm.bias, eps, y, groups);
}

void Expand(Exec& exec, const LowRank& map, Rows x, Rows y) {
  ops::MatMul(exec, x, {.weight = map.b, .y = y, .bias = map.bias});
}

RwkvArch::RwkvArch(std::shared_ptr<const Checkpoint> checkpoint, Model model, std::string name)
    : checkpoint_(std::move(checkpoint)), model_(std::move(model)), arena_(model_.store.memory()) {
  const int64_t L = config().num_layers, C = config().width;
  const int64_t H = config().heads, N = config().head_size;
  Describe(std::move(name),
           absl::StrCat("4 * L * C * (2 + S) = 4 * ", L, " * ", C, " * (2 + ", N,
                        ") = ", 4 * L * C * (2 + N), " bytes"),
           {{.name = "wkv", .shape = {H, N, N}}});
}

RwkvArch::RwkvArch(std::shared_ptr<const Checkpoint> checkpoint, Model model, std::string name,
                   std::initializer_list<const char*> vectors)
    : checkpoint_(std::move(checkpoint)), model_(std::move(model)), arena_(model_.store.memory()) {
  const int64_t L = config().num_layers, C = config().width;
  std::vector<StateTensor> tensors;
  for (const char* vector : vectors) tensors.push_back({.name = vector, .shape = {C}});
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

StateField RwkvArch::MemoryField(int64_t layer, int64_t index) const {
  return schema_.Field(layer * tensors_per_layer_ + kNumShifts + index);
}

void RwkvArch::Forward(Exec& exec, const Batch& batch, Rows hidden) {
  const Config& config = model_.config;
  const int64_t T = batch.rows();
  Pass pass{.runs = batch.runs};
  std::vector<Arena::Part> parts = TimeMixRows(T);
  for (Rows* rows : {&pass.x, &pass.z, &pass.delta, &pass.mixed}) {
    parts.push_back({rows, T, config.width});
  }
  parts.push_back({&pass.ffn, T, config.ffn_width});
  arena_.Reserve(parts);

  ops::Embed(exec, model_.embedding, batch.tokens, pass.x);
  Normalize(exec, model_.embedding_norm, config.norm_eps, pass.x, pass.x);
  const auto shift = [&](int64_t layer, ShiftIndex which) {
    const StateField previous = schema_.Field(layer * tensors_per_layer_ + which);
    ops::TokenShift(exec, pass.runs, pass.z, previous, pass.delta);
  };
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const Block& block = model_.blocks[i];
    Normalize(exec, block.attention_norm, config.norm_eps, pass.x, pass.z);
    shift(i, kAttShift);
    TimeMix(exec, pass, i);
    Normalize(exec, block.ffn_norm, config.norm_eps, pass.x, pass.z);
    shift(i, kFfnShift);
    ChannelMix(exec, pass, block);
  }
  if (batch.wanted.empty()) return;
  ops::Gather(exec, pass.x, batch.wanted, hidden);
  Normalize(exec, model_.final_norm, config.norm_eps, hidden, hidden);
}

void RwkvArch::Blend(Exec& exec, const Pass& pass, Vector mu, Rows dynamic) const {
  const ops::Blend blend{mu, pass.mixed, dynamic};
  Blend(exec, pass, {&blend, 1});
}

void RwkvArch::Blend(Exec& exec, const Pass& pass, std::span<const ops::Blend> blends) const {
  ops::Lerp(exec, pass.z, pass.delta, blends);
}

void RwkvArch::ChannelMix(Exec& exec, const Pass& pass, const Block& block) {
  Blend(exec, pass, block.ffn_mu_k);
  ops::MatMul(exec, pass.mixed, {block.ffn_key, pass.ffn});
  ops::Activate(exec, Activation::kReluSquared, pass.ffn, pass.ffn);
  if (!block.ffn_receptance) {
    ops::MatMul(exec, pass.ffn, {.weight = block.ffn_value, .y = pass.x, .accumulate = true});
    return;
  }
  Blend(exec, pass, block.ffn_mu_r);
  // z and delta have been read.
  const Rows receptance = pass.z, value = pass.delta;
  ops::MatMul(exec, pass.mixed, {block.ffn_receptance, receptance});
  ops::Activate(exec, Activation::kSigmoid, receptance, receptance);
  ops::MatMul(exec, pass.ffn, {.weight = block.ffn_value, .y = value, .scale = block.output_scale});
  ops::Mul(exec, receptance, value);
  ops::Add(exec, value, pass.x);
}

void RwkvArch::MixHeads(Exec& exec, const Pass& pass, int64_t layer, const HeadMix& mix) {
  const Config& config = model_.config;
  ops::Scan(exec, pass.runs,
            ops::Wkv6{.state = MemoryField(layer, 0),
                      .heads = config.heads,
                      .r = mix.r,
                      .k = mix.k,
                      .v = mix.v,
                      .decay = mix.decay,
                      .fixed_decay = mix.fixed_decay,
                      .bonus = mix.bonus,
                      .y = mix.y});
  Normalize(exec, mix.norm, config.group_norm_eps, mix.y, mix.y, config.heads);
  if (mix.gate) ops::SiluMul(exec, mix.gate, mix.y, mix.y);
  ops::MatMul(exec, mix.y,
              {.weight = mix.output,
               .y = pass.x,
               .accumulate = true,
               .scale = model_.blocks[layer].output_scale});
}

}  // namespace mneme::engine::rwkv
