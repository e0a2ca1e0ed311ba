#include "engine/arch/fam/fam.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/exec.h"
#include "engine/kernels/kernels.h"

namespace mneme::engine::fam {
namespace {

// A state beyond this is a mistyped block, not a wish.
constexpr int64_t kMaxStateBytes = int64_t{1} << 42;
constexpr float kFeedbackEps = 1e-6f;

// The state tensors of a layer, in the order of the schema; without a memory only the last two.
enum : int64_t { kMemory, kMemoryKeys, kMemoryValues, kKeys, kValues, kCount };
constexpr int64_t kMemoryTensors = kKeys;

std::vector<StateTensor> StateTensors(const Config& config, DType kv_dtype) {
  const int64_t f = config.fam_tokens, width = config.kv_heads * config.head_dim;
  std::vector<StateTensor> tensors;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const auto layer = static_cast<int32_t>(i);
    if (f > 0) {
      tensors.push_back({.layer = layer, .name = "fam", .shape = {f, config.width}});
      for (const char* name : {"fam_k", "fam_v"}) {
        tensors.push_back({.layer = layer, .name = name, .dtype = kv_dtype, .shape = {f, width}});
      }
    }
    for (const char* name : {"k", "v"}) {
      tensors.push_back({.layer = layer,
                         .name = name,
                         .dtype = kv_dtype,
                         .shape = {config.ring_rows(), width},
                         .kind = StateKind::kRing,
                         .sinks = 0,
                         .window = config.ring_rows()});
    }
  }
  return tensors;
}

// Positions of memory rows whose last one is `end` - 1.
void AppendPositions(int64_t end, int64_t count, std::vector<int64_t>* positions) {
  for (int64_t i = 0; i < count; ++i) positions->push_back(end - count + i);
}

}  // namespace

// Arrays of one pass over T rows, row-major: tokens, or rows of memories.
struct Fam::Activations {
  int64_t T = 0;
  float* x = nullptr;       // [T, D] residual stream
  float* normed = nullptr;  // [T, D]
  float* q = nullptr;       // [T, H * dk]
  float* k = nullptr;       // [T, Hk * dk]
  float* v = nullptr;       // [T, Hk * dk]
  float* mixed = nullptr;   // [T, H * dk]
  float* gate = nullptr;    // [T, F]
  float* up = nullptr;      // [T, F]
};

absl::StatusOr<std::unique_ptr<Arch>> Fam::Create(std::shared_ptr<const Checkpoint> checkpoint,
                                                  const ArchOptions& options) {
  std::unique_ptr<Fam> arch(new Fam);
  MNEME_ASSIGN_OR_RETURN(arch->config_, ParseConfig(*checkpoint));
  const Config& config = arch->config_;
  ArchInfo& info = arch->info_;
  MNEME_ASSIGN_OR_RETURN(arch->weights_, LoadWeights(*checkpoint, config, &info));
  MNEME_RETURN_IF_ERROR(CheckKvDtype(options.kv_dtype));
  const int64_t L = config.num_layers, f = config.fam_tokens, D = config.width;
  const int64_t Hk = config.kv_heads, dk = config.head_dim;
  const int64_t B = config.block_tokens, m = config.memory_blocks;
  const int64_t b = Traits(options.kv_dtype).block_bytes;
  const __int128 state_bytes =
      static_cast<__int128>(L) * (4 * static_cast<__int128>(f) * D +
                                  2 * static_cast<__int128>(b * Hk * dk) * ((m + 1) * B + f));
  if (state_bytes > kMaxStateBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint->path(), ": keys 'block_tokens' ", B, " and 'memory_blocks' ", m,
                     " make a state of more than ", kMaxStateBytes, " bytes"));
  }
  arch->kv_dtype_ = options.kv_dtype;
  arch->ones_.assign(D, 1.0f);
  arch->zeros_.assign(D, 0.0f);
  arch->schema_ = StateSchema(StateTensors(config, options.kv_dtype));

  info.architecture = "fam";
  info.vocab_size = config.vocab_size;
  info.num_layers = L;
  if (f == 0) info.effective_context_tokens = config.ring_rows();
  info.state_formula =
      absl::StrCat("L * (4 * f * D + 2 * b * Hk * dk * ((m + 1) * B + f)) = ", L, " * (4 * ", f,
                   " * ", D, " + 2 * ", b, " * ", Hk, " * ", dk, " * ((", m, " + 1) * ", B, " + ",
                   f, ")) = ", static_cast<int64_t>(state_bytes), " bytes");
  arch->checkpoint_ = std::move(checkpoint);
  return arch;
}

const StateTensor& Fam::Tensor(int64_t layer, int64_t which) const {
  const int64_t skipped = config_.fam_tokens > 0 ? 0 : kMemoryTensors;
  return schema_.tensors()[layer * (kCount - skipped) + which - skipped];
}

Fam::Activations Fam::Reserve(int64_t T, StepBuffers& buffers) const {
  const int64_t D = config_.width, F = config_.ffn_width;
  const int64_t q_width = config_.heads * config_.head_dim;
  const int64_t kv_width = config_.kv_heads * config_.head_dim;
  Activations act{.T = T};
  const StepBuffers::Part parts[] = {{&act.x, T * D},        {&act.normed, T * D},
                                     {&act.q, T * q_width},  {&act.k, T * kv_width},
                                     {&act.v, T * kv_width}, {&act.mixed, T * q_width},
                                     {&act.gate, T * F},     {&act.up, T * F}};
  buffers.Reserve(parts);
  return act;
}

// The memory before the first block depends on nothing but the weights: the prompt's rows pass
// through the layers, seeing each other only, at the positions before the text. What enters a layer
// is that layer's memory. (Taking it from a layer that has read the first block would show a token
// its future.)
void Fam::InitState(Exec& exec, State& state) {
  const int64_t f = config_.fam_tokens, D = config_.width;
  if (f == 0) return;
  const Activations act = Reserve(f, memory_buffers_);
  std::vector<int64_t> positions;
  AppendPositions(0, f, &positions);
  const auto copy = [&](const float* from, float* to) {
    const CopyRowsArgs args{
        .from = from, .from_stride = D, .to = to, .to_stride = D, .rows = f, .width = D};
    exec.kernels().copy_rows(exec, {&args, 1});
  };
  copy(weights_.prompt.data(), act.x);
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const DecoderLayer& layer = weights_.layers[i];
    std::byte* block = state.block.data();
    std::byte* k_rows = block + Tensor(i, kMemoryKeys).offset_bytes;
    std::byte* v_rows = block + Tensor(i, kMemoryValues).offset_bytes;
    copy(act.x, reinterpret_cast<float*>(block + Tensor(i, kMemory).offset_bytes));
    StoreMemoryKeys(exec, layer, act, positions, {&k_rows, 1}, {&v_rows, 1});
    const MatMulTask query = Product(layer.q, act.q);
    exec.kernels().matmul(exec, {&query, 1}, act.normed, D, f);
    Rotate(exec, positions, config_.heads, act.q);
    BlockAttentionArgs args = BaseArgs();
    args.runs[0] = {k_rows, v_rows, f};
    args.causal = false;
    args.T = f;
    args.q = act.q;
    args.out = act.mixed;
    exec.kernels().block_attention(exec, {&args, 1});
    AddOutput(exec, layer, f, act.mixed, act.x);
    FeedForward(exec, layer, config_.rms_eps, f, act.x, act.normed, act.gate, act.up);
  }
}

absl::Status Fam::Forward(Exec& exec, std::span<const ArchSlice> slices) {
  FlattenTokens(slices, &tokens_);
  const auto T = static_cast<int64_t>(tokens_.size());
  if (T == 0) return absl::OkStatus();
  positions_.clear();
  for (const ArchSlice& slice : slices) {
    const auto count = static_cast<int64_t>(slice.tokens.size());
    AppendPositions(slice.state->position + count, count, &positions_);
  }
  PlanRounds(slices, config_.block_tokens, &rounds_);
  const Activations act = Reserve(T, buffers_);

  exec.kernels().embed_rows(exec, weights_.embedding, tokens_, act.x);
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const DecoderLayer& layer = weights_.layers[i];
    ProjectQkv(exec, layer, config_.rms_eps, T, act.x, act.normed, act.q, act.k, act.v);
    Rotate(exec, positions_, config_.heads, act.q);
    Rotate(exec, positions_, config_.kv_heads, act.k);
    // A block's tokens need the memory that the block before left in this layer, and no more: the
    // layer's products run over all of them at once.
    for (const std::vector<Piece>& pieces : rounds_) {
      Mix(exec, pieces, i, act);
      if (config_.fam_tokens > 0) UpdateMemory(exec, pieces, i);
    }
    AddOutput(exec, layer, T, act.mixed, act.x);
    FeedForward(exec, layer, config_.rms_eps, T, act.x, act.normed, act.gate, act.up);
  }
  WriteLogits(exec, weights_, config_.rms_eps, slices, act.x, act.normed, head_);
  return absl::OkStatus();
}

void Fam::Rotate(Exec& exec, std::span<const int64_t> positions, int64_t heads, float* x) const {
  exec.kernels().rope(exec, {.x = x,
                             .x_stride = heads * config_.head_dim,
                             .heads = heads,
                             .head_dim = config_.head_dim,
                             .rotary_dim = config_.head_dim,
                             .layout = config_.rope_layout,
                             .positions = positions,
                             .theta = config_.theta});
}

BlockAttentionArgs Fam::BaseArgs() const {
  const int64_t q_width = config_.heads * config_.head_dim;
  return {.dtype = kv_dtype_,
          .query_heads = config_.heads,
          .kv_heads = config_.kv_heads,
          .key_dim = config_.head_dim,
          .value_dim = config_.head_dim,
          .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(config_.head_dim))),
          .q_stride = q_width,
          .out_stride = q_width};
}

// Rows of keys and values, to be stored as a state keeps them.
void Fam::AddStores(int64_t rows, const float* k, const float* v, std::byte* to_k,
                    std::byte* to_v) {
  const int64_t width = config_.kv_heads * config_.head_dim;
  StoreRowsArgs store{.x_stride = width, .rows = rows, .width = width, .dtype = kv_dtype_};
  store.x = k;
  store.to = to_k;
  stores_.push_back(store);
  store.x = v;
  store.to = to_v;
  stores_.push_back(store);
}

// act.q, act.k (rotated), act.v and the states -> act.mixed and the states' rings.
void Fam::Mix(Exec& exec, std::span<const Piece> pieces, int64_t layer, const Activations& act) {
  const Kernels& kernels = exec.kernels();
  const int64_t q_width = config_.heads * config_.head_dim;
  const int64_t kv_width = config_.kv_heads * config_.head_dim;
  const int64_t row_bytes = kv_width * Traits(kv_dtype_).block_bytes;
  const int64_t B = config_.block_tokens, rows = config_.ring_rows();
  attention_.clear();
  stores_.clear();
  for (const Piece& piece : pieces) {
    std::byte* k = piece.block + Tensor(layer, kKeys).offset_bytes;
    std::byte* v = piece.block + Tensor(layer, kValues).offset_bytes;
    // A block lies in the ring in one piece, because the ring is a whole number of blocks.
    const int64_t at = piece.position % rows * row_bytes;
    AddStores(piece.count, act.k + piece.row * kv_width, act.v + piece.row * kv_width, k + at,
              v + at);

    const int64_t begin = piece.position - piece.position % B;  // of the block
    const int64_t past = std::min(config_.memory_blocks * B, begin);
    const int64_t oldest = (begin - past) % rows;
    const int64_t unwrapped = std::min(past, rows - oldest);
    BlockAttentionArgs args = BaseArgs();
    args.runs[0] = {k + oldest * row_bytes, v + oldest * row_bytes, unwrapped};
    args.runs[1] = {k, v, past - unwrapped};
    if (config_.fam_tokens > 0) {
      args.runs[2] = {piece.block + Tensor(layer, kMemoryKeys).offset_bytes,
                      piece.block + Tensor(layer, kMemoryValues).offset_bytes, config_.fam_tokens};
    }
    const int64_t current = begin % rows * row_bytes;
    args.runs[3] = {k + current, v + current, piece.position - begin + piece.count};
    args.T = piece.count;
    args.q = act.q + piece.row * q_width;
    args.out = act.mixed + piece.row * q_width;
    attention_.push_back(args);
  }
  kernels.store_rows(exec, stores_);
  kernels.block_attention(exec, attention_);
}

// The memories of sequences that have read a whole block.
void Fam::UpdateMemory(Exec& exec, std::span<const Piece> pieces, int64_t index) {
  const Kernels& kernels = exec.kernels();
  const DecoderLayer& layer = weights_.layers[index];
  const int64_t f = config_.fam_tokens, D = config_.width, B = config_.block_tokens;
  const int64_t q_width = config_.heads * config_.head_dim;
  const int64_t row_bytes = config_.kv_heads * config_.head_dim * Traits(kv_dtype_).block_bytes;
  std::vector<const Piece*> complete;
  for (const Piece& piece : pieces) {
    if (piece.completes) complete.push_back(&piece);
  }
  if (complete.empty()) return;
  const auto n = static_cast<int64_t>(complete.size());
  const Activations act = Reserve(n * f, memory_buffers_);

  std::vector<int64_t> query_positions, key_positions;
  std::vector<std::byte*> k_rows, v_rows;
  std::vector<CopyRowsArgs> reads, resets, writes;
  attention_.clear();
  for (int64_t i = 0; i < n; ++i) {
    const Piece& piece = *complete[i];
    const int64_t end = piece.position + piece.count, begin = end - B;
    float* memory = reinterpret_cast<float*>(piece.block + Tensor(index, kMemory).offset_bytes);
    float* x = act.x + i * f * D;
    reads.push_back(
        {.from = memory, .from_stride = D, .to = x, .to_stride = D, .rows = f, .width = D});
    writes.push_back(
        {.from = x, .from_stride = D, .to = memory, .to_stride = D, .rows = f, .width = D});
    // The first update starts from a prompt, which holds no text to be kept.
    if (end == B) {
      resets.push_back({.from = zeros_.data(),
                        .from_stride = 0,
                        .to = x,
                        .to_stride = D,
                        .rows = f,
                        .width = D});
    }
    AppendPositions(config_.query_at_current ? end : begin, f, &query_positions);
    AppendPositions(end, f, &key_positions);
    k_rows.push_back(piece.block + Tensor(index, kMemoryKeys).offset_bytes);
    v_rows.push_back(piece.block + Tensor(index, kMemoryValues).offset_bytes);
    const int64_t at = begin % config_.ring_rows() * row_bytes;
    BlockAttentionArgs args = BaseArgs();
    args.runs[0] = {k_rows.back(), v_rows.back(), f};
    args.runs[1] = {piece.block + Tensor(index, kKeys).offset_bytes + at,
                    piece.block + Tensor(index, kValues).offset_bytes + at, B};
    args.causal = false;
    args.T = f;
    args.q = act.q + i * f * q_width;
    args.out = act.mixed + i * f * q_width;
    attention_.push_back(args);
  }
  kernels.copy_rows(exec, reads);
  kernels.rms_norm(exec, act.x, layer.attention_norm.data(), config_.rms_eps, act.T, D, act.normed);
  const MatMulTask query = Product(layer.q, act.q);
  kernels.matmul(exec, {&query, 1}, act.normed, D, act.T);
  Rotate(exec, query_positions, config_.heads, act.q);
  kernels.block_attention(exec, attention_);
  kernels.copy_rows(exec, resets);
  AddOutput(exec, layer, act.T, act.mixed, act.x);
  FeedForward(exec, layer, config_.rms_eps, act.T, act.x, act.normed, act.gate, act.up);
  if (config_.feedback_norm) {
    kernels.rms_norm(exec, act.x, ones_.data(), kFeedbackEps, act.T, D, act.x);
  }
  kernels.copy_rows(exec, writes);
  StoreMemoryKeys(exec, layer, act, key_positions, k_rows, v_rows);
}

// act.normed = rms(act.x), the memories of all sequences, f rows each; its keys and values go where
// each sequence keeps them.
void Fam::StoreMemoryKeys(Exec& exec, const DecoderLayer& layer, const Activations& act,
                          std::span<const int64_t> positions, std::span<std::byte* const> k_rows,
                          std::span<std::byte* const> v_rows) {
  const Kernels& kernels = exec.kernels();
  const int64_t f = config_.fam_tokens, D = config_.width;
  const int64_t width = config_.kv_heads * config_.head_dim;
  kernels.rms_norm(exec, act.x, layer.attention_norm.data(), config_.rms_eps, act.T, D, act.normed);
  const std::array tasks = {Product(layer.k, act.k), Product(layer.v, act.v)};
  kernels.matmul(exec, tasks, act.normed, D, act.T);
  Rotate(exec, positions, config_.kv_heads, act.k);
  stores_.clear();
  for (size_t i = 0; i < k_rows.size(); ++i) {
    const int64_t first = static_cast<int64_t>(i) * f * width;
    AddStores(f, act.k + first, act.v + first, k_rows[i], v_rows[i]);
  }
  kernels.store_rows(exec, stores_);
}

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  return Fam::Create(std::move(checkpoint), options);
}

}  // namespace mneme::engine::fam
