#include "engine/arch/infini/infini.h"

#include <cmath>
#include <cstring>
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
  const MemoryKernels* memory_kernels = FindMemoryKernels(kernels.name);
  if (memory_kernels == nullptr) {
    return absl::UnimplementedError(
        absl::StrCat("architecture infini has no kernels for backend ", std::string(kernels.name)));
  }
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
    Mix(exec, *memory_kernels, i, act);
    AddOutput(exec, layer, T, act.mixed, act.x);
    FeedForward(exec, layer, config_.rms_eps, T, act.x, act.normed, act.gate, act.up);
  }
  WriteLogits(exec, weights_, config_.rms_eps, slices, act.x, act.normed, head_);
  return absl::OkStatus();
}

const StateTensor& Infini::Tensor(int64_t layer, int64_t which) const {
  return schema_.tensors()[layer * kCount + which];
}

void Infini::Mix(Exec& exec, const MemoryKernels& kernels, int64_t layer, const Activations& act) {
  const int64_t dk = config_.head_dim, H = config_.heads, Hk = config_.kv_heads;
  // The memory knows no positions: its queries and keys are taken before the rotation.
  exec.pool().Run(act.T, [&](int64_t t, int) {
    kernels.feature_map(act.q + t * H * dk, H * dk, act.sq + t * H * dk);
    kernels.feature_map(act.k + t * Hk * dk, Hk * dk, act.sk + t * Hk * dk);
  });
  RopeArgs rope{.x = act.q,
                .x_stride = H * dk,
                .heads = H,
                .head_dim = dk,
                .rotary_dim = dk,
                .layout = config_.rope_layout,
                .positions = rows_,
                .theta = config_.theta};
  exec.kernels().rope(exec, rope);
  rope.x = act.k;
  rope.x_stride = Hk * dk;
  rope.heads = Hk;
  exec.kernels().rope(exec, rope);

  scratch_.resize(exec.pool().num_threads());
  for (const std::vector<Piece>& pieces : rounds_) {
    AttendLocally(exec, pieces, layer, act);
    exec.pool().Run(static_cast<int64_t>(pieces.size()) * Hk, [&](int64_t task, int worker) {
      MixHead(kernels, pieces[task / Hk], layer, task % Hk, act, scratch_[worker]);
    });
  }
}

void Infini::AttendLocally(Exec& exec, std::span<const Piece> pieces, int64_t layer,
                           const Activations& act) {
  const Kernels& kernels = exec.kernels();
  const int64_t H = config_.heads, Hk = config_.kv_heads;
  const int64_t dk = config_.head_dim, dv = config_.value_head_dim;
  const int64_t element = Traits(kv_dtype_).block_bytes;
  attention_.clear();
  for (const Piece& piece : pieces) {
    std::byte* keys = piece.block + Tensor(layer, kKeys).offset_bytes;
    std::byte* values = piece.block + Tensor(layer, kValues).offset_bytes;
    const int64_t r = piece.position % config_.segment_tokens;
    kernels.store_rows(exec, act.k + piece.row * Hk * dk, Hk * dk, piece.count, Hk * dk, kv_dtype_,
                       keys + r * Hk * dk * element);
    kernels.store_rows(exec, act.v + piece.row * Hk * dv, Hk * dv, piece.count, Hk * dv, kv_dtype_,
                       values + r * Hk * dv * element);
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
  kernels.block_attention(exec, attention_);
}

void Infini::MixHead(const MemoryKernels& kernels, const Piece& piece, int64_t layer,
                     int64_t kv_head, const Activations& act, AlignedBuffer& scratch) const {
  const int64_t dk = config_.head_dim, dv = config_.value_head_dim;
  const int64_t H = config_.heads, Hk = config_.kv_heads;
  const int64_t group = H / Hk, row = piece.row, count = piece.count;
  const Layer& weights = weights_.layers[layer];
  const auto head = [&](int64_t which, int64_t size) {
    return reinterpret_cast<float*>(piece.block + Tensor(layer, which).offset_bytes) +
           kv_head * size;
  };
  float* memory = head(kMemory, dk * dv);
  float* normalizer = head(kNormalizer, dk);
  float* pending_memory = head(kPendingMemory, dk * dv);
  float* pending_normalizer = head(kPendingNormalizer, dk);
  const MemoryView view{memory, normalizer, dk, dv, config_.memory_eps};

  const bool ungated = config_.first_segment_local && piece.position < config_.segment_tokens;
  for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
    float* mixed = act.mixed + row * H * dv + h * dv;
    kernels.retrieve(view, {act.sq + row * H * dk + h * dk, H * dk}, count, mixed, H * dv);
    kernels.blend(ungated ? 0.0f : weights.memory_share[h], ungated ? 1.0f : weights.local_share[h],
                  {act.local + row * H * dv + h * dv, H * dv}, count, dv, mixed, H * dv);
  }

  const Rows sk{act.sk + row * Hk * dk + kv_head * dk, Hk * dk};
  Rows written{act.v + row * Hk * dv + kv_head * dv, Hk * dv};
  if (config_.delta) {
    const size_t bytes = count * dv * sizeof(float);
    if (scratch.size() < bytes) scratch = AlignedBuffer(bytes);
    float* update = scratch.as<float>();
    kernels.retrieve(view, sk, count, update, dv);
    kernels.subtract_from(written, count, dv, update, dv);
    written = {update, dv};
  }
  kernels.accumulate(sk, written, count, dk, dv, pending_memory, pending_normalizer);
  if (piece.completes) {
    for (int64_t i = 0; i < dk * dv; ++i) memory[i] += pending_memory[i];
    for (int64_t i = 0; i < dk; ++i) normalizer[i] += pending_normalizer[i];
    std::memset(pending_memory, 0, dk * dv * sizeof(float));
    std::memset(pending_normalizer, 0, dk * sizeof(float));
  }
}

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  return Infini::Create(std::move(checkpoint), options);
}

}  // namespace mneme::engine::infini
