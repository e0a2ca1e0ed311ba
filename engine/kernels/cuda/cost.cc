#include "engine/kernels/cuda/cost.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "engine/kernels/attention_plan.h"
#include "engine/kernels/cuda/launches.h"
#include "engine/kernels/exec.h"
#include "engine/kernels/kernels.h"

namespace mneme::engine::cuda {

Cost& Cost::operator+=(const Cost& other) {
  bytes_read += other.bytes_read;
  bytes_written += other.bytes_written;
  tensor_flops += other.tensor_flops;
  f32_flops += other.f32_flops;
  int8_ops += other.int8_ops;
  launches += other.launches;
  copies += other.copies;
  steps += other.steps;
  blocks = std::max(blocks, other.blocks);
  return *this;
}

double ModelledSeconds(const Cost& cost, const Peaks& peaks) {
  const double busy = std::min<double>(static_cast<double>(cost.blocks), peaks.multiprocessors);
  const double share = std::max(1.0, busy) / peaks.multiprocessors;
  const double bandwidth =
      std::min(peaks.bytes_per_second, std::max(1.0, busy) * kMultiprocessorBytes);
  return std::max({static_cast<double>(cost.bytes()) / bandwidth,
                   static_cast<double>(cost.tensor_flops) / (share * peaks.tensor_flops),
                   static_cast<double>(cost.f32_flops) / (share * peaks.f32_flops),
                   static_cast<double>(cost.int8_ops) / (share * peaks.int8_ops),
                   static_cast<double>(cost.steps) * kStepSeconds}) +
         static_cast<double>(cost.launches + cost.copies) * kLaunchSeconds;
}

// ---- the device

// Addresses that nobody may look at, each block at a multiple of 256.
class CostDevice::Addresses final : public Memory {
 public:
  bool OnHost() const override { return false; }
  int64_t CapacityBytes() const override { return int64_t{1} << 46; }
  void Write(Block&, size_t, std::span<const std::byte>) override {}
  absl::Status Read(const Block&, size_t, std::span<std::byte> bytes) const override {
    std::memset(bytes.data(), 0, bytes.size());
    return absl::OkStatus();
  }
  void Copy(const Block&, size_t, size_t, Block&) override {}
  const std::byte* Map(std::span<const std::byte> file, Block& store) override {
    store = Allocate(file.size());
    return store.address();
  }

 protected:
  std::byte* AllocateBytes(size_t size_bytes) override {
    const uintptr_t at = next_;
    next_ += (std::max<size_t>(size_bytes, 1) + 255) / 256 * 256;
    return reinterpret_cast<std::byte*>(at);
  }
  void Free(std::byte*, size_t) override {}

 private:
  uintptr_t next_ = uintptr_t{1} << 40;
};

CostDevice::CostDevice(Observer observer)
    : observer_(std::move(observer)), under_(nullptr), addresses_(std::make_unique<Addresses>()) {}
CostDevice::CostDevice(Observer observer, Device& under)
    : observer_(std::move(observer)), under_(&under) {}
CostDevice::~CostDevice() = default;

Memory& CostDevice::memory() { return under_ != nullptr ? under_->memory() : *addresses_; }
absl::Status CostDevice::Fault() const {
  return under_ != nullptr ? under_->Fault() : absl::OkStatus();
}
absl::Status CostDevice::Wait() { return under_ != nullptr ? under_->Wait() : absl::OkStatus(); }
void CostDevice::ForEach(int64_t n, absl::FunctionRef<void(int64_t)> fn) {
  if (under_ != nullptr) return under_->ForEach(n, fn);
  for (int64_t i = 0; i < n; ++i) fn(i);
}

bool CostDevice::HasAngles(std::span<const int64_t> positions, std::span<const double> theta) {
  const int64_t id = rope_tables_.Get(pool_, positions, theta).id;
  if (std::find(std::begin(sent_), std::end(sent_), id) != std::end(sent_)) return true;
  sent_[next_sent_] = id;
  next_sent_ = (next_sent_ + 1) % RopeTables::kTables;
  return false;
}

namespace {

constexpr int64_t kF = sizeof(float);

CostDevice& Counter(Exec& exec) { return static_cast<CostDevice&>(exec.device()); }

// Hands the call on if there is a device under this one, then counts it.
template <typename Fn, typename... Args>
void Count(Exec& exec, std::string_view op, Fn Kernels::*kernel, const Cost& cost, Args&&... args) {
  CostDevice& device = Counter(exec);
  if (device.observer().before) device.observer().before();
  if (Device* under = device.under(); under != nullptr) {
    Exec there(*under, exec.contract());
    (under->kernels().*kernel)(there, std::forward<Args>(args)...);
  }
  device.observer().after(op, cost);
}

int64_t Up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
int64_t Blocks(int64_t items, int64_t per_block) { return (items + per_block - 1) / per_block; }
int64_t ElementBytes(DType dtype) { return Traits(dtype).block_bytes; }

// Whether a list of the batch needs a copy of its own.
template <typename T>
int64_t ListCopies(std::span<const T> batch) {
  return batch.size() > FewOf<T>() ? 1 : 0;
}

// Of a launch without anything in a row: n elements, each read and written so many times.
Cost Elementwise(int64_t n, int64_t reads, int64_t writes, int64_t flops) {
  if (n == 0) return {};
  return {.bytes_read = n * reads * kF,
          .bytes_written = n * writes * kF,
          .f32_flops = n * flops,
          .launches = 1,
          .steps = 1,
          .blocks = Blocks(n, 256)};
}
// Of an exponential or a hyperbolic tangent with what is around it.
constexpr int64_t kActivationFlops = 20;

// ---- products

void MatMul(Exec& exec, std::span<const MatMulTask> tasks, const float* x, int64_t x_stride,
            int64_t T) {
  Cost cost;
  if (!tasks.empty()) {
    const int64_t K = tasks[0].weight.columns, pieces = K / 32;
    const bool int8 = exec.contract() == Contract::kInt8;
    const ProductTile tile = ProductTileOf(T);
    const int split = ProductSplit(K);
    bool quantized = false, floats = false;
    for (const MatMulTask& task : tasks) {
      const int64_t N = task.weight.rows, operations = 2 * N * K * T;
      cost.bytes_read += static_cast<int64_t>(task.weight.size_bytes()) +
                         (task.accumulate ? N * T * kF : 0) + (task.bias != nullptr ? N * kF : 0);
      cost.bytes_written += N * T * kF;
      cost.blocks += Blocks(N, kProductWarps / split * tile.rows) * Blocks(T, tile.tokens);
      if (!IsQuantized(task.weight.dtype)) {
        floats = true;
        cost.f32_flops += operations;
        continue;
      }
      quantized = true;
      if (int8) {
        cost.int8_ops += operations;
        cost.f32_flops += 6 * N * pieces * T;  // scales
      } else {
        cost.f32_flops += operations + 2 * N * K * Blocks(T, tile.tokens);  // weights unpacked
      }
    }
    if (quantized) {
      // A small launch lays the activations out anew: 32 codes and two scales, or 32 floats.
      const int64_t piece_bytes = int8 ? 40 : 32 * kF;
      cost.bytes_read += T * K * kF + Up(T, tile.tokens) * pieces * piece_bytes;
      cost.bytes_written += T * pieces * piece_bytes;
      cost.f32_flops += int8 ? 4 * T * K : 0;
      ++cost.launches;
    }
    if (floats) cost.bytes_read += T * K * kF;
    cost.launches += Blocks(static_cast<int64_t>(tasks.size()), kMaxProducts);
    cost.steps = cost.launches + K / ((quantized ? kProductGroup : 256) * split);
  }
  Count(exec, "matmul", &Kernels::matmul, cost, tasks, x, x_stride, T);
}

void EmbedRows(Exec& exec, const Weight& table, std::span<const int32_t> rows, float* y) {
  const auto T = static_cast<int64_t>(rows.size());
  Cost cost;
  if (T > 0) {
    cost = {.bytes_read = T * static_cast<int64_t>(table.row_bytes()),
            .bytes_written = T * table.columns * kF,
            .f32_flops = T * table.columns,
            .launches = 1,
            .copies = ListCopies(rows),
            .steps = 1,
            .blocks = T * Blocks(table.columns, 1024)};
  }
  Count(exec, "embed_rows", &Kernels::embed_rows, cost, table, rows, y);
}

// ---- row by row

void RmsNorm(Exec& exec, const float* x, const float* w, float eps, int64_t T, int64_t D,
             float* y) {
  const Cost cost{.bytes_read = (T * D + D) * kF,
                  .bytes_written = T * D * kF,
                  .f32_flops = 4 * T * D,
                  .launches = T > 0 ? 1 : 0,
                  .steps = 3,
                  .blocks = T};
  Count(exec, "rms_norm", &Kernels::rms_norm, cost, x, w, eps, T, D, y);
}

void LayerNorm(Exec& exec, const LayerNormArgs& args) {
  const Cost cost{.bytes_read = (args.T * args.D + 2 * args.D) * kF,
                  .bytes_written = args.T * args.D * kF,
                  .f32_flops = 8 * args.T * args.D,
                  .launches = Blocks(args.T, kMostGridRows),
                  .steps = 5,
                  .blocks = args.T * args.groups};
  Count(exec, "layer_norm", &Kernels::layer_norm, cost, args);
}

void Rope(Exec& exec, const RopeArgs& args) {
  const auto T = static_cast<int64_t>(args.positions.size());
  const int64_t pairs = args.rotary_dim / 2;
  int64_t heads = 0;
  for (const RotatedRows& rows : args.rows) heads += rows.heads;
  const int64_t rotated = T * heads * 2 * pairs;
  Cost cost;
  if (rotated > 0) {
    const bool has = Counter(exec).HasAngles(args.positions, args.theta.first(pairs));
    cost = {.bytes_read = (rotated + 2 * T * pairs) * kF,
            .bytes_written = rotated * kF,
            .f32_flops = 3 * rotated,
            .launches = 1,
            .copies = (has ? 0 : 1) + ListCopies(args.rows),
            .steps = 1,
            .blocks = T * Blocks(heads * pairs, 128)};
  }
  Count(exec, "rope", &Kernels::rope, cost, args);
}

void SiluMul(Exec& exec, const float* gate, const float* up, int64_t n, float* y) {
  Count(exec, "silu_mul", &Kernels::silu_mul, Elementwise(n, 2, 1, kActivationFlops), gate, up, n,
        y);
}
void Add(Exec& exec, const float* x, int64_t n, float* y) {
  Count(exec, "add", &Kernels::add, Elementwise(n, 2, 1, 1), x, n, y);
}
void Mul(Exec& exec, const float* x, int64_t n, float* y) {
  Count(exec, "mul", &Kernels::mul, Elementwise(n, 2, 1, 1), x, n, y);
}
void Activate(Exec& exec, Activation f, const float* x, int64_t n, float* y) {
  Count(exec, "activate", &Kernels::activate, Elementwise(n, 1, 1, kActivationFlops), f, x, n, y);
}
void SeriesActivate(Exec& exec, const SeriesActivateArgs& args) {
  const auto functions = static_cast<int64_t>(args.series.size());
  Cost cost = Elementwise(args.T * args.C, 1, 1, functions * (kActivationFlops + 3));
  if (cost.launches > 0) cost.bytes_read += 2 * functions * args.C * kF;
  Count(exec, "series_activate", &Kernels::series_activate, cost, args);
}

// ---- copies

void CopyRows(Exec& exec, std::span<const CopyRowsArgs> batch) {
  Cost cost;
  int64_t longest = 0;
  for (const CopyRowsArgs& args : batch) {
    cost.bytes_read +=
        (args.from_stride == 0 ? std::min<int64_t>(args.rows, 1) : args.rows) * args.width * kF;
    cost.bytes_written += args.rows * args.width * kF;
    longest = std::max(longest, args.rows);
  }
  if (longest > 0) cost.launches = cost.steps = 1;
  if (!batch.empty()) cost.copies = ListCopies(batch);
  cost.blocks = longest * static_cast<int64_t>(batch.size());
  Count(exec, "copy_rows", &Kernels::copy_rows, cost, batch);
}

void StoreRows(Exec& exec, std::span<const StoreRowsArgs> batch) {
  Cost cost;
  int64_t longest = 0;
  for (const StoreRowsArgs& args : batch) {
    cost.bytes_read += args.rows * args.width * kF;
    cost.bytes_written += args.rows * args.width * ElementBytes(args.dtype);
    longest = std::max(longest, args.rows);
  }
  if (longest > 0) cost.launches = cost.steps = 1;
  if (!batch.empty()) cost.copies = ListCopies(batch);
  cost.blocks = longest * static_cast<int64_t>(batch.size());
  Count(exec, "store_rows", &Kernels::store_rows, cost, batch);
}

void FiniteRows(Exec& exec, const float* x, int64_t T, int64_t width, uint8_t* finite) {
  const Cost cost{.bytes_read = T * width * kF,
                  .bytes_written = T,
                  .f32_flops = T * width,
                  .launches = T > 0 ? 1 : 0,
                  .copies = T > 0 ? 1 : 0,  // of the answers
                  .steps = 1,
                  .blocks = Blocks(T, 4)};
  if (Counter(exec).under() == nullptr) std::fill_n(finite, T, uint8_t{1});
  Count(exec, "finite_rows", &Kernels::finite_rows, cost, x, T, width, finite);
}

// ---- attention

// Calls of attention_core.cuh.
class Attend {
 public:
  // `keeps`: the call's rows are kept by the last launch.
  Attend(int64_t kv_heads, int64_t group, int64_t key_dim, int64_t value_dim, bool keeps)
      : kv_heads_(kv_heads),
        group_(group),
        key_dim_(key_dim),
        value_dim_(value_dim),
        keeps_(keeps) {}

  // One sequence. partials(first, last): of queries [first, last]. keys(t): what query t sees.
  template <typename Partials, typename Seen>
  void Add(int64_t tokens, Partials partials, Seen seen) {
    const int64_t rows = tokens * group_;
    if (rows == 0) return;
    const int of_block = RowsOfBlock(rows);
    Class& launch = classes_[of_block == kFewRows ? 0 : of_block == kSomeRows ? 1 : 2];
    const int64_t unit_floats = UnitFloatsOf(of_block, value_dim_) * kv_heads_;
    for (int64_t row = 0; row < rows; row += of_block) {
      const int64_t last = std::min(rows, row + of_block) - 1, count = last - row + 1;
      const int64_t n = partials(row / group_, last / group_);
      if (launch.pieces.empty() ||
          (launch.pieces.back().units + n) * unit_floats > kMostUnitFloats) {
        launch.pieces.emplace_back();
      }
      Piece& piece = launch.pieces.back();
      piece.units += n;
      if (n > 1) {
        piece.merges = true;
        const int64_t left = n * count * (value_dim_ + 2) * kv_heads_ * kF;
        cost_.bytes_written += left;
        cost_.bytes_read += left;
      }
      most_partials_ = std::max(most_partials_, n);
    }
    int64_t most = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t keys = seen(t);
      most = std::max(most, keys);
      cost_.f32_flops +=
          keys * kv_heads_ * group_ * (2 * (key_dim_ + value_dim_) + kActivationFlops);
    }
    const int64_t tiles = Blocks(std::min(most, kAttentionChunk), kAttentionTile);
    most_tiles_ = std::max(most_tiles_, tiles);
    cost_.bytes_written += rows * kv_heads_ * value_dim_ * kF;
  }
  void Read(int64_t bytes) { cost_.bytes_read += bytes; }
  void Write(int64_t bytes) { cost_.bytes_written += bytes; }

  Cost Total() {
    for (const Class& launch : classes_) {
      if (!launch.pieces.empty()) ++cost_.copies;  // of its lists
      for (size_t i = 0; i < launch.pieces.size(); ++i) {
        const Piece& piece = launch.pieces[i];
        const bool finishes = piece.merges || (keeps_ && i + 1 == launch.pieces.size());
        cost_.launches += finishes ? 2 : 1;
        cost_.blocks = std::max(cost_.blocks, piece.units * kv_heads_);
      }
    }
    // Of a tile: keys and values arrive, scores, weights.
    cost_.steps = cost_.launches + 4 * most_tiles_ + most_partials_;
    return cost_;
  }

 private:
  struct Piece {
    int64_t units = 0;
    bool merges = false;
  };
  struct Class {  // of sequences whose blocks have as many rows
    std::vector<Piece> pieces;
  };

  const int64_t kv_heads_, group_, key_dim_, value_dim_;
  const bool keeps_;
  std::array<Class, 3> classes_;
  int64_t most_tiles_ = 0, most_partials_ = 0;
  Cost cost_;
};

void Attention(Exec& exec, std::span<const AttentionArgs> batch) {
  Cost cost;
  if (!batch.empty()) {
    const AttentionArgs& one = batch[0];
    Attend attend(one.kv_heads, one.query_heads / one.kv_heads, one.head_dim, one.head_dim,
                  /*keeps=*/true);
    for (const AttentionArgs& args : batch) {
      const int64_t S = args.sinks, R = args.window, p0 = args.position, T = args.T;
      attend.Add(
          T,
          [&](int64_t first, int64_t last) {
            const KeyRange grid = GridPartials(S, R, p0 + first, p0 + last);
            return (S > 0 ? 1 : 0) + grid.end - grid.begin;
          },
          [&](int64_t t) {
            const int64_t p = p0 + t;
            return std::min(S, p + 1) + std::max<int64_t>(0, p + 1 - std::max(S, p + 1 - R));
          });
      const int64_t row = 2 * args.kv_heads * args.head_dim;  // elements of a key and a value
      const int64_t q = T * args.query_heads * args.head_dim * kF;
      attend.Read(S > 0 && args.q_sink != args.q ? 2 * q : q);
      attend.Read(T * row * kF);
      const int64_t before = std::min(S, p0) + std::max<int64_t>(0, p0 - std::max(S, p0 + 1 - R));
      attend.Read(before * row * ElementBytes(args.ring_dtype));
      // Of many rows the last ones stay.
      const int64_t dropped = std::max<int64_t>(0, T - R);
      const int64_t kept = T - dropped + std::min(dropped, std::max<int64_t>(0, S - p0));
      attend.Read(kept * row * kF);
      attend.Write(kept * row * ElementBytes(args.ring_dtype));
    }
    cost = attend.Total();
  }
  Count(exec, "attention", &Kernels::attention, cost, batch);
}

void BlockAttention(Exec& exec, std::span<const BlockAttentionArgs> batch) {
  Cost cost;
  if (!batch.empty()) {
    const BlockAttentionArgs& one = batch[0];
    Attend attend(one.kv_heads, one.query_heads / one.kv_heads, one.key_dim, one.value_dim,
                  /*keeps=*/false);
    for (const BlockAttentionArgs& args : batch) {
      int64_t places = 0;
      for (const KeyRun& run : args.runs) places += run.rows;
      const auto seen = [&](int64_t t) { return args.causal ? places - (args.T - 1 - t) : places; };
      attend.Add(
          args.T, [&](int64_t, int64_t last) { return Blocks(seen(last), kAttentionChunk); }, seen);
      attend.Read(args.T * args.query_heads * args.key_dim * kF);
      attend.Read(places * args.kv_heads * (args.key_dim + args.value_dim) *
                  ElementBytes(args.dtype));
    }
    cost = attend.Total();
  }
  Count(exec, "block_attention", &Kernels::block_attention, cost, batch);
}

void TitansAttention(Exec& exec, const TitansAttentionLayer& layer,
                     std::span<const TitansAttentionArgs> batch) {
  Cost cost;
  if (!batch.empty()) {
    Attend attend(layer.heads, 1, layer.head_dim, layer.head_dim, /*keeps=*/true);
    const int64_t width = layer.heads * layer.head_dim;
    for (const TitansAttentionArgs& args : batch) {
      const int64_t p0 = layer.segments ? args.position % layer.window : args.position;
      const int64_t T = args.rows, streams = args.num_streams;
      const auto oldest = [&](int64_t t) {
        return std::max<int64_t>(0, p0 + t + 1 - layer.window);
      };
      attend.Add(
          T,
          [&](int64_t first, int64_t last) {
            return (layer.persistent_tokens > 0 ? 1 : 0) +
                   streams * ((p0 + last) / kAttentionChunk - oldest(first) / kAttentionChunk + 1);
          },
          [&](int64_t t) { return layer.persistent_tokens + streams * (p0 + t + 1 - oldest(t)); });
      attend.Read((layer.persistent_tokens > 0 ? 2 : 1) * T * width * kF);
      attend.Read(2 * layer.persistent_tokens * width * kF);
      const int64_t kept_bytes = 2 * width * ElementBytes(layer.dtype);
      const int64_t ring = layer.window - 1;
      const int64_t kept =
          layer.segments ? std::clamp<int64_t>(ring - p0, 0, T) : std::min(T, ring);
      attend.Read(streams * (p0 - std::min(p0, oldest(0))) * kept_bytes);
      // Once as keys and values, once to be kept; those of F16 are rounded where they lie.
      const bool half = layer.dtype == DType::kF16;
      attend.Read(streams * (T + (half ? T : kept)) * 2 * width * kF);
      attend.Write(streams * (kept * kept_bytes + (half ? T * 2 * width * kF : 0)));
    }
    cost = attend.Total();
  }
  Count(exec, "titans_attention", &Kernels::titans_attention, cost, layer, batch);
}

// ---- RWKV

void TokenShift(Exec& exec, std::span<const TokenShiftArgs> batch) {
  Cost cost;
  int64_t T = 0, C = 0;
  for (const TokenShiftArgs& args : batch) {
    cost.bytes_read += (args.T + 1) * args.C * kF;
    cost.bytes_written += (args.T + 1) * args.C * kF;
    cost.f32_flops += args.T * args.C;
    T = std::max(T, args.T);
    C = std::max(C, args.C);
  }
  if (T > 0 && C > 0) {
    cost.launches = cost.steps = 1;
    cost.copies = ListCopies(batch);
    cost.blocks = Blocks(C, 256) * Blocks(T, 4) * static_cast<int64_t>(batch.size());
  }
  Count(exec, "token_shift", &Kernels::token_shift, cost, batch);
}

void Lerp(Exec& exec, std::span<const LerpArgs> batch) {
  Cost cost;
  if (!batch.empty()) {
    const int64_t n = batch[0].T * batch[0].C, blends = static_cast<int64_t>(batch.size());
    // x and delta, once for all.
    cost = Elementwise(n, 2, blends, 3 * blends);
    cost.copies = ListCopies(batch);
    cost.blocks *= blends;
    for (const LerpArgs& args : batch) {
      cost.bytes_read += ((args.dynamic != nullptr ? n : 0) + args.C) * kF;
    }
  }
  Count(exec, "lerp", &Kernels::lerp, cost, batch);
}

void Wkv4(Exec& exec, std::span<const Wkv4Args> batch) {
  Cost cost;
  for (const Wkv4Args& args : batch) {
    cost.bytes_read += (3 + 2 * args.T) * args.C * kF;
    cost.bytes_written += (3 + args.T) * args.C * kF;
    cost.f32_flops += args.T * args.C * (4 * kActivationFlops + 12);
    cost.steps = std::max(cost.steps, args.T);
  }
  if (!batch.empty()) {
    cost.bytes_read += 2 * batch[0].C * kF;  // decay and bonus
    cost.launches = 1;
    cost.copies = ListCopies(batch);
    cost.blocks = Blocks(batch[0].C, 64) * static_cast<int64_t>(batch.size());
  }
  Count(exec, "wkv4", &Kernels::wkv4, cost, batch);
}

// Of the matrices of RWKV-5 to 7: read and written once a call, whatever its length.
template <typename Args>
Cost MatrixScan(std::span<const Args> batch, int64_t vectors, int64_t flops) {
  Cost cost;
  if (batch.empty()) return cost;
  for (const Args& args : batch) {
    const int64_t C = args.heads * args.head_size, state = C * args.head_size;
    cost.bytes_read += (state + vectors * args.T * C) * kF;
    cost.bytes_written += (state + args.T * C) * kF;
    cost.f32_flops += flops * args.T * state;
    cost.steps = std::max(cost.steps, args.T);
  }
  const int64_t N = batch[0].head_size;
  cost.launches = 1;
  cost.copies = ListCopies(batch);
  cost.blocks =
      Blocks(N, kScanThreads / ScanLanes(N)) * batch[0].heads * static_cast<int64_t>(batch.size());
  return cost;
}

void Wkv6(Exec& exec, std::span<const Wkv6Args> batch) {
  Cost cost = MatrixScan(batch, /*vectors=*/3, /*flops=*/8);
  for (const Wkv6Args& args : batch) {
    const int64_t C = args.heads * args.head_size;
    if (args.decay_stride != 0) cost.bytes_read += args.T * C * kF;
  }
  if (!batch.empty()) {  // bonus, and a decay that all tokens share
    const int64_t C = batch[0].heads * batch[0].head_size;
    cost.bytes_read += (batch[0].decay_stride == 0 ? 2 : 1) * C * kF;
  }
  Count(exec, "wkv6", &Kernels::wkv6, cost, batch);
}

void Wkv7Prepare(Exec& exec, const Wkv7PrepareArgs& args) {
  const int64_t C = args.heads * args.head_size, n = args.T * C;
  const bool mixes = args.mix != nullptr;
  const Cost cost{.bytes_read = ((mixes ? 6 : 3) * n + 2 * C) * kF,
                  .bytes_written = (mixes ? 5 : 4) * n * kF,
                  .f32_flops = (4 * kActivationFlops + 10) * n,
                  .launches = n > 0 ? 1 : 0,
                  .steps = 2,
                  .blocks = Blocks(args.T * args.heads, 4)};
  Count(exec, "wkv7_prepare", &Kernels::wkv7_prepare, cost, args);
}

void Wkv7(Exec& exec, std::span<const Wkv7Args> batch) {
  Count(exec, "wkv7", &Kernels::wkv7, MatrixScan(batch, /*vectors=*/6, /*flops=*/9), batch);
}

void Wkv7Bonus(Exec& exec, const Wkv7BonusArgs& args) {
  const int64_t C = args.heads * args.head_size, n = args.T * C;
  const Cost cost{.bytes_read = (5 * n + C) * kF,
                  .bytes_written = n * kF,
                  .f32_flops = 6 * n,
                  .launches = n > 0 ? 1 : 0,
                  .steps = 2,
                  .blocks = Blocks(args.T * args.heads, 4)};
  Count(exec, "wkv7_bonus", &Kernels::wkv7_bonus, cost, args);
}

// ---- Infini-attention

void InfiniFeatureMap(Exec& exec, const float* x, int64_t n, float* y) {
  Count(exec, "infini_feature_map", &Kernels::infini_feature_map,
        Elementwise(n, 1, 1, kActivationFlops), x, n, y);
}

void InfiniMix(Exec& exec, const InfiniMixShape& shape, std::span<const InfiniMixArgs> batch) {
  Cost cost;
  int64_t longest = 0;
  const int64_t H = shape.heads, Hk = shape.kv_heads, dk = shape.key_dim, dv = shape.value_dim;
  const int64_t matrix = Hk * dk * dv, normalizer = Hk * dk;
  for (const InfiniMixArgs& args : batch) {
    const int64_t T = args.rows;
    // What reads memories.
    cost.bytes_read += (matrix + normalizer + T * (H * dk + H * dv)) * kF;
    cost.bytes_written += T * H * dv * kF;
    if (shape.delta) {
      cost.bytes_read += T * Hk * (dk + dv) * kF;
      cost.bytes_written += T * Hk * dv * kF;
    }
    // What changes them.
    const int64_t memories = args.completes ? 2 : 1;
    cost.bytes_read += (memories * (matrix + normalizer) + T * Hk * (dk + dv)) * kF;
    cost.bytes_written += memories * (matrix + normalizer) * kF;
    cost.f32_flops += 2 * T * dk * dv * (H + (shape.delta ? 2 : 1) * Hk);
    longest = std::max(longest, T);
  }
  if (!batch.empty()) {
    cost.bytes_read += 2 * H * kF;
    cost.launches = 2;
    cost.copies = 1;
    cost.steps = 3 + Blocks(dk, 128) + longest;
    cost.blocks = std::max(Blocks(longest * (H / Hk + (shape.delta ? 1 : 0)), 16) * Blocks(dv, 32),
                           Blocks(dk, 32) * Blocks(dv, 32)) *
                  Hk * static_cast<int64_t>(batch.size());
  }
  Count(exec, "infini_mix", &Kernels::infini_mix, cost, shape, batch);
}

// ---- Titans

void ShortConv(Exec& exec, std::span<const ShortConvArgs> batch) {
  Cost cost;
  std::vector<const float*> taps;  // that several sequences share
  for (const ShortConvArgs& args : batch) {
    const int64_t tail = args.num_taps - 1, width = args.width;
    if (args.rows == 0 || width == 0) continue;
    if (std::find(taps.begin(), taps.end(), args.taps) == taps.end()) {
      taps.push_back(args.taps);
      cost.bytes_read += args.num_taps * width * kF;
    }
    // Of rows that were never written there are none.
    cost.bytes_read += (args.rows + tail) * width * kF;
    cost.bytes_written += (args.rows + std::min(tail, args.rows)) * width * kF;
    cost.f32_flops += args.rows * width * (2 * args.num_taps + kActivationFlops);
    const int64_t rows = std::max<int64_t>(4, tail);
    const int64_t parts = args.norm_heads > 0 ? args.norm_heads : Blocks(width, 128);
    cost.blocks += Blocks(parts * Blocks(args.rows, rows), 4);
    cost.launches = 1;
    cost.steps = std::max(cost.steps, std::min(args.rows, rows));
  }
  if (cost.launches > 0) cost.copies = ListCopies(batch);
  Count(exec, "short_conv", &Kernels::short_conv, cost, batch);
}

void TitansRates(Exec& exec, const TitansRatesArgs& args, int64_t T, float* z) {
  Count(exec, "titans_rates", &Kernels::titans_rates,
        Elementwise(T * 3 * args.heads, 1, 1, kActivationFlops), args, T, z);
}

// One launch goes through all chunks, a block a head: matrices that it comes back to, and scratch,
// stay in the L2 cache.
void TitansMemory(Exec& exec, const TitansMemoryLayer& layer,
                  std::span<const TitansMemoryArgs> batch) {
  Cost cost;
  const TitansMemoryShape& shape = layer.memory;
  const int64_t H = layer.heads, b = layer.chunk_tokens, row = H * shape.width;
  const int64_t matrices = H * shape.Parameters();
  int64_t widths = 1;  // of what a row's gradients take
  for (int64_t l = 0; l < shape.depth; ++l) widths += shape.Inputs(l) + shape.Outputs(l);
  bool decays = false;
  for (const TitansMemoryArgs& args : batch) {
    const int64_t T = args.rows, slot = args.position % b, chunks = (slot + T) / b;
    const bool writes = args.k != nullptr;
    int64_t passes = T;  // rows times matrices: to read, and below for gradients, commits, steps
    cost.bytes_read += T * row * kF;
    cost.bytes_written += T * row * kF;
    // Scratch: two rows of the widest at a time, or what gradients take.
    int64_t scratch = 2 * std::min(T, b) * shape.Widest();
    if (writes) {
      cost.bytes_read += T * (2 * row + 3 * H) * kF;
      if (layer.token_mode) {
        cost.bytes_read += 3 * matrices * kF;
        cost.bytes_written += (2 + (chunks > 0 ? 1 : 0)) * matrices * kF;
        passes += 5 * T;
        scratch += std::min(T, b) * (widths + 3);
        decays = true;
      } else {
        const int64_t pending = 2 * row + 3 * H;
        const int64_t fresh = std::min(T, b - slot);
        cost.bytes_read += matrices * kF;
        // Rows that wait: those of before if their chunk ends, and those of this call.
        if (chunks > 0) cost.bytes_read += slot * pending * kF;
        const int64_t first = std::min(fresh, b - 1 - slot);
        const int64_t waits = std::max(first, std::min(T - fresh, b - 1));
        cost.bytes_written += std::min(b - 1, std::max(waits, first)) * pending * kF;
        if (chunks > 0) {
          cost.bytes_read += matrices * kF;  // momentum
          cost.bytes_written += 2 * matrices * kF;
          passes += chunks * b * 4;
          scratch = std::max(scratch, b * (widths + 2));
          decays = true;
        }
      }
    } else {
      cost.bytes_read += matrices * kF;
    }
    cost.bytes_written += H * scratch * kF;
    cost.f32_flops += 2 * passes * matrices;
    cost.steps = std::max(cost.steps,
                          (writes && layer.token_mode ? T : Blocks(slot + T, b)) * 4 * shape.depth);
  }
  if (decays && !layer.target.empty()) cost.bytes_read += matrices * kF;
  if (!batch.empty()) {
    cost.launches = 1;
    cost.copies = 1;
    cost.blocks = H * static_cast<int64_t>(batch.size());
  }
  Count(exec, "titans_memory", &Kernels::titans_memory, cost, layer, batch);
}

constexpr Kernels kKernels = {
    .name = "cuda-cost",
    .matmul = MatMul,
    .embed_rows = EmbedRows,
    .rms_norm = RmsNorm,
    .rope = Rope,
    .attention = Attention,
    .block_attention = BlockAttention,
    .copy_rows = CopyRows,
    .store_rows = StoreRows,
    .finite_rows = FiniteRows,
    .silu_mul = SiluMul,
    .add = Add,
    .mul = Mul,
    .activate = Activate,
    .series_activate = SeriesActivate,
    .layer_norm = LayerNorm,
    .token_shift = TokenShift,
    .lerp = Lerp,
    .wkv4 = Wkv4,
    .wkv6 = Wkv6,
    .wkv7_prepare = Wkv7Prepare,
    .wkv7 = Wkv7,
    .wkv7_bonus = Wkv7Bonus,
    .infini_feature_map = InfiniFeatureMap,
    .infini_mix = InfiniMix,
    .short_conv = ShortConv,
    .titans_rates = TitansRates,
    .titans_memory = TitansMemory,
    .titans_attention = TitansAttention,
    .simd_target = [] { return std::string("none"); },
};

}  // namespace

const Kernels& CostDevice::kernels() const { return kKernels; }

}  // namespace mneme::engine::cuda
