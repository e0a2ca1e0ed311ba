#include "engine/arch/titans/titans.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::titans {

// Arrays of one pass over T tokens, row-major.
struct Titans::Activations {
  float* x = nullptr;       // [T, D] residual stream
  float* normed = nullptr;  // [T, D]
  // Memory: a projection before its convolution and after it, the rates, what the heads answer.
  float* projected_q = nullptr;  // [T, dm]
  float* projected_k = nullptr;  // [T, dm]
  float* projected_v = nullptr;  // [T, dm]
  float* q = nullptr;            // [T, dm]
  float* k = nullptr;            // [T, dm]
  float* v = nullptr;            // [T, dm]
  float* rates = nullptr;        // [T, 3 H]
  float* answer = nullptr;       // [T, dm]
  // Attention.
  float* aq = nullptr;          // [T, D]
  float* aq_rotated = nullptr;  // [T, D]
  float* ak = nullptr;          // [T, D]
  float* av = nullptr;          // [T, D]
  float* attended = nullptr;    // [T, D]
  float* y = nullptr;           // [T, D] attention's output
  float* m = nullptr;           // [T, D] memory's output
  // mac.
  float* h = nullptr;    // [T, D]
  float* h_k = nullptr;  // [T, D]
  float* h_v = nullptr;  // [T, D]
  // Feed-forward.
  float* gate = nullptr;  // [T, F]
  float* up = nullptr;    // [T, F]
};

absl::StatusOr<std::unique_ptr<Arch>> Titans::Create(std::shared_ptr<const Checkpoint> checkpoint,
                                                     const ArchOptions& options) {
  std::unique_ptr<Titans> arch(new Titans);
  MNEME_ASSIGN_OR_RETURN(arch->config_, ParseConfig(*checkpoint));
  ArchInfo& info = arch->info_;
  MNEME_ASSIGN_OR_RETURN(arch->weights_, LoadWeights(*checkpoint, arch->config_, &info));
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
void Titans::InitState(Exec& exec, State& state) {
  const TitansMemoryShape& memory = config_.memory;
  std::vector<CopyRowsArgs> copies;
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    for (int64_t l = 0; l < memory.depth; ++l) {
      const auto copy_to = [&](int tensor) {
        copies.push_back({.from = weights_.layers[i].memory.init[l].data(),
                          .from_stride = memory.Elements(l),
                          .to = states_.Floats(state, i, tensor),
                          .to_stride = memory.Elements(l),
                          .rows = config_.memory_heads,
                          .width = memory.Elements(l)});
      };
      copy_to(states_.tensors().memory[l]);
      if (config_.token_mode) copy_to(states_.tensors().running[l]);
    }
  }
  exec.kernels().copy_rows(exec, copies);
}

Titans::Activations Titans::Reserve(int64_t T) {
  const int64_t dm = T * config_.memory_width();
  const int64_t D = T * config_.width, F = T * config_.ffn_width;
  const int64_t attention = config_.HasAttention() ? D : 0;
  const int64_t context = config_.IsContext() ? D : 0;
  Activations act;
  const StepBuffers::Part parts[] = {{&act.x, D},
                                     {&act.normed, D},
                                     {&act.projected_q, dm},
                                     {&act.projected_k, dm},
                                     {&act.projected_v, dm},
                                     {&act.q, dm},
                                     {&act.k, dm},
                                     {&act.v, dm},
                                     {&act.rates, T * 3 * config_.memory_heads},
                                     {&act.answer, dm},
                                     {&act.aq, attention},
                                     {&act.aq_rotated, attention},
                                     {&act.ak, attention},
                                     {&act.av, attention},
                                     {&act.attended, attention},
                                     {&act.y, attention},
                                     {&act.m, attention},
                                     {&act.h, context},
                                     {&act.h_k, context},
                                     {&act.h_v, context},
                                     {&act.gate, F},
                                     {&act.up, F}};
  buffers_.Reserve(parts);
  return act;
}

absl::Status Titans::Forward(Exec& exec, std::span<const ArchSlice> slices) {
  std::vector<ArchSlice> part;
  std::vector<int64_t> positions;
  std::vector<int64_t> done(slices.size());
  // In mac a token's attention reads what the memory said, and what it writes depends on that: a
  // pass ends where the segment of a sequence ends. The others take the whole step at once.
  for (;;) {
    part.clear();
    positions.clear();
    for (size_t s = 0; s < slices.size(); ++s) {
      const ArchSlice& slice = slices[s];
      const auto total = static_cast<int64_t>(slice.tokens.size());
      int64_t& read = done[s];
      if (read == total) continue;
      const int64_t position = slice.state->position + read;
      int64_t count = total - read;
      if (config_.IsContext()) {
        count = std::min(count, config_.chunk_tokens - position % config_.chunk_tokens);
      }
      // Logits are wanted from token total - num_logits on.
      const int64_t silent = std::max<int64_t>(0, total - slice.num_logits - read);
      const int64_t num_logits = std::max<int64_t>(0, count - silent);
      const int64_t logits_before = std::max<int64_t>(0, read - (total - slice.num_logits));
      part.push_back({.state = slice.state,
                      .tokens = slice.tokens.subspan(read, count),
                      .num_logits = num_logits,
                      .logits = num_logits == 0
                                    ? nullptr
                                    : slice.logits + logits_before * config_.vocab_size});
      positions.push_back(position);
      read += count;
    }
    if (part.empty()) return absl::OkStatus();
    Run(exec, part, positions);
  }
}

void Titans::Run(Exec& exec, std::span<const ArchSlice> slices,
                 std::span<const int64_t> positions) {
  FlattenTokens(slices, &tokens_);
  const auto T = static_cast<int64_t>(tokens_.size());
  sequences_.clear();
  int64_t first = 0;
  for (size_t s = 0; s < slices.size(); ++s) {
    const auto count = static_cast<int64_t>(slices[s].tokens.size());
    sequences_.push_back(
        {.state = slices[s].state, .position = positions[s], .first = first, .count = count});
    first += count;
  }
  const Pass pass{exec, sequences_, T};
  const Activations act = Reserve(T);
  const Kernels& table = exec.kernels();
  const int64_t D = config_.width;
  table.embed_rows(exec, weights_.embedding, tokens_, act.x);
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const Layer& layer = weights_.layers[i];
    table.rms_norm(exec, act.x, layer.norm.data(), config_.rms_eps, T, D, act.normed);
    switch (config_.variant) {
      case Variant::kMemory:
      case Variant::kLayer:
        MemoryBlock(pass, i, act);
        break;
      case Variant::kGate:
        GateBlock(pass, i, act);
        break;
      case Variant::kContext:
        ContextBlock(pass, i, act);
        break;
    }
    FeedForward(exec, layer, config_.rms_eps, T, act.x, act.normed, act.gate, act.up);
  }
  WriteLogits(exec, weights_, config_.rms_eps, slices, act.x, act.normed, head_);
}

MatMulTask Titans::RatesTask(const MemoryWeights& weights, const Activations& act) const {
  MatMulTask task = Product(weights.rates, act.rates);
  task.bias = weights.rates_bias.data();
  return task;
}

void Titans::ReadAndWrite(const Pass& pass, int64_t index, const Activations& act) {
  const MemoryWeights& weights = weights_.layers[index].memory;
  const LayerTensors& tensors = states_.tensors();
  const std::array tasks = {Product(weights.q, act.projected_q),
                            Product(weights.k, act.projected_k),
                            Product(weights.v, act.projected_v), RatesTask(weights, act)};
  pass.exec.kernels().matmul(pass.exec, tasks, act.normed, config_.width, pass.T);
  const Convolution convolutions[] = {
      {tensors.conv_q, weights.q_conv.data(), /*normalize=*/true, act.projected_q, act.q},
      {tensors.conv_k, weights.k_conv.data(), /*normalize=*/true, act.projected_k, act.k},
      {tensors.conv_v, weights.v_conv.data(), /*normalize=*/false, act.projected_v, act.v}};
  memory_.Convolve(pass, index, convolutions);
  memory_.Rates(pass, act.rates);
  memory_.Apply(pass, index, weights,
                {.q = act.q, .k = act.k, .v = act.v, .rates = act.rates, .y = act.answer});
}

void Titans::MemoryBlock(const Pass& pass, int64_t index, const Activations& act) {
  const Layer& layer = weights_.layers[index];
  ReadAndWrite(pass, index, act);
  memory_.Output(pass, layer.memory.output, act.normed, act.answer, act.projected_q, act.x,
                 /*accumulate=*/true);
  if (config_.variant == Variant::kMemory) return;
  pass.exec.kernels().rms_norm(pass.exec, act.x, layer.attention_norm.data(), config_.rms_eps,
                               pass.T, config_.width, act.normed);
  Attend(pass, index, act.x, /*accumulate=*/true, act);
}

void Titans::GateBlock(const Pass& pass, int64_t index, const Activations& act) {
  const Layer& layer = weights_.layers[index];
  ReadAndWrite(pass, index, act);
  memory_.Output(pass, layer.memory.output, act.normed, act.answer, act.projected_q, act.m,
                 /*accumulate=*/false);
  Attend(pass, index, act.y, /*accumulate=*/false, act);
  Mix(pass, layer, act);
}

void Titans::ContextBlock(const Pass& pass, int64_t index, const Activations& act) {
  const Kernels& kernels = pass.exec.kernels();
  const Layer& layer = weights_.layers[index];
  const MemoryWeights& weights = layer.memory;
  const LayerTensors& tensors = states_.tensors();
  const int64_t D = config_.width, T = pass.T;
  // What the memory says about the tokens, as keys and values.
  const MatMulTask q = Product(weights.q, act.projected_q);
  kernels.matmul(pass.exec, {&q, 1}, act.normed, D, T);
  const Convolution asked{tensors.conv_q, weights.q_conv.data(), /*normalize=*/true,
                          act.projected_q, act.q};
  memory_.Convolve(pass, index, {&asked, 1});
  memory_.Apply(pass, index, weights, {.q = act.q, .y = act.answer});
  memory_.Output(pass, weights.output, act.normed, act.answer, act.projected_q, act.h,
                 /*accumulate=*/false);
  const std::array from_memory = {Product(layer.attention.k, act.h_k),
                                  Product(layer.attention.v, act.h_v)};
  kernels.matmul(pass.exec, from_memory, act.h, D, T);
  Attend(pass, index, act.y, /*accumulate=*/false, act);

  // What the memory learns, and says again: yn takes the place of xn.
  const CopyRowsArgs residual{
      .from = act.x, .from_stride = D, .to = act.normed, .to_stride = D, .rows = T, .width = D};
  kernels.copy_rows(pass.exec, {&residual, 1});
  kernels.add(pass.exec, act.y, T * D, act.normed);
  kernels.rms_norm(pass.exec, act.normed, weights.input_norm.data(), config_.rms_eps, T, D,
                   act.normed);
  const std::array tasks = {Product(weights.q2, act.projected_q),
                            Product(weights.k, act.projected_k),
                            Product(weights.v, act.projected_v), RatesTask(weights, act)};
  kernels.matmul(pass.exec, tasks, act.normed, D, T);
  const Convolution convolutions[] = {
      {tensors.conv_q2, weights.q2_conv.data(), /*normalize=*/true, act.projected_q, act.q},
      {tensors.conv_k, weights.k_conv.data(), /*normalize=*/true, act.projected_k, act.k},
      {tensors.conv_v, weights.v_conv.data(), /*normalize=*/false, act.projected_v, act.v}};
  memory_.Convolve(pass, index, convolutions);
  memory_.Rates(pass, act.rates);
  memory_.Apply(pass, index, weights,
                {.q = act.q, .k = act.k, .v = act.v, .rates = act.rates, .y = act.answer});
  memory_.Output(pass, weights.output2, act.normed, act.answer, act.projected_q, act.m,
                 /*accumulate=*/false);
  Mix(pass, layer, act);
}

void Titans::Attend(const Pass& pass, int64_t index, float* out, bool accumulate,
                    const Activations& act) {
  const Kernels& kernels = pass.exec.kernels();
  const AttentionWeights& weights = weights_.layers[index].attention;
  const std::array tasks = {Product(weights.q, act.aq), Product(weights.k, act.ak),
                            Product(weights.v, act.av)};
  kernels.matmul(pass.exec, tasks, act.normed, config_.width, pass.T);
  attention_.Apply(pass, index, weights,
                   {.q = act.aq,
                    .q_rotated = act.aq_rotated,
                    .k = act.ak,
                    .v = act.av,
                    .h_k = act.h_k,
                    .h_v = act.h_v,
                    .out = act.attended});
  const MatMulTask output = Product(weights.output, out, accumulate);
  kernels.matmul(pass.exec, {&output, 1}, act.attended, config_.width, pass.T);
}

void Titans::Mix(const Pass& pass, const Layer& layer, const Activations& act) {
  const Kernels& kernels = pass.exec.kernels();
  const int64_t D = config_.width, T = pass.T;
  kernels.rms_norm(pass.exec, act.y, layer.mix_attention_norm.data(), config_.rms_eps, T, D, act.y);
  kernels.rms_norm(pass.exec, act.m, layer.mix_memory_norm.data(), config_.rms_eps, T, D, act.m);
  if (config_.sigmoid_mix) {
    kernels.activate(pass.exec, Activation::kSigmoid, act.m, T * D, act.m);
    kernels.mul(pass.exec, act.m, T * D, act.y);
  } else {
    kernels.activate(pass.exec, Activation::kSigmoid, act.y, T * D, act.attended);
    kernels.mul(pass.exec, act.attended, T * D, act.y);
    kernels.silu_mul(pass.exec, act.m, act.y, T * D, act.y);
  }
  const MatMulTask mix = Product(layer.mix, act.x, /*accumulate=*/true);
  kernels.matmul(pass.exec, {&mix, 1}, act.y, D, T);
}

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  return Titans::Create(std::move(checkpoint), options);
}

}  // namespace mneme::engine::titans
