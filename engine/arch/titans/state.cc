#include "engine/arch/titans/state.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace mneme::engine::titans {
namespace {

// A state beyond this is a mistyped number, not a wish.
constexpr int64_t kMaxStateBytes = int64_t{1} << 42;

// The tensors of every layer, and of one the indices.
class Builder {
 public:
  Builder(const Config& config, DType kv_dtype) : config_(config), kv_dtype_(kv_dtype) {}

  void AddLayer(int64_t layer) {
    layer_ = static_cast<int32_t>(layer);
    first_ = tensors_.size();
    index_ = LayerTensors();
    const int64_t H = config_.memory_heads, b = config_.chunk_tokens;
    const int64_t dm = config_.memory_width(), D = config_.width;
    AddMatrices("memory_", &index_.memory);
    AddMatrices("momentum_", &index_.momentum);
    if (config_.token_mode) {
      AddMatrices("running_", &index_.running);
    } else if (b > 1) {
      index_.pending_k = Fixed("pending_k", {b - 1, dm});
      index_.pending_v = Fixed("pending_v", {b - 1, dm});
      index_.pending_rates = Fixed("pending_rates", {b - 1, 3 * H});
    }
    if (const int64_t K = config_.conv_taps; K > 1) {
      index_.conv_q = Fixed("conv_q", {K - 1, dm});
      index_.conv_k = Fixed("conv_k", {K - 1, dm});
      index_.conv_v = Fixed("conv_v", {K - 1, dm});
      if (config_.IsContext()) index_.conv_q2 = Fixed("conv_q2", {K - 1, dm});
    }
    if (config_.IsContext()) {
      index_.h_k = Fixed("h_k", {b - 1, D}, kv_dtype_);
      index_.h_v = Fixed("h_v", {b - 1, D}, kv_dtype_);
      index_.x_k = Fixed("x_k", {b - 1, D}, kv_dtype_);
      index_.x_v = Fixed("x_v", {b - 1, D}, kv_dtype_);
    } else if (config_.HasAttention()) {
      index_.k = Ring("k");
      index_.v = Ring("v");
    }
    index_.count = Next();
  }

  const LayerTensors& index() const { return index_; }
  std::vector<StateTensor> Take() { return std::move(tensors_); }

 private:
  int Next() const { return static_cast<int>(tensors_.size() - first_); }
  int Fixed(std::string name, std::vector<int64_t> shape, DType dtype = DType::kF32) {
    tensors_.push_back(
        {.layer = layer_, .name = std::move(name), .dtype = dtype, .shape = std::move(shape)});
    return Next() - 1;
  }
  int Ring(std::string name) {
    const int64_t rows = config_.window_tokens - 1;
    tensors_.push_back({.layer = layer_,
                        .name = std::move(name),
                        .dtype = kv_dtype_,
                        .shape = {rows, config_.width},
                        .kind = StateKind::kRing,
                        .sinks = 0,
                        .window = rows});
    return Next() - 1;
  }
  void AddMatrices(const char* name, std::vector<int>* indices) {
    const TitansMemoryShape& memory = config_.memory;
    for (int64_t l = 0; l < memory.depth; ++l) {
      indices->push_back(Fixed(absl::StrCat(name, l),
                               {config_.memory_heads, memory.Inputs(l), memory.Outputs(l)}));
    }
  }

  const Config& config_;
  const DType kv_dtype_;
  std::vector<StateTensor> tensors_;
  LayerTensors index_;
  int32_t layer_ = 0;
  size_t first_ = 0;
};

}  // namespace

absl::StatusOr<StateMap> StateMap::Create(const Config& config, DType kv_dtype) {
  const int64_t L = config.num_layers, H = config.memory_heads, e = config.memory.width;
  const int64_t P = config.memory.Parameters(), b = config.chunk_tokens, K = config.conv_taps;
  const int64_t D = config.width, dm = config.memory_width();
  const int64_t kv = Traits(kv_dtype).block_bytes;

  std::string formula = absl::StrCat("L * (8 * H * P");
  std::string numbers = absl::StrCat(L, " * (8 * ", H, " * ", P);
  __int128 bytes = static_cast<__int128>(8) * H * P;
  if (config.token_mode) {
    formula += " + 4 * H * P";
    absl::StrAppend(&numbers, " + 4 * ", H, " * ", P);
    bytes += static_cast<__int128>(4) * H * P;
  } else {
    formula += " + 4 * (b - 1) * H * (2 * e + 3)";
    absl::StrAppend(&numbers, " + 4 * ", b - 1, " * ", H, " * ", 2 * e + 3);
    bytes += static_cast<__int128>(4) * (b - 1) * H * (2 * e + 3);
  }
  const int64_t streams = config.IsContext() ? 4 : 3;
  absl::StrAppend(&formula, " + 4 * (K - 1) * dm * ", streams);
  absl::StrAppend(&numbers, " + 4 * ", K - 1, " * ", dm, " * ", streams);
  bytes += static_cast<__int128>(4) * (K - 1) * dm * streams;
  if (config.IsContext()) {
    formula += " + 4 * b_kv * (C - 1) * d";
    absl::StrAppend(&numbers, " + 4 * ", kv, " * ", b - 1, " * ", D);
    bytes += static_cast<__int128>(4) * kv * (b - 1) * D;
  } else if (config.HasAttention()) {
    formula += " + 2 * b_kv * (W - 1) * d";
    absl::StrAppend(&numbers, " + 2 * ", kv, " * ", config.window_tokens - 1, " * ", D);
    bytes += static_cast<__int128>(2) * kv * (config.window_tokens - 1) * D;
  }
  bytes *= L;
  if (bytes > kMaxStateBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("keys 'memory_chunk_tokens', 'window_tokens', 'conv_taps' and the memory's "
                     "widths make a state of more than ",
                     kMaxStateBytes, " bytes"));
  }

  StateMap map;
  map.formula_ =
      absl::StrCat(formula, ") = ", numbers, ") = ", static_cast<int64_t>(bytes), " bytes");
  Builder builder(config, kv_dtype);
  for (int64_t i = 0; i < L; ++i) builder.AddLayer(i);
  map.tensors_ = builder.index();
  map.schema_ = StateSchema(builder.Take());
  return map;
}

}  // namespace mneme::engine::titans
