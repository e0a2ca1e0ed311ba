#include "engine/arch/titans/titans.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::titans {

// Rows of one pass over T tokens.
struct Titans::Activations {
  Rows x;       // [T, D] residual stream
  Rows normed;  // [T, D]
  // Memory, [T, dm]: projections before their convolutions and after them, what the heads answer.
  Rows projected_q, projected_k, projected_v;
  Rows q, k, v;
  Rows answer;
  Rows rates;  // [T, 3 H]
  // Attention, [T, D].
  Rows aq, aq_rotated, ak, av;
  Rows attended;
  Rows y;  // attention's output
  Rows m;  // memory's output
  // mac, [T, D].
  Rows h, h_k, h_v;
  // Feed-forward, [T, F].
  Rows gate, up;
};

absl::StatusOr<std::unique_ptr<Arch>> Titans::Create(std::shared_ptr<const Checkpoint> checkpoint,
                                                     const ArchOptions& options) {
  std::unique_ptr<Titans> arch(new Titans(*options.memory));
  MNEME_ASSIGN_OR_RETURN(arch->config_, ParseConfig(*checkpoint));
  ArchInfo& info = arch->info_;
  MNEME_ASSIGN_OR_RETURN(arch->weights_,
                         LoadWeights(*checkpoint, arch->config_, *options.memory, &info));
  MNEME_RETURN_IF_ERROR(CheckKvDtype(options.kv_dtype));
  absl::StatusOr<StateMap> states = StateMap::Create(arch->config_, options.kv_dtype);
  if (!states.ok()) {
    return absl::Status(states.status().code(),
                        absl::StrCat(checkpoint->path(), ": ", states.status().message()));
  }
  arch->states_ = *std::move(states);
  info.architecture = "titans";
  info.vocab_size = arch->config_.vocab_size;
  info.num_layers = arch->config_.num_layers;
  info.state_formula = arch->states_.formula();
  arch->checkpoint_ = std::move(checkpoint);
  return arch;
}

// A sequence begins with the memory that training left.
void Titans::InitState(Exec& exec, StateSlot state) {
  const LayerTensors& tensors = states_.tensors();
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const std::vector<Vector>& init = weights_.layers[i].memory.init;
    for (size_t l = 0; l < init.size(); ++l) {
      ops::WriteState(exec, state, init[l], states_.Field(i, tensors.memory[l]));
      if (!config_.token_mode) continue;
      ops::WriteState(exec, state, init[l], states_.Field(i, tensors.running[l]));
    }
  }
}

Titans::Activations Titans::Reserve(int64_t T, Arena& arena) const {
  const int64_t D = config_.width, F = config_.ffn_width, dm = config_.memory_width();
  Activations act;
  std::vector<Arena::Part> parts = {{&act.x, T, D},
                                    {&act.normed, T, D},
                                    {&act.rates, T, 3 * config_.memory_heads},
                                    {&act.gate, T, F},
                                    {&act.up, T, F}};
  for (Rows* rows : {&act.projected_q, &act.projected_k, &act.projected_v, &act.q, &act.k, &act.v,
                     &act.answer}) {
    parts.push_back({rows, T, dm});
  }
  if (config_.HasAttention()) {
    for (Rows* rows : {&act.aq, &act.aq_rotated, &act.ak, &act.av, &act.attended, &act.y, &act.m}) {
      parts.push_back({rows, T, D});
    }
  }
  if (config_.IsContext()) {
    for (Rows* rows : {&act.h, &act.h_k, &act.h_v}) parts.push_back({rows, T, D});
  }
  arena.Reserve(parts);
  return act;
}

void Titans::Forward(Exec& exec, const Batch& batch, Rows hidden) {
  const Activations act = Reserve(batch.rows(), arena_);
  if (config_.IsContext()) {
    // A token's attention reads what the memory said, and what it writes depends on that: all
    // layers of a segment, then of the next one. The others take the whole pass at once.
    for (const std::vector<Run>& pieces : batch.CutAt(config_.chunk_tokens)) {
      const Batch segment = batch.Select(pieces);
      const Activations part = Reserve(segment.rows(), segment_arena_);
      RunLayers(exec, segment, part);
      ops::Scatter(exec, part.x, pieces, act.x);
    }
  } else {
    RunLayers(exec, batch, act);
  }
  WriteHidden(exec, weights_, config_.rms_eps, batch.wanted, act.x, hidden);
}

void Titans::RunLayers(Exec& exec, const Batch& batch, const Activations& act) {
  ops::Embed(exec, weights_.embedding, batch.tokens, act.x);
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const Layer& layer = weights_.layers[i];
    ops::RmsNorm(exec, act.x, layer.norm, config_.rms_eps, act.normed);
    switch (config_.variant) {
      case Variant::kMemory:
      case Variant::kLayer:
        MemoryBlock(exec, batch, i, act);
        break;
      case Variant::kGate:
        GateBlock(exec, batch, i, act);
        break;
      case Variant::kContext:
        ContextBlock(exec, batch, i, act);
        break;
    }
    FeedForward(exec, layer, config_.rms_eps, act.x, act.normed, act.gate, act.up);
  }
}

void Titans::ReadAndWrite(Exec& exec, const Batch& batch, int64_t index, const Matrix& q,
                          const Vector& q_conv, int q_tensor, const Activations& act) {
  const MemoryWeights& weights = weights_.layers[index].memory;
  const LayerTensors& tensors = states_.tensors();
  const ops::Product products[] = {
      {q, act.projected_q},
      {weights.k, act.projected_k},
      {weights.v, act.projected_v},
      {.weight = weights.rates, .y = act.rates, .bias = weights.rates_bias}};
  ops::MatMul(exec, act.normed, products);
  const ShortConvolution convolutions[] = {
      {q_tensor, q_conv, /*normalize=*/true, act.projected_q, act.q},
      {tensors.conv_k, weights.k_conv, /*normalize=*/true, act.projected_k, act.k},
      {tensors.conv_v, weights.v_conv, /*normalize=*/false, act.projected_v, act.v}};
  memory_.Convolve(exec, batch.runs, index, convolutions);
  memory_.Rates(exec, act.rates);
  memory_.Apply(exec, batch.runs, index, weights,
                {.q = act.q, .k = act.k, .v = act.v, .rates = act.rates, .y = act.answer});
}

// lmm: the memory; mal: attention behind it.
void Titans::MemoryBlock(Exec& exec, const Batch& batch, int64_t index, const Activations& act) {
  const Layer& layer = weights_.layers[index];
  ReadAndWrite(exec, batch, index, layer.memory.q, layer.memory.q_conv, states_.tensors().conv_q,
               act);
  memory_.Output(exec, layer.memory.output, act.normed, act.answer, act.projected_q, act.x,
                 /*accumulate=*/true);
  if (config_.variant == Variant::kMemory) return;
  ops::RmsNorm(exec, act.x, layer.attention_norm, config_.rms_eps, act.normed);
  Attend(exec, batch, index, act.x, /*accumulate=*/true, act);
}

// mag: memory and attention side by side.
void Titans::GateBlock(Exec& exec, const Batch& batch, int64_t index, const Activations& act) {
  const Layer& layer = weights_.layers[index];
  ReadAndWrite(exec, batch, index, layer.memory.q, layer.memory.q_conv, states_.tensors().conv_q,
               act);
  memory_.Output(exec, layer.memory.output, act.normed, act.answer, act.projected_q, act.m,
                 /*accumulate=*/false);
  Attend(exec, batch, index, act.y, /*accumulate=*/false, act);
  Mix(exec, layer, act);
}

// mac: the memory as context.
void Titans::ContextBlock(Exec& exec, const Batch& batch, int64_t index, const Activations& act) {
  const Layer& layer = weights_.layers[index];
  const MemoryWeights& weights = layer.memory;
  const LayerTensors& tensors = states_.tensors();
  // What the memory says about the tokens, as keys and values.
  ops::MatMul(exec, act.normed, {weights.q, act.projected_q});
  const ShortConvolution asked{tensors.conv_q, weights.q_conv, /*normalize=*/true, act.projected_q,
                               act.q};
  memory_.Convolve(exec, batch.runs, index, {&asked, 1});
  memory_.Apply(exec, batch.runs, index, weights, {.q = act.q, .y = act.answer});
  memory_.Output(exec, weights.output, act.normed, act.answer, act.projected_q, act.h,
                 /*accumulate=*/false);
  const ops::Product from_memory[] = {{layer.attention.k, act.h_k}, {layer.attention.v, act.h_v}};
  ops::MatMul(exec, act.h, from_memory);
  Attend(exec, batch, index, act.y, /*accumulate=*/false, act);

  // What the memory learns, and says again, of the norm of x + y.
  ops::Copy(exec, act.x, act.normed);
  ops::Add(exec, act.y, act.normed);
  ops::RmsNorm(exec, act.normed, weights.input_norm, config_.rms_eps, act.normed);
  ReadAndWrite(exec, batch, index, weights.q2, weights.q2_conv, tensors.conv_q2, act);
  memory_.Output(exec, weights.output2, act.normed, act.answer, act.projected_q, act.m,
                 /*accumulate=*/false);
  Mix(exec, layer, act);
}

void Titans::Attend(Exec& exec, const Batch& batch, int64_t index, Rows out, bool accumulate,
                    const Activations& act) {
  const AttentionWeights& weights = weights_.layers[index].attention;
  const ops::Product products[] = {{weights.q, act.aq}, {weights.k, act.ak}, {weights.v, act.av}};
  ops::MatMul(exec, act.normed, products);
  attention_.Apply(exec, batch, index, weights,
                   {.q = act.aq,
                    .q_rotated = act.aq_rotated,
                    .k = act.ak,
                    .v = act.av,
                    .h_k = act.h_k,
                    .h_v = act.h_v,
                    .out = act.attended});
  ops::MatMul(exec, act.attended, {.weight = weights.output, .y = out, .accumulate = accumulate});
}

void Titans::Mix(Exec& exec, const Layer& layer, const Activations& act) {
  ops::RmsNorm(exec, act.y, layer.mix_attention_norm, config_.rms_eps, act.y);
  ops::RmsNorm(exec, act.m, layer.mix_memory_norm, config_.rms_eps, act.m);
  if (config_.sigmoid_mix) {
    ops::Activate(exec, Activation::kSigmoid, act.m, act.m);
    ops::Mul(exec, act.m, act.y);
  } else {
    ops::Activate(exec, Activation::kSigmoid, act.y, act.attended);
    ops::Mul(exec, act.attended, act.y);
    ops::SiluMul(exec, act.m, act.y, act.y);
  }
  ops::MatMul(exec, act.y, {.weight = layer.mix, .y = act.x, .accumulate = true});
}

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  return Titans::Create(std::move(checkpoint), options);
}

}  // namespace mneme::engine::titans
