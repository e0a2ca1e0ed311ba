#include "engine/arch/infini/infini.h"

#include <array>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/ops.h"

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

// Rows of one pass over T tokens.
struct Infini::Activations {
  Rows x;       // [T, D] residual stream
  Rows normed;  // [T, D]
  Rows q;       // [T, H * dk]
  Rows k;       // [T, Hk * dk]
  Rows v;       // [T, Hk * dv]
  Rows sq;      // [T, H * dk] feature map of q, not rotated
  Rows sk;      // [T, Hk * dk]
  Rows local;   // [T, H * dv] attention inside the segment
  Rows mixed;   // [T, H * dv]
  Rows gate;    // [T, F]
  Rows up;      // [T, F]
};

absl::StatusOr<std::unique_ptr<Arch>> Infini::Create(std::shared_ptr<const Checkpoint> checkpoint,
                                                     const ArchOptions& options) {
  std::unique_ptr<Infini> arch(new Infini(*options.memory));
  MNEME_ASSIGN_OR_RETURN(arch->config_, ParseConfig(*checkpoint));
  const Config& config = arch->config_;
  ArchInfo& info = arch->info_;
  MNEME_ASSIGN_OR_RETURN(arch->weights_, LoadWeights(*checkpoint, config, *options.memory, &info));

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
  const int64_t mixed_width = config_.heads * config_.value_head_dim;
  Activations act;
  const Arena::Part parts[] = {{&act.x, T, D},        {&act.normed, T, D},
                               {&act.q, T, q_width},  {&act.k, T, k_width},
                               {&act.v, T, v_width},  {&act.sq, T, q_width},
                               {&act.sk, T, k_width}, {&act.local, T, mixed_width},
                               {&act.gate, T, F},     {&act.mixed, T, mixed_width},
                               {&act.up, T, F}};
  arena_.Reserve(parts);
  return act;
}

void Infini::Forward(Exec& exec, const Batch& batch, Rows hidden) {
  positions_.clear();
  for (const int64_t position : batch.positions) {
    positions_.push_back(position % config_.segment_tokens);
  }
  // A segment's tokens need what the segments before left in the memory of this layer, and no more.
  const std::vector<std::vector<Run>> segments = batch.CutAt(config_.segment_tokens);
  const Activations act = Reserve(batch.rows());

  ops::Embed(exec, weights_.embedding, batch.tokens, act.x);
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const Layer& layer = weights_.layers[i];
    ProjectQkv(exec, layer, config_.rms_eps, act.x, act.normed, act.q, act.k, act.v);
    MapFeatures(exec, act);
    for (const std::vector<Run>& pieces : segments) {
      AttendLocally(exec, pieces, i, act);
      UseMemory(exec, pieces, i, act);
    }
    AddOutput(exec, layer, act.mixed, act.x);
    FeedForward(exec, layer, config_.rms_eps, act.x, act.normed, act.gate, act.up);
  }
  WriteHidden(exec, weights_, config_.rms_eps, batch.wanted, act.x, hidden);
}

StateField Infini::Field(int64_t layer, int64_t which) const {
  return schema_.Field(layer * kCount + which);
}

void Infini::MapFeatures(Exec& exec, const Activations& act) const {
  // The memory knows no positions: its queries and keys are taken before the rotation.
  ops::InfiniFeatureMap(exec, act.q, act.sq);
  ops::InfiniFeatureMap(exec, act.k, act.sk);
  ops::Rope(exec, std::array{act.q, act.k},
            {.head_dim = config_.head_dim,
             .rotary_dim = config_.head_dim,
             .layout = config_.rope_layout,
             .theta = config_.theta},
            positions_);
}

void Infini::AttendLocally(Exec& exec, std::span<const Run> pieces, int64_t layer,
                           const Activations& act) const {
  const int64_t N = config_.segment_tokens;
  const StateField k = Field(layer, kKeys), v = Field(layer, kValues);
  ops::StoreRows(exec, pieces, act.k, k, N);
  ops::StoreRows(exec, pieces, act.v, v, N);
  ops::Attend(exec, pieces,
              ops::BlockAttention{
                  .k = k,
                  .v = v,
                  .block_tokens = N,
                  .query_heads = config_.heads,
                  .kv_heads = config_.kv_heads,
                  .key_dim = config_.head_dim,
                  .value_dim = config_.value_head_dim,
                  .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(config_.head_dim))),
                  .q = act.q,
                  .out = act.local});
}

void Infini::UseMemory(Exec& exec, std::span<const Run> pieces, int64_t layer,
                       const Activations& act) const {
  const Layer& weights = weights_.layers[layer];
  ops::Mix(exec, pieces,
           {.memory = Field(layer, kMemory),
            .normalizer = Field(layer, kNormalizer),
            .pending_memory = Field(layer, kPendingMemory),
            .pending_normalizer = Field(layer, kPendingNormalizer),
            .heads = config_.heads,
            .kv_heads = config_.kv_heads,
            .key_dim = config_.head_dim,
            .value_dim = config_.value_head_dim,
            .eps = config_.memory_eps,
            .delta = config_.delta,
            .memory_share = weights.memory_share,
            .local_share = weights.local_share,
            .local_until = config_.first_segment_local ? config_.segment_tokens : 0,
            .sq = act.sq,
            .sk = act.sk,
            .v = act.v,
            .local = act.local,
            .mixed = act.mixed});
}

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  return Infini::Create(std::move(checkpoint), options);
}

}  // namespace mneme::engine::infini
