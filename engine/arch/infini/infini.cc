#include "engine/arch/infini/infini.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/core/half.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/exec.h"
#include "engine/kernels/kernels.h"

namespace mneme::engine::infini {
namespace {

// A state beyond this is a mistyped segment, not a wish.
constexpr int64_t kMaxStateBytes = int64_t{1} << 42;
constexpr int64_t kLine = 16;  // floats of a cache line

// The state tensors of a layer, in the order of the schema.
enum : int64_t { kMemory, kNormalizer, kPendingMemory, kPendingNormalizer, kKeys, kValues, kCount };

int64_t Padded(int64_t floats) { return (floats + kLine - 1) / kLine * kLine; }

void WriteRow(const float* in, DType dtype, int64_t width, std::byte* row) {
  if (dtype == DType::kF32) {
    std::memcpy(row, in, width * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < width; ++i) {
    const uint16_t bits = FloatToHalf(in[i]);
    std::memcpy(row + 2 * i, &bits, 2);
  }
}

// Columns [column, column + width) of the first `count` rows of a ring as f32: where they lie, or
// converted into `scratch`.
Rows ReadRows(const std::byte* ring, DType dtype, int64_t ring_width, int64_t column, int64_t width,
              int64_t count, float* scratch) {
  if (dtype == DType::kF32) return {reinterpret_cast<const float*>(ring) + column, ring_width};
  for (int64_t j = 0; j < count; ++j) {
    const std::byte* row = ring + 2 * (j * ring_width + column);
    for (int64_t i = 0; i < width; ++i) {
      uint16_t bits;
      std::memcpy(&bits, row + 2 * i, 2);
      scratch[j * width + i] = HalfToFloat(bits);
    }
  }
  return {scratch, width};
}

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
      {&act.sk, T * k_width}, {&act.mixed, T * config_.heads * config_.value_head_dim},
      {&act.gate, T * F},     {&act.up, T * F}};
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
  const Activations act = Reserve(T);

  kernels.embed_rows(exec, weights_.embedding, tokens_, act.x);
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const Layer& layer = weights_.layers[i];
    ProjectQkv(exec, layer, config_.rms_eps, T, act.x, act.normed, act.q, act.k, act.v);
    Mix(exec, *memory_kernels, slices, i, act);
    AddOutput(exec, layer, T, act.mixed, act.x);
    FeedForward(exec, layer, config_.rms_eps, T, act.x, act.normed, act.gate, act.up);
  }
  WriteLogits(exec, weights_, config_.rms_eps, slices, act.x, act.normed, head_);
  return absl::OkStatus();
}

// act.q, act.k, act.v and the slices' states -> act.mixed and the states of the layer.
void Infini::Mix(Exec& exec, const MemoryKernels& kernels, std::span<const ArchSlice> slices,
                 int64_t layer, const Activations& act) {
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

  std::vector<int64_t> first(slices.size());  // row of each slice's first token
  for (size_t s = 1; s < slices.size(); ++s) {
    first[s] = first[s - 1] + static_cast<int64_t>(slices[s - 1].tokens.size());
  }
  scratch_.resize(exec.pool().num_threads());
  exec.pool().Run(static_cast<int64_t>(slices.size()) * Hk, [&](int64_t task, int worker) {
    const int64_t s = task / Hk;
    MixHead(kernels, slices[s], first[s], layer, task % Hk, act, scratch_[worker]);
  });
}

// One key/value head of one sequence, segment by segment.
void Infini::MixHead(const MemoryKernels& kernels, const ArchSlice& slice, int64_t first,
                     int64_t layer, int64_t kv_head, const Activations& act,
                     AlignedBuffer& scratch) {
  const int64_t dk = config_.head_dim, dv = config_.value_head_dim;
  const int64_t H = config_.heads, Hk = config_.kv_heads, N = config_.segment_tokens;
  const int64_t group = H / Hk;
  const Layer& weights = weights_.layers[layer];
  const auto tensor = [&](int64_t which) {
    return slice.state->block.data() + schema_.tensors()[layer * kCount + which].offset_bytes;
  };
  const auto head = [&](int64_t which, int64_t size) {
    return reinterpret_cast<float*>(tensor(which)) + kv_head * size;
  };
  float* memory = head(kMemory, dk * dv);
  float* normalizer = head(kNormalizer, dk);
  float* pending_memory = head(kPendingMemory, dk * dv);
  float* pending_normalizer = head(kPendingNormalizer, dk);
  std::byte* keys = tensor(kKeys);
  std::byte* values = tensor(kValues);
  const int64_t element = Traits(kv_dtype_).block_bytes;
  const MemoryView view{memory, normalizer, dk, dv, config_.memory_eps};

  const int64_t T = static_cast<int64_t>(slice.tokens.size());
  for (int64_t t = 0; t < T;) {
    const int64_t position = slice.state->position + t;
    const int64_t r = position % N;
    const int64_t count = std::min(T - t, N - r);
    const int64_t row = first + t;
    const bool converts = kv_dtype_ != DType::kF32;
    const int64_t parts[] = {Padded(ScoreElements(r + count)), Padded(count * dv),
                             converts ? Padded((r + count) * dk) : 0,
                             converts ? Padded((r + count) * dv) : 0};
    const size_t bytes = (parts[0] + parts[1] + parts[2] + parts[3]) * sizeof(float);
    if (scratch.size() < bytes) scratch = AlignedBuffer(bytes);
    float* scores = scratch.as<float>();
    float* update = scores + parts[0];
    float* k_rows = update + parts[1];
    float* v_rows = k_rows + parts[2];

    const float* k = act.k + row * Hk * dk + kv_head * dk;
    const float* v = act.v + row * Hk * dv + kv_head * dv;
    for (int64_t i = 0; i < count; ++i) {
      WriteRow(k + i * Hk * dk, kv_dtype_, dk, keys + element * ((r + i) * Hk * dk + kv_head * dk));
      WriteRow(v + i * Hk * dv, kv_dtype_, dv,
               values + element * ((r + i) * Hk * dv + kv_head * dv));
    }
    LocalArgs local{.k = ReadRows(keys, kv_dtype_, Hk * dk, kv_head * dk, dk, r + count, k_rows),
                    .v = ReadRows(values, kv_dtype_, Hk * dv, kv_head * dv, dv, r + count, v_rows),
                    .first = r,
                    .count = count,
                    .dk = dk,
                    .dv = dv,
                    .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(dk))),
                    .scores = scores,
                    .mix_stride = H * dv};
    const bool ungated = config_.first_segment_local && position < N;
    for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      local.q = {act.q + row * H * dk + h * dk, H * dk};
      local.mix = act.mixed + row * H * dv + h * dv;
      local.memory_share = ungated ? 0.0f : weights.memory_share[h];
      local.local_share = ungated ? 1.0f : weights.local_share[h];
      kernels.retrieve(view, {act.sq + row * H * dk + h * dk, H * dk}, count, local.mix, H * dv);
      kernels.local_attention(local);
    }

    const Rows sk{act.sk + row * Hk * dk + kv_head * dk, Hk * dk};
    Rows written{v, Hk * dv};
    if (config_.delta) {
      kernels.retrieve(view, sk, count, update, dv);
      kernels.subtract_from(written, count, dv, update, dv);
      written = {update, dv};
    }
    kernels.accumulate(sk, written, count, dk, dv, pending_memory, pending_normalizer);
    if (r + count == N) {
      for (int64_t i = 0; i < dk * dv; ++i) memory[i] += pending_memory[i];
      for (int64_t i = 0; i < dk; ++i) normalizer[i] += pending_normalizer[i];
      std::memset(pending_memory, 0, dk * dv * sizeof(float));
      std::memset(pending_normalizer, 0, dk * sizeof(float));
    }
    t += count;
  }
}

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  return Infini::Create(std::move(checkpoint), options);
}

}  // namespace mneme::engine::infini
