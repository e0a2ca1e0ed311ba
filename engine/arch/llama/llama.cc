#include "engine/arch/llama/llama.h"

#include <algorithm>
#include <array>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/exec.h"
#include "engine/kernels/kernels.h"

namespace mneme::engine::llama {
namespace {

// A state beyond this is a mistyped window, not a wish.
constexpr int64_t kMaxStateBytes = int64_t{1} << 42;

}  // namespace

// Arrays of one pass over T tokens, row-major.
struct Llama::Activations {
  int64_t T = 0;
  float* x = nullptr;       // [T, D] residual stream
  float* normed = nullptr;  // [T, D]
  float* q = nullptr;       // [T, H * Dh]
  float* q_sink = nullptr;  // [T, H * Dh]; filled if a slice slides
  float* k = nullptr;       // [T, Hk * Dh]
  float* v = nullptr;       // [T, Hk * Dh]
  float* mixed = nullptr;   // [T, H * Dh]
  float* gate = nullptr;    // [T, F]
  float* up = nullptr;      // [T, F]
  // Options of PanGu-pi.
  float* branch = nullptr;    // [T, F] a branch of the series
  float* shortcut = nullptr;  // [shortcuts, T, shortcut_width]
};

absl::StatusOr<std::unique_ptr<Arch>> Llama::Create(std::shared_ptr<const Checkpoint> checkpoint,
                                                    const ArchOptions& options) {
  std::unique_ptr<Llama> arch(new Llama);
  MNEME_ASSIGN_OR_RETURN(arch->config_, ParseConfig(*checkpoint));
  const Config& config = arch->config_;
  ArchInfo& info = arch->info_;
  MNEME_ASSIGN_OR_RETURN(arch->weights_, LoadWeights(*checkpoint, config, &info));

  MNEME_RETURN_IF_ERROR(CheckKvDtype(options.kv_dtype));
  const int64_t total = options.window_tokens == 0 ? config.trained_context : options.window_tokens;
  if (options.sink_tokens < 0 || total < options.sink_tokens + 1) {
    return absl::InvalidArgumentError(absl::StrCat("window_tokens ", total,
                                                   " must exceed sink_tokens ", options.sink_tokens,
                                                   ", which must not be negative"));
  }
  const int64_t row_width = config.kv_heads * config.head_dim;
  const int64_t element_bytes = Traits(options.kv_dtype).block_bytes;
  const __int128 state_bytes =
      static_cast<__int128>(2 * config.num_layers) * row_width * element_bytes * total;
  if (state_bytes > kMaxStateBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "window_tokens ", total, " makes a state of more than ", kMaxStateBytes, " bytes"));
  }

  arch->kv_dtype_ = options.kv_dtype;
  arch->sinks_ = options.sink_tokens;
  arch->window_ = total - options.sink_tokens;
  std::vector<StateTensor> tensors;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (const char* name : {"k", "v"}) {
      tensors.push_back({.layer = static_cast<int32_t>(layer),
                         .name = name,
                         .dtype = options.kv_dtype,
                         .shape = {total, row_width},
                         .kind = StateKind::kRing,
                         .sinks = arch->sinks_,
                         .window = arch->window_});
    }
  }
  arch->schema_ = StateSchema(std::move(tensors));

  info.architecture = config.architecture;
  info.vocab_size = config.vocab_size;
  info.num_layers = config.num_layers;
  info.trained_context_tokens = config.trained_context;
  info.effective_context_tokens = total;
  info.state_formula =
      absl::StrCat("2 * L * Hk * Dh * b * (S + R) = 2 * ", config.num_layers, " * ",
                   config.kv_heads, " * ", config.head_dim, " * ", element_bytes, " * ", total,
                   " = ", static_cast<int64_t>(state_bytes), " bytes");
  arch->checkpoint_ = std::move(checkpoint);
  return arch;
}

Llama::Activations Llama::Reserve(int64_t T) {
  const int64_t D = config_.width, F = config_.ffn_width;
  const int64_t q_width = config_.heads * config_.head_dim;
  const int64_t kv_width = config_.kv_heads * config_.head_dim;
  const PanguOptions& pangu = config_.pangu;
  Activations act{.T = T};
  const StepBuffers::Part parts[] = {{&act.x, T * D},
                                     {&act.normed, T * D},
                                     {&act.q, T * q_width},
                                     {&act.q_sink, T * q_width},
                                     {&act.k, T * kv_width},
                                     {&act.v, T * kv_width},
                                     {&act.mixed, T * q_width},
                                     {&act.gate, T * F},
                                     {&act.up, T * F},
                                     {&act.branch, pangu.projected ? T * F : 0},
                                     {&act.shortcut, pangu.shortcuts * T * pangu.shortcut_width}};
  buffers_.Reserve(parts);
  return act;
}

absl::Status Llama::Forward(Exec& exec, std::span<const ArchSlice> slices) {
  const Kernels& kernels = exec.kernels();
  FlattenTokens(slices, &tokens_);
  positions_.clear();
  sink_positions_.clear();
  for (const ArchSlice& slice : slices) {
    for (size_t t = 0; t < slice.tokens.size(); ++t) {
      const int64_t position = slice.state->position + static_cast<int64_t>(t);
      positions_.push_back(position);
      // Once the window slides, sinks keep the distance they have inside the cache.
      sink_positions_.push_back(std::min(position, sinks_ + window_ - 1));
    }
  }
  const int64_t T = static_cast<int64_t>(tokens_.size());
  if (T == 0) return absl::OkStatus();
  const Activations act = Reserve(T);

  kernels.embed_rows(exec, weights_.embedding, tokens_, act.x);
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const Layer& layer = weights_.layers[i];
    ProjectQkv(exec, layer, config_.rms_eps, T, act.x, act.normed, act.q, act.k, act.v);
    ReadShortcuts(exec, layer, act);
    Attend(exec, slices, i, act);
    AddOutput(exec, layer, T, act.mixed, act.x);
    AddShortcuts(exec, layer, act);
    if (layer.series_scale.empty() && layer.gates.empty()) {
      FeedForward(exec, layer, config_.rms_eps, T, act.x, act.normed, act.gate, act.up);
    } else {
      SeriesFeedForward(exec, layer, act);
    }
  }
  WriteLogits(exec, weights_, config_.rms_eps, slices, act.x, act.normed, head_);
  return absl::OkStatus();
}

// act.shortcut = act(down z) of every shortcut. Before the attention changes the residual.
void Llama::ReadShortcuts(Exec& exec, const Layer& layer, const Activations& act) {
  if (layer.shortcuts.empty()) return;
  const PanguOptions& pangu = config_.pangu;
  const int64_t size = act.T * pangu.shortcut_width;
  std::vector<MatMulTask> tasks;
  for (const Shortcut& shortcut : layer.shortcuts) {
    float* y = act.shortcut + static_cast<int64_t>(tasks.size()) * size;
    tasks.push_back(Product(shortcut.down, y));
  }
  const float* z = pangu.shortcut_reads_residual ? act.x : act.normed;
  exec.kernels().matmul(exec, tasks, z, config_.width, act.T);
  exec.kernels().activate(exec, pangu.shortcut_activation, act.shortcut, pangu.shortcuts * size,
                          act.shortcut);
}

void Llama::AddShortcuts(Exec& exec, const Layer& layer, const Activations& act) {
  const int64_t width = config_.pangu.shortcut_width;
  const float* low = act.shortcut;
  for (const Shortcut& shortcut : layer.shortcuts) {
    const MatMulTask up = Product(shortcut.up, act.x, true);
    exec.kernels().matmul(exec, {&up, 1}, low, width, act.T);
    low += act.T * width;
  }
}

// FeedForward with a series of activations in the place of SiLU.
void Llama::SeriesFeedForward(Exec& exec, const Layer& layer, const Activations& act) {
  const Kernels& kernels = exec.kernels();
  const std::vector<Activation>& series = config_.pangu.series;
  const int64_t D = config_.width, F = config_.ffn_width, T = act.T;
  kernels.rms_norm(exec, act.x, layer.ffn_norm.data(), config_.rms_eps, T, D, act.normed);
  const bool projected = config_.pangu.projected;
  const std::array first = {Product(projected ? layer.gates[0] : layer.gate, act.gate),
                            Product(layer.up, act.up)};
  kernels.matmul(exec, first, act.normed, D, T);
  if (projected) {
    kernels.activate(exec, series[0], act.gate, T * F, act.gate);
    for (size_t i = 1; i < series.size(); ++i) {
      const MatMulTask task = Product(layer.gates[i], act.branch);
      kernels.matmul(exec, {&task, 1}, act.normed, D, T);
      kernels.activate(exec, series[i], act.branch, T * F, act.branch);
      kernels.add(exec, act.branch, T * F, act.gate);
    }
  } else {
    kernels.series_activate(exec, {.x = act.gate,
                                   .scale = layer.series_scale.data(),
                                   .bias = layer.series_bias.data(),
                                   .series = series,
                                   .T = T,
                                   .C = F,
                                   .y = act.gate});
  }
  kernels.mul(exec, act.up, T * F, act.gate);
  const MatMulTask down = Product(layer.down, act.x, true);
  kernels.matmul(exec, {&down, 1}, act.gate, F, T);
}

// act.q, act.k, act.v (not yet rotated) and the slices' rings -> act.mixed.
void Llama::Attend(Exec& exec, std::span<const ArchSlice> slices, int64_t layer,
                   const Activations& act) {
  const Kernels& kernels = exec.kernels();
  const int64_t Dh = config_.head_dim, H = config_.heads, Hk = config_.kv_heads;
  const int64_t q_width = H * Dh, kv_width = Hk * Dh;

  RopeArgs rope{.head_dim = Dh,
                .rotary_dim = config_.rotary_dim,
                .layout = config_.rope_layout,
                .theta = config_.theta};
  // Sinks are scored by a second rotation of the queries, once the window slides. One call for all
  // rows: where a slice does not slide both rotations are the same, and the angles of one list of
  // positions are computed once a pass.
  bool slides = false;
  for (const ArchSlice& slice : slices) {
    slides |= slice.state->position + static_cast<int64_t>(slice.tokens.size()) > sinks_ + window_;
  }
  const float* q_sink = act.q;
  rope.x_stride = q_width;
  rope.heads = H;
  if (slides && sinks_ > 0) {
    const CopyRowsArgs copy{.from = act.q,
                            .from_stride = q_width,
                            .to = act.q_sink,
                            .to_stride = q_width,
                            .rows = act.T,
                            .width = q_width};
    kernels.copy_rows(exec, {&copy, 1});
    rope.x = act.q_sink;
    rope.positions = sink_positions_;
    kernels.rope(exec, rope);
    q_sink = act.q_sink;
  }
  rope.positions = positions_;
  rope.x = act.q;
  kernels.rope(exec, rope);
  rope.x = act.k;
  rope.x_stride = kv_width;
  rope.heads = Hk;
  kernels.rope(exec, rope);

  const StateTensor& k_ring = schema_.tensors()[2 * layer];
  const StateTensor& v_ring = schema_.tensors()[2 * layer + 1];
  attention_.clear();
  int64_t first = 0;  // row of the slice's first token
  for (const ArchSlice& slice : slices) {
    const int64_t T = static_cast<int64_t>(slice.tokens.size());
    attention_.push_back({.k_ring = slice.state->block.data() + k_ring.offset_bytes,
                          .v_ring = slice.state->block.data() + v_ring.offset_bytes,
                          .ring_dtype = kv_dtype_,
                          .sinks = sinks_,
                          .window = window_,
                          .position = slice.state->position,
                          .T = T,
                          .query_heads = H,
                          .kv_heads = Hk,
                          .head_dim = Dh,
                          .scale = config_.attention_scale,
                          .q = act.q + first * q_width,
                          .q_sink = q_sink + first * q_width,
                          .q_stride = q_width,
                          .k = act.k + first * kv_width,
                          .v = act.v + first * kv_width,
                          .kv_stride = kv_width,
                          .out = act.mixed + first * q_width,
                          .out_stride = q_width});
    first += T;
  }
  kernels.attention(exec, attention_);
}

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  return Llama::Create(std::move(checkpoint), options);
}

}  // namespace mneme::engine::llama
