#include "engine/arch/fam/fam.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/ops.h"

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

// Positions of `count` memory rows whose last one is `end` - 1.
void AppendPositions(int64_t end, int64_t count, std::vector<int64_t>* positions) {
  for (int64_t i = 0; i < count; ++i) positions->push_back(end - count + i);
}

}  // namespace

// Rows of one pass: of tokens, or of memories.
struct Fam::Activations {
  Rows x;       // [T, D] residual stream
  Rows normed;  // [T, D]
  Rows q;       // [T, H * dk]
  Rows k;       // [T, Hk * dk]
  Rows v;       // [T, Hk * dk]
  Rows mixed;   // [T, H * dk]
  Rows gate;    // [T, F]
  Rows up;      // [T, F]
};

absl::StatusOr<std::unique_ptr<Arch>> Fam::Create(std::shared_ptr<const Checkpoint> checkpoint,
                                                  const ArchOptions& options) {
  std::unique_ptr<Fam> arch(new Fam(*options.memory));
  MNEME_ASSIGN_OR_RETURN(arch->config_, ParseConfig(*checkpoint));
  const Config& config = arch->config_;
  ArchInfo& info = arch->info_;
  MNEME_ASSIGN_OR_RETURN(arch->weights_, LoadWeights(*checkpoint, config, *options.memory, &info));
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
  arch->ones_ = arch->weights_.store.Place(std::vector<float>(D, 1.0f));
  arch->zeros_ = arch->weights_.store.Place(std::vector<float>(D, 0.0f));
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

StateField Fam::Field(int64_t layer, int64_t which) const {
  const int64_t skipped = config_.fam_tokens > 0 ? 0 : kMemoryTensors;
  if (which < skipped) return {};
  return schema_.Field(layer * (kCount - skipped) + which - skipped);
}

Fam::Activations Fam::Reserve(int64_t T, Arena& arena) const {
  const int64_t D = config_.width, F = config_.ffn_width;
  const int64_t q_width = config_.heads * config_.head_dim;
  const int64_t kv_width = config_.kv_heads * config_.head_dim;
  Activations act;
  const Arena::Part parts[] = {
      {&act.x, T, D},        {&act.normed, T, D},      {&act.q, T, q_width}, {&act.k, T, kv_width},
      {&act.v, T, kv_width}, {&act.mixed, T, q_width}, {&act.gate, T, F},    {&act.up, T, F}};
  arena.Reserve(parts);
  return act;
}

// The memory before the first block depends on nothing but the weights: the prompt's rows pass
// through the layers, seeing each other only, at the positions before the text. What enters a layer
// is that layer's memory. (Taking it from a layer that has read the first block would show a token
// its future.)
void Fam::InitState(Exec& exec, StateSlot state) {
  const int64_t f = config_.fam_tokens;
  if (f == 0) return;
  const Activations act = Reserve(f, memory_arena_);
  std::vector<int64_t> positions;
  AppendPositions(0, f, &positions);
  const Run memory{.slot = state, .rows = f};
  ops::Copy(exec, weights_.prompt, act.x);
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const DecoderLayer& layer = weights_.layers[i];
    ops::WriteState(exec, {&memory, 1}, act.x, Field(i, kMemory));
    StoreMemoryKeys(exec, {&memory, 1}, i, act, positions);
    ops::MatMul(exec, act.normed, Product(layer.q, act.q));
    Rotate(exec, positions, {&act.q, 1});
    ops::BlockAttention attention = Attention(i);
    attention.block_tokens = 0;
    attention.causal = false;
    attention.q = act.q;
    attention.out = act.mixed;
    ops::Attend(exec, {&memory, 1}, attention);
    AddOutput(exec, layer, act.mixed, act.x);
    FeedForward(exec, layer, config_.rms_eps, act.x, act.normed, act.gate, act.up);
  }
}

void Fam::Forward(Exec& exec, const Batch& batch, Rows hidden) {
  const std::vector<std::vector<Run>> blocks = batch.CutAt(config_.block_tokens);
  const Activations act = Reserve(batch.rows(), arena_);

  ops::Embed(exec, weights_.embedding, batch.tokens, act.x);
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const DecoderLayer& layer = weights_.layers[i];
    ProjectQkv(exec, layer, config_.rms_eps, act.x, act.normed, act.q, act.k, act.v);
    Rotate(exec, batch.positions, std::array{act.q, act.k});
    // A block's tokens need the memory that the block before left in this layer, and no more: the
    // layer's products run over all of them at once.
    for (const std::vector<Run>& pieces : blocks) {
      Mix(exec, pieces, i, act);
      if (config_.fam_tokens > 0) UpdateMemory(exec, pieces, i);
    }
    AddOutput(exec, layer, act.mixed, act.x);
    FeedForward(exec, layer, config_.rms_eps, act.x, act.normed, act.gate, act.up);
  }
  WriteHidden(exec, weights_, config_.rms_eps, batch.wanted, act.x, hidden);
}

void Fam::Rotate(Exec& exec, std::span<const int64_t> positions, std::span<const Rows> rows) const {
  ops::Rope(exec, rows,
            {.head_dim = config_.head_dim,
             .rotary_dim = config_.head_dim,
             .layout = config_.rope_layout,
             .theta = config_.theta},
            positions);
}

ops::BlockAttention Fam::Attention(int64_t layer) const {
  return {.k = Field(layer, kKeys),
          .v = Field(layer, kValues),
          .block_tokens = config_.block_tokens,
          .ring_blocks = config_.memory_blocks + 1,
          .past_blocks = config_.memory_blocks,
          .memory_k = Field(layer, kMemoryKeys),
          .memory_v = Field(layer, kMemoryValues),
          .memory_rows = config_.fam_tokens,
          .query_heads = config_.heads,
          .kv_heads = config_.kv_heads,
          .key_dim = config_.head_dim,
          .value_dim = config_.head_dim,
          .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(config_.head_dim)))};
}

// act.q, act.k (rotated), act.v and the states -> act.mixed and the states' rings.
void Fam::Mix(Exec& exec, std::span<const Run> pieces, int64_t layer,
              const Activations& act) const {
  ops::BlockAttention attention = Attention(layer);
  ops::StoreRows(exec, pieces, act.k, attention.k, config_.ring_rows());
  ops::StoreRows(exec, pieces, act.v, attention.v, config_.ring_rows());
  attention.q = act.q;
  attention.out = act.mixed;
  ops::Attend(exec, pieces, attention);
}

// The memories of sequences that have read a whole block.
void Fam::UpdateMemory(Exec& exec, std::span<const Run> pieces, int64_t index) {
  const DecoderLayer& layer = weights_.layers[index];
  const int64_t f = config_.fam_tokens, B = config_.block_tokens;
  // A run of f rows for each, at the position of its block.
  std::vector<Run> memories;
  std::vector<int64_t> query_positions, key_positions;
  for (const Run& piece : pieces) {
    if (!piece.completes) continue;
    const int64_t end = piece.position + piece.rows, begin = end - B;
    memories.push_back({.slot = piece.slot,
                        .position = begin,
                        .first_row = static_cast<int64_t>(memories.size()) * f,
                        .rows = f});
    AppendPositions(config_.query_at_current ? end : begin, f, &query_positions);
    AppendPositions(end, f, &key_positions);
  }
  if (memories.empty()) return;
  const Activations act = Reserve(static_cast<int64_t>(memories.size()) * f, memory_arena_);

  ops::ReadState(exec, memories, Field(index, kMemory), act.x);
  ops::RmsNorm(exec, act.x, layer.attention_norm, config_.rms_eps, act.normed);
  ops::MatMul(exec, act.normed, Product(layer.q, act.q));
  Rotate(exec, query_positions, {&act.q, 1});
  // The rows see each other and the whole block.
  ops::BlockAttention attention = Attention(index);
  attention.past_blocks = 0;
  attention.causal = false;
  attention.q = act.q;
  attention.out = act.mixed;
  ops::Attend(exec, memories, attention);
  for (const Run& memory : memories) {
    // The first update starts from a prompt, which holds no text to be kept.
    if (memory.position == 0) ops::Copy(exec, zeros_, act.x.Slice(memory.first_row, f));
  }
  AddOutput(exec, layer, act.mixed, act.x);
  FeedForward(exec, layer, config_.rms_eps, act.x, act.normed, act.gate, act.up);
  if (config_.feedback_norm) ops::RmsNorm(exec, act.x, ones_, kFeedbackEps, act.x);
  ops::WriteState(exec, memories, act.x, Field(index, kMemory));
  StoreMemoryKeys(exec, memories, index, act, key_positions);
}

// act.normed = rms(act.x), the memories of all sequences; its keys and values go where each
// sequence keeps them.
void Fam::StoreMemoryKeys(Exec& exec, std::span<const Run> memories, int64_t index,
                          const Activations& act, std::span<const int64_t> positions) const {
  const DecoderLayer& layer = weights_.layers[index];
  ops::RmsNorm(exec, act.x, layer.attention_norm, config_.rms_eps, act.normed);
  ops::MatMul(exec, act.normed, std::array{Product(layer.k, act.k), Product(layer.v, act.v)});
  Rotate(exec, positions, {&act.k, 1});
  ops::WriteState(exec, memories, act.k, Field(index, kMemoryKeys));
  ops::WriteState(exec, memories, act.v, Field(index, kMemoryValues));
}

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  return Fam::Create(std::move(checkpoint), options);
}

}  // namespace mneme::engine::fam
