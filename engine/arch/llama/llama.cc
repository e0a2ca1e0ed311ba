#include "engine/arch/llama/llama.h"

#include <algorithm>
#include <array>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/ops.h"

namespace mneme::engine::llama {
namespace {

// A state beyond this is a mistyped window, not a wish.
constexpr int64_t kMaxStateBytes = int64_t{1} << 42;

}  // namespace

// Rows of one pass over T tokens.
struct Llama::Activations {
  Rows x;       // [T, D] residual stream
  Rows normed;  // [T, D]
  Rows q;       // [T, H * Dh]
  Rows q_sink;  // [T, H * Dh] q rotated as the sinks see it
  Rows k;       // [T, Hk * Dh]
  Rows v;       // [T, Hk * Dh]
  Rows mixed;   // [T, H * Dh]
  Rows gate;    // [T, F]
  Rows up;      // [T, F]
  // Options of PanGu-pi.
  Rows branch;    // [T, F] a branch of the series
  Rows shortcut;  // [shortcuts * T, shortcut_width]
};

absl::StatusOr<std::unique_ptr<Arch>> Llama::Create(std::shared_ptr<const Checkpoint> checkpoint,
                                                    const ArchOptions& options) {
  std::unique_ptr<Llama> arch(new Llama(*options.memory));
  MNEME_ASSIGN_OR_RETURN(arch->config_, ParseConfig(*checkpoint));
  const Config& config = arch->config_;
  ArchInfo& info = arch->info_;
  MNEME_ASSIGN_OR_RETURN(arch->weights_, LoadWeights(*checkpoint, config, *options.memory, &info));

  MNEME_RETURN_IF_ERROR(CheckKvDtype(options.kv_dtype));
  const int64_t total = options.window_tokens == 0 ? config.trained_context : options.window_tokens;
  const bool grows = options.overflow == ArchOptions::Overflow::kError;
  const int64_t sinks = grows ? 0 : options.sink_tokens;
  if (sinks < 0 || total < sinks + 1) {
    return absl::InvalidArgumentError(absl::StrCat("window_tokens ", total,
                                                   " must exceed sink_tokens ", sinks,
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

  arch->sinks_ = sinks;
  arch->window_ = total - sinks;
  std::vector<StateTensor> tensors;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (const char* name : {"k", "v"}) {
      tensors.push_back({.layer = static_cast<int32_t>(layer),
                         .name = name,
                         .dtype = options.kv_dtype,
                         .shape = {total, row_width},
                         .kind = grows ? StateKind::kPaged : StateKind::kRing,
                         .sinks = arch->sinks_,
                         .window = grows ? 0 : arch->window_});
    }
  }
  arch->schema_ = StateSchema(std::move(tensors));

  info.architecture = config.architecture;
  info.vocab_size = config.vocab_size;
  info.num_layers = config.num_layers;
  info.trained_context_tokens = config.trained_context;
  info.effective_context_tokens = total;
  if (grows) info.context_limit_tokens = total;
  info.state_formula = absl::StrCat(
      grows ? "2 * L * Hk * Dh * b * n <= 2 * " : "2 * L * Hk * Dh * b * (S + R) = 2 * ",
      config.num_layers, " * ", config.kv_heads, " * ", config.head_dim, " * ", element_bytes,
      " * ", total, " = ", static_cast<int64_t>(state_bytes), " bytes");
  arch->checkpoint_ = std::move(checkpoint);
  return arch;
}

Llama::Activations Llama::Reserve(int64_t T) {
  const int64_t D = config_.width, F = config_.ffn_width;
  const int64_t q_width = config_.heads * config_.head_dim;
  const int64_t kv_width = config_.kv_heads * config_.head_dim;
  const PanguOptions& pangu = config_.pangu;
  Activations act;
  const Arena::Part parts[] = {{&act.x, T, D},
                               {&act.normed, T, D},
                               {&act.q, T, q_width},
                               {&act.q_sink, T, q_width},
                               {&act.k, T, kv_width},
                               {&act.v, T, kv_width},
                               {&act.mixed, T, q_width},
                               {&act.gate, T, F},
                               {&act.up, T, F},
                               {&act.branch, pangu.projected ? T : 0, F},
                               {&act.shortcut, pangu.shortcuts * T, pangu.shortcut_width}};
  arena_.Reserve(parts);
  return act;
}

void Llama::Forward(Exec& exec, const Batch& batch, Rows hidden) {
  sink_positions_.clear();
  for (const int64_t position : batch.positions) {
    // Once the window slides, sinks keep the distance they have inside the cache.
    sink_positions_.push_back(std::min(position, sinks_ + window_ - 1));
  }
  const Activations act = Reserve(batch.rows());

  ops::Embed(exec, weights_.embedding, batch.tokens, act.x);
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const Layer& layer = weights_.layers[i];
    ProjectQkv(exec, layer, config_.rms_eps, act.x, act.normed, act.q, act.k, act.v);
    ReadShortcuts(exec, layer, act);
    Attend(exec, batch, i, act);
    AddOutput(exec, layer, act.mixed, act.x);
    AddShortcuts(exec, layer, act);
    if (!layer.series_scale && layer.gates.empty()) {
      FeedForward(exec, layer, config_.rms_eps, act.x, act.normed, act.gate, act.up);
    } else {
      SeriesFeedForward(exec, layer, act);
    }
  }
  WriteHidden(exec, weights_, config_.rms_eps, batch.wanted, act.x, hidden);
}

// act.shortcut = act(down z) of every shortcut. Before the attention changes the residual.
void Llama::ReadShortcuts(Exec& exec, const Layer& layer, const Activations& act) {
  if (layer.shortcuts.empty()) return;
  const PanguOptions& pangu = config_.pangu;
  const int64_t T = act.x.count();
  std::vector<ops::Product> products;
  for (const Shortcut& shortcut : layer.shortcuts) {
    const auto first = static_cast<int64_t>(products.size()) * T;
    products.push_back(Product(shortcut.down, act.shortcut.Slice(first, T)));
  }
  ops::MatMul(exec, pangu.shortcut_reads_residual ? act.x : act.normed, products);
  ops::Activate(exec, pangu.shortcut_activation, act.shortcut, act.shortcut);
}

void Llama::AddShortcuts(Exec& exec, const Layer& layer, const Activations& act) {
  const int64_t T = act.x.count();
  int64_t first = 0;
  for (const Shortcut& shortcut : layer.shortcuts) {
    ops::MatMul(exec, act.shortcut.Slice(first, T),
                Product(shortcut.up, act.x, /*accumulate=*/true));
    first += T;
  }
}

// FeedForward with a series of activations in the place of SiLU.
void Llama::SeriesFeedForward(Exec& exec, const Layer& layer, const Activations& act) {
  const std::vector<Activation>& series = config_.pangu.series;
  ops::RmsNorm(exec, act.x, layer.ffn_norm, config_.rms_eps, act.normed);
  const bool projected = config_.pangu.projected;
  ops::MatMul(exec, act.normed,
              std::array{Product(projected ? layer.gates[0] : layer.gate, act.gate),
                         Product(layer.up, act.up)});
  if (projected) {
    ops::Activate(exec, series[0], act.gate, act.gate);
    for (size_t i = 1; i < series.size(); ++i) {
      ops::MatMul(exec, act.normed, Product(layer.gates[i], act.branch));
      ops::Activate(exec, series[i], act.branch, act.branch);
      ops::Add(exec, act.branch, act.gate);
    }
  } else {
    ops::SeriesActivate(exec, series, act.gate, layer.series_scale, layer.series_bias, act.gate);
  }
  ops::Mul(exec, act.up, act.gate);
  ops::MatMul(exec, act.gate, Product(layer.down, act.x, /*accumulate=*/true));
}

// act.q, act.k, act.v (not yet rotated) and the runs' rings -> act.mixed.
void Llama::Attend(Exec& exec, const Batch& batch, int64_t layer, const Activations& act) {
  const ops::Rotation rotation{.head_dim = config_.head_dim,
                               .rotary_dim = config_.rotary_dim,
                               .layout = config_.rope_layout,
                               .theta = config_.theta};
  // Sinks are scored by a second rotation of the queries, once the window slides. One call for all
  // rows: where a run does not slide both rotations are the same, and the angles of one list of
  // positions are computed once a pass.
  const bool slides = std::any_of(batch.runs.begin(), batch.runs.end(), [&](const Run& run) {
    return run.position + run.rows > sinks_ + window_;
  });
  Rows q_sink = act.q;
  if (slides && sinks_ > 0) {
    q_sink = act.q_sink;
    ops::Copy(exec, act.q, q_sink);
    ops::Rope(exec, q_sink, rotation, sink_positions_);
  }
  ops::Rope(exec, std::array{act.q, act.k}, rotation, batch.positions);
  ops::Attend(exec, batch.runs,
              ops::Attention{.k = schema_.Field(2 * layer),
                             .v = schema_.Field(2 * layer + 1),
                             .sinks = sinks_,
                             .window = window_,
                             .query_heads = config_.heads,
                             .kv_heads = config_.kv_heads,
                             .head_dim = config_.head_dim,
                             .scale = config_.attention_scale,
                             .q = act.q,
                             .q_sink = q_sink,
                             .new_k = act.k,
                             .new_v = act.v,
                             .out = act.mixed});
}

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  return Llama::Create(std::move(checkpoint), options);
}

}  // namespace mneme::engine::llama
