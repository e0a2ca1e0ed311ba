#include "engine/arch/llama/llama.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/exec.h"
#include "engine/kernels/kernels.h"

namespace mneme::engine::llama {
namespace {

// A state beyond this is a mistyped window, not a wish.
constexpr int64_t kMaxStateBytes = int64_t{1} << 42;
// Wanted logits are computed this many rows at a time where they cannot be written in place: 64
// rows of 49,152 are 12 MiB, and the head's weights are still read only once per 64 rows.
constexpr int64_t kHeadRows = 64;

// y [T, rows] = W x (+ bias); with `accumulate`, y += W x (+ bias).
MatMulTask Product(const Linear& linear, float* y, int64_t T, bool accumulate) {
  const int64_t rows = linear.weight.rows;
  // The bias goes in first and the product is added to it: one order whatever the split.
  if (!linear.bias.empty()) {
    for (int64_t t = 0; t < T; ++t) {
      float* row = y + t * rows;
      for (int64_t n = 0; n < rows; ++n) {
        row[n] = accumulate ? row[n] + linear.bias[n] : linear.bias[n];
      }
    }
    accumulate = true;
  }
  return {.weight = linear.weight, .y = y, .y_stride = rows, .accumulate = accumulate};
}

}  // namespace

// Arrays of one pass over T tokens, row-major, inside `activations_`.
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
};

absl::StatusOr<std::unique_ptr<Arch>> Llama::Create(std::shared_ptr<const Checkpoint> checkpoint,
                                                    const ArchOptions& options) {
  std::unique_ptr<Llama> arch(new Llama);
  MNEME_ASSIGN_OR_RETURN(arch->config_, ParseConfig(*checkpoint));
  const Config& config = arch->config_;
  ArchInfo& info = arch->info_;
  MNEME_ASSIGN_OR_RETURN(arch->weights_, LoadWeights(*checkpoint, config, &info));

  if (options.kv_dtype != DType::kF16 && options.kv_dtype != DType::kF32) {
    return absl::InvalidArgumentError(absl::StrCat("kv_dtype must be F16 or F32, not ",
                                                   std::string(Traits(options.kv_dtype).name)));
  }
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

  info.architecture = "llama";
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
  Activations act{.T = T};
  // Every array starts on a cache line.
  constexpr int64_t kLine = AlignedBuffer::kAlignment / sizeof(float);
  struct Part {
    float** array;
    int64_t width;
  };
  const Part parts[] = {
      {&act.x, D},        {&act.normed, D},   {&act.q, q_width},     {&act.q_sink, q_width},
      {&act.k, kv_width}, {&act.v, kv_width}, {&act.mixed, q_width}, {&act.gate, F},
      {&act.up, F}};
  int64_t total = 0;
  for (const Part& part : parts) total += (T * part.width + kLine - 1) / kLine * kLine;
  if (activations_.size() < total * sizeof(float)) {
    activations_ = AlignedBuffer(total * sizeof(float));
  }
  float* next = activations_.as<float>();
  for (const Part& part : parts) {
    *part.array = next;
    next += (T * part.width + kLine - 1) / kLine * kLine;
  }
  return act;
}

absl::Status Llama::Forward(Exec& exec, std::span<const ArchSlice> slices) {
  const Kernels& kernels = exec.kernels();
  const int64_t D = config_.width, F = config_.ffn_width;

  tokens_.clear();
  positions_.clear();
  sink_positions_.clear();
  for (const ArchSlice& slice : slices) {
    for (size_t t = 0; t < slice.tokens.size(); ++t) {
      const int64_t position = slice.state->position + static_cast<int64_t>(t);
      tokens_.push_back(slice.tokens[t]);
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
    kernels.rms_norm(exec, act.x, layer.attention_norm.data(), config_.rms_eps, T, D, act.normed);
    const std::array qkv = {Product(layer.q, act.q, T, false), Product(layer.k, act.k, T, false),
                            Product(layer.v, act.v, T, false)};
    kernels.matmul(exec, qkv, act.normed, D, T);
    Attend(exec, slices, i, act);
    const MatMulTask output = Product(layer.output, act.x, T, true);
    kernels.matmul(exec, {&output, 1}, act.mixed, config_.heads * config_.head_dim, T);

    kernels.rms_norm(exec, act.x, layer.ffn_norm.data(), config_.rms_eps, T, D, act.normed);
    const std::array gate_up = {Product(layer.gate, act.gate, T, false),
                                Product(layer.up, act.up, T, false)};
    kernels.matmul(exec, gate_up, act.normed, D, T);
    kernels.silu_mul(exec, act.gate, act.up, T * F, act.gate);
    const MatMulTask down = Product(layer.down, act.x, T, true);
    kernels.matmul(exec, {&down, 1}, act.gate, F, T);
  }
  Head(exec, slices, act);
  return absl::OkStatus();
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
    std::memcpy(act.q_sink, act.q, act.T * q_width * sizeof(float));
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

// Final norm and head, on the rows whose logits are wanted only.
void Llama::Head(Exec& exec, std::span<const ArchSlice> slices, const Activations& act) {
  const Kernels& kernels = exec.kernels();
  const int64_t D = config_.width, V = config_.vocab_size;
  // Wanted rows are gathered to the front of act.normed; where[i] is row i's destination.
  std::vector<float*> where;
  int64_t end = 0;
  for (const ArchSlice& slice : slices) {
    end += static_cast<int64_t>(slice.tokens.size());
    for (int64_t i = 0; i < slice.num_logits; ++i) {
      std::memcpy(act.normed + where.size() * D, act.x + (end - slice.num_logits + i) * D,
                  D * sizeof(float));
      where.push_back(slice.logits + i * V);
    }
  }
  const int64_t rows = static_cast<int64_t>(where.size());
  if (rows == 0) return;
  kernels.rms_norm(exec, act.normed, weights_.final_norm.data(), config_.rms_eps, rows, D,
                   act.normed);
  for (int64_t begin = 0; begin < rows;) {
    int64_t count = std::min(kHeadRows, rows - begin);
    // Written in place where the destinations follow each other (always so for a single slice).
    bool in_place = true;
    for (int64_t i = 1; i < count; ++i) in_place &= where[begin + i] == where[begin] + i * V;
    MatMulTask head{.weight = weights_.head, .y = where[begin], .y_stride = V};
    if (!in_place) {
      const size_t bytes = count * V * sizeof(float);
      if (logits_.size() < bytes) logits_ = AlignedBuffer(bytes);
      head.y = logits_.as<float>();
    }
    kernels.matmul(exec, {&head, 1}, act.normed + begin * D, D, count);
    if (!in_place) {
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(where[begin + i], logits_.as<float>() + i * V, V * sizeof(float));
      }
    }
    begin += count;
  }
}

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  return Llama::Create(std::move(checkpoint), options);
}

}  // namespace mneme::engine::llama
