#include "engine/arch/infini/infini.h"

#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/exec.h"
#include "engine/kernels/kernels.h"

namespace mneme::engine::infini {
namespace {

// A state beyond this is a mistyped segment, not a wish.
constexpr int64_t kMaxStateBytes = int64_t{1} << 42;

// The state tensors of a layer, in the order of the schema.
enum : int64_t { kMemory, kNormalizer, kPendingMemory, kPendingNormalizer, kKeys, kValues, kCount };

std::vector<StateTensor> StateTensors(const Config& config, DType kv_dtype) {
  const int64_t Hk = config.kv_heads, dk = config.head_dim, dv = config.value_head_dim;
  const int64_t N = config.segment_tokens;
  std::vector<StateTensor> tensors;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const auto fixed = [&](const char* name, std::vector<int64_t> shape) {
      tensors.push_back(
          {.layer = static_cast<int32_t>(i), .name = name, .shape = std::move(shape)});
    };
    const auto ring = [&](const char* name, int64_t width) {
      tensors.push_back({.layer = static_cast<int32_t>(i),
                         .name = name,
                         .dtype = kv_dtype,
                         .shape = {N, width},
                         .kind = StateKind::kRing,
                         .sinks = 0,
                         .window = N});
    };
    fixed("memory", {Hk, dk, dv});
    fixed("normalizer", {Hk, dk});
    fixed("pending_memory", {Hk, dk, dv});
    fixed("pending_normalizer", {Hk, dk});
    ring("k", Hk * dk);
    ring("v", Hk * dv);
  }
  return tensors;
}

}  // namespace

// Arrays of one pass over T tokens, row-major.
struct Infini::Activations {
  int64_t T = 0;
  float* x = nullptr;       // [T, D] residual stream
  float* normed = nullptr;  // [T, D]
  float* q = nullptr;       // [T, H * dk]
  float* k = nullptr;       // [T, Hk * dk]
  float* v = nullptr;       // [T, Hk * dv]
  float* sq = nullptr;      // [T, H * dk] feature map of q, not rotated
  float* sk = nullptr;      // [T, Hk * dk]
  float* local = nullptr;   // [T, H * dv] attention inside the segment
  float* mixed = nullptr;   // [T, H * dv]
  float* gate = nullptr;    // [T, F]
  float* up = nullptr;      // [T, F]
};

absl::StatusOr<std::unique_ptr<Arch>> Infini::Create(std::shared_ptr<const Checkpoint> checkpoint,
                                                     const ArchOptions& options) {
  std::unique_ptr<Infini> arch(new Infini);
  MNEME_ASSIGN_OR_RETURN(arch->config_, ParseConfig(*checkpoint));
  const Config& config = arch->config_;
  ArchInfo& info = arch->info_;
  MNEME_ASSIGN_OR_RETURN(arch->weights_, LoadWeights(*checkpoint, config, &info));

  MNEME_RETURN_IF_ERROR(CheckKvDtype(options.kv_dtype));
  const int64_t L = config.num_layers, Hk = config.kv_heads, N = config.segment_tokens;
  const int64_t dk = config.head_dim, dv = config.value_head_dim;
  const int64_t b = Traits(options.kv_dtype).block_bytes;
  const __int128 state_bytes =
      static_cast<__int128>(L * Hk) *
      (8 * (static_cast<__int128>(dk) * dv + dk) + static_cast<__int128>(b) * N * (dk + dv));
  if (state_bytes > kMaxStateBytes) {
    return absl::InvalidArgumentError(absl::StrCat(checkpoint->path(), ": key 'segment_tokens' is ",
                                                   N, ", which makes a state of more than ",
                                                   kMaxStateBytes, " bytes"));
  }
  arch->kv_dtype_ = options.kv_dtype;
  arch->schema_ = StateSchema(StateTensors(config, options.kv_dtype));

  info.architecture = "infini";
  info.vocab_size = config.vocab_size;
  info.num_layers = L;
  info.state_formula =
      absl::StrCat("L * Hk * (8 * (dk * dv + dk) + b * N * (dk + dv)) = ", L, " * ", Hk,
                   " * (8 * (", dk, " * ", dv, " + ", dk, ") + ", b, " * ", N, " * (", dk, " + ",
                   dv, ")) = ", static_cast<int64_t>(state_bytes), " bytes");
  arch->checkpoint_ = std::move(checkpoint);
  return arch;
}

Infini::Activations Infini::Reserve(int64_t T) {
  const int64_t D = config_.width, F = config_.ffn_width;
  const int64_t q_width = config_.heads * config_.head_dim;
  const int64_t k_width = config_.kv_heads * config_.head_dim;
  const int64_t v_width = config_.kv_heads * config_.value_head_dim;
  Activations act{.T = T};
  const StepBuffers::Part parts[] = {
      {&act.x, T * D},        {&act.normed, T * D},
      {&act.q, T * q_width},  {&act.k, T * k_width},
      {&act.v, T * v_width},  {&act.sq, T * q_width},
      {&act.sk, T * k_width}, {&act.local, T * config_.heads * config_.value_head_dim},
      {&act.gate, T * F},     {&act.mixed, T * config_.heads * config_.value_head_dim},
      {&act.up, T * F}};
  buffers_.Reserve(parts);
  return act;
}

absl::Status Infini::Forward(Exec& exec, std::span<const ArchSlice> slices) {
  const Kernels& kernels = exec.kernels();
  FlattenTokens(slices, &tokens_);
  rows_.clear();
  for (const ArchSlice& slice : slices) {
    for (size_t t = 0; t < slice.tokens.size(); ++t) {
      rows_.push_back((slice.state->position + static_cast<int64_t>(t)) % config_.segment_tokens);
    }
  }
  const int64_t T = static_cast<int64_t>(tokens_.size());
  if (T == 0) return absl::OkStatus();
  PlanRounds(slices, config_.segment_tokens, &rounds_);
  const Activations act = Reserve(T);

  kernels.embed_rows(exec, weights_.embedding, tokens_, act.x);
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const Layer& layer = weights_.layers[i];
    ProjectQkv(exec, layer, config_.rms_eps, T, act.x, act.normed, act.q, act.k, act.v);
    Mix(exec, i, act);
    AddOutput(exec, layer, T, act.mixed, act.x);
    FeedForward(exec, layer, config_.rms_eps, T, act.x, act.normed, act.gate, act.up);
  }
  WriteLogits(exec, weights_, config_.rms_eps, slices, act.x, act.normed, head_);
  return absl::OkStatus();
}

const StateTensor& Infini::Tensor(int64_t layer, int64_t which) const {
  return schema_.tensors()[layer * kCount + which];
}

void Infini::Mix(Exec& exec, int64_t layer, const Activations& act) {
  const Kernels& kernels = exec.kernels();
  const int64_t dk = config_.head_dim, H = config_.heads, Hk = config_.kv_heads;
  // The memory knows no positions: its queries and keys are taken before the rotation.
  kernels.infini_feature_map(exec, act.q, act.T * H * dk, act.sq);
  kernels.infini_feature_map(exec, act.k, act.T * Hk * dk, act.sk);
  RopeArgs rope{.x = act.q,
                .x_stride = H * dk,
                .heads = H,
                .head_dim = dk,
                .rotary_dim = dk,
                .layout = config_.rope_layout,
                .positions = rows_,
                .theta = config_.theta};
  kernels.rope(exec, rope);
  rope.x = act.k;
  rope.x_stride = Hk * dk;
  rope.heads = Hk;
  kernels.rope(exec, rope);

  for (const std::vector<Piece>& pieces : rounds_) {
    AttendLocally(exec, pieces, layer, act);
    UseMemory(exec, pieces, layer, act);
  }
}

void Infini::AttendLocally(Exec& exec, std::span<const Piece> pieces, int64_t layer,
                           const Activations& act) {
  const Kernels& kernels = exec.kernels();
  const int64_t H = config_.heads, Hk = config_.kv_heads;
  const int64_t dk = config_.head_dim, dv = config_.value_head_dim;
  const int64_t element = Traits(kv_dtype_).block_bytes;
  attention_.clear();
  stores_.clear();
  for (const Piece& piece : pieces) {
    std::byte* keys = piece.block + Tensor(layer, kKeys).offset_bytes;
    std::byte* values = piece.block + Tensor(layer, kValues).offset_bytes;
    const int64_t r = piece.position % config_.segment_tokens;
    stores_.push_back({.x = act.k + piece.row * Hk * dk,
                       .x_stride = Hk * dk,
                       .rows = piece.count,
                       .width = Hk * dk,
                       .dtype = kv_dtype_,
                       .to = keys + r * Hk * dk * element});
    stores_.push_back({.x = act.v + piece.row * Hk * dv,
                       .x_stride = Hk * dv,
                       .rows = piece.count,
                       .width = Hk * dv,
                       .dtype = kv_dtype_,
                       .to = values + r * Hk * dv * element});
    BlockAttentionArgs args{.dtype = kv_dtype_,
                            .T = piece.count,
                            .query_heads = H,
                            .kv_heads = Hk,
                            .key_dim = dk,
                            .value_dim = dv,
                            .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(dk))),
                            .q = act.q + piece.row * H * dk,
                            .q_stride = H * dk,
                            .out = act.local + piece.row * H * dv,
                            .out_stride = H * dv};
    args.runs[0] = {keys, values, r + piece.count};
    attention_.push_back(args);
  }
  kernels.store_rows(exec, stores_);
  kernels.block_attention(exec, attention_);
}

void Infini::UseMemory(Exec& exec, std::span<const Piece> pieces, int64_t layer,
                       const Activations& act) {
  const int64_t dk = config_.head_dim, dv = config_.value_head_dim;
  const int64_t H = config_.heads, Hk = config_.kv_heads;
  const Layer& weights = weights_.layers[layer];
  mixes_.clear();
  for (const Piece& piece : pieces) {
    const auto tensor = [&](int64_t which) {
      return reinterpret_cast<float*>(piece.block + Tensor(layer, which).offset_bytes);
    };
    mixes_.push_back(
        {.memory = tensor(kMemory),
         .normalizer = tensor(kNormalizer),
         .pending_memory = tensor(kPendingMemory),
         .pending_normalizer = tensor(kPendingNormalizer),
         .rows = piece.count,
         .local_only = config_.first_segment_local && piece.position < config_.segment_tokens,
         .completes = piece.completes,
         .sq = act.sq + piece.row * H * dk,
         .sk = act.sk + piece.row * Hk * dk,
         .v = act.v + piece.row * Hk * dv,
         .local = act.local + piece.row * H * dv,
         .mixed = act.mixed + piece.row * H * dv});
  }
  exec.kernels().infini_mix(exec,
                            {.heads = H,
                             .kv_heads = Hk,
                             .key_dim = dk,
                             .value_dim = dv,
                             .eps = config_.memory_eps,
                             .delta = config_.delta,
                             .memory_share = weights.memory_share.data(),
                             .local_share = weights.local_share.data()},
                            mixes_);
}

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  return Infini::Create(std::move(checkpoint), options);
}

}  // namespace mneme::engine::infini
