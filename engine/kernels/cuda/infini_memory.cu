// The compressive memory of Infini-attention (infini_memory.h), in two launches: what reads
// memories, then what changes them.
//
// Reading: the query heads of a key/value head, and under the delta rule its keys, are rows over
// one memory. A block has some of them by kColumns of the memory; each warp multiplies all of the
// block's rows by kChunk rows of the memory, a lane per column. The sum over dk goes chunk by
// chunk.
//
// Changing: a block has a square of one memory, and adds token after token to it. The blocks of the
// first columns have the normaliser, too.
#include "engine/kernels/cuda/cuda.h"
#include "engine/kernels/cuda/device.cuh"
#include "engine/kernels/cuda/launch.h"
#include "engine/kernels/cuda/quad.cuh"

namespace mneme::engine::cuda {
namespace {

constexpr int kMapThreads = 256;

__global__ void FeatureMapKernel(const float* x, int64_t n, float* y) {
  const int64_t i = int64_t{blockIdx.x} * kMapThreads + threadIdx.x;
  if (i >= n) return;
  const float value = x[i];
  // Not fminf and fmaxf, which would lose a NaN.
  y[i] = value > 0 ? 1.0f + value : expf(value);
}

// What a sequence's call is to the kernels: under the delta rule, `update` is v with what the
// memory already gives for the keys taken from it.
struct MixTask {
  InfiniMixArgs args;
  float* update;  // [T, Hk, dv]
};

// ---- reading

constexpr int kWarps = 8;
constexpr int kReadThreads = kWarps * kWarp;
constexpr int kColumns = kWarp;
constexpr int kRows = 16;   // of a block, at most
constexpr int kChunk = 16;  // what a warp sums over before sums are added
constexpr int kPass = kWarps * kChunk;
constexpr int kOutputs = kRows * kColumns / kReadThreads;  // of a thread

struct ReadShared {
  float s[kRows][kPass];
  float sums[kWarps][kRows][kColumns];
  float denominators[kRows];
};

// Block (rows and columns, key/value head, sequence): neighbours in the grid have the same columns.
__global__ void __launch_bounds__(kReadThreads)
    ReadKernel(InfiniMixShape shape, const MixTask* tasks, unsigned column_blocks) {
  const MixTask task = tasks[blockIdx.z];
  const InfiniMixArgs& args = task.args;
  const int64_t H = shape.heads, Hk = shape.kv_heads, kv_head = blockIdx.y, group = H / Hk;
  const int64_t dk = shape.key_dim, dv = shape.value_dim;
  // Row t * rows_per_token + g is query head g of the group, the last one of a token its key.
  const unsigned rows_per_token = static_cast<unsigned>(group) + (shape.delta ? 1 : 0);
  const unsigned first_row = blockIdx.x / column_blocks * kRows;
  const int count =
      static_cast<int>(std::min<int64_t>(kRows, args.rows * rows_per_token - first_row));
  if (count <= 0) return;
  const int64_t first_column = int64_t{blockIdx.x % column_blocks} * kColumns;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
  const int64_t column = first_column + lane;
  ReadShared& shared = *DynamicShared<ReadShared>();
  const float* memory = args.memory + kv_head * dk * dv;
  const float* z = args.normalizer + kv_head * dk;

  float totals[kOutputs] = {};
  float denominators[kRows / kWarps] = {};  // a lane's parts, of rows warp + i * kWarps
  for (int64_t pass = 0; pass < dk; pass += kPass) {
    const int64_t begin = pass + warp * kChunk;
    float m[kChunk];
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      m[i] = begin + i < dk && column < dv ? memory[(begin + i) * dv + column] : 0;
    }
    for (int place = threadIdx.x; place < count * kPass; place += kReadThreads) {
      const unsigned row = first_row + place / kPass;
      const int64_t t = row / rows_per_token, g = row % rows_per_token, i = pass + place % kPass;
      const float* s = g < group ? args.sq + (t * H + kv_head * group + g) * dk
                                 : args.sk + (t * Hk + kv_head) * dk;
      shared.s[place / kPass][place % kPass] = i < dk ? s[i] : 0;
    }
    __syncthreads();
#pragma unroll 4
    for (int r = 0; r < count; ++r) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kChunk; i += 4) {
        const Quad s = LoadQuad(&shared.s[r][warp * kChunk + i]);
#pragma unroll
        for (int c = 0; c < 4; ++c) sum = fmaf(s.at[c], m[i + c], sum);
      }
      shared.sums[warp][r][lane] = sum;
    }
#pragma unroll
    for (int i = 0; i < kRows / kWarps; ++i) {
      const int r = warp + i * kWarps;
      if (r >= count) break;
      for (int j = lane; j < kPass && pass + j < dk; j += kWarp) {
        denominators[i] = fmaf(shared.s[r][j], z[pass + j], denominators[i]);
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      const int r = i * kWarps + warp;
      if (r >= count) break;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) totals[i] += shared.sums[w][r][lane];
    }
  }
  // A warp has summed the denominators of the rows whose outputs it has.
  static_assert(kOutputs == kRows / kWarps);
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
    const int r = i * kWarps + warp;
    if (r >= count) break;  // the whole warp
    const float read = totals[i] / (WarpSum(denominators[i]) + shape.eps);
    if (column >= dv) continue;
    const unsigned row = first_row + r;
    const int64_t t = row / rows_per_token, g = row % rows_per_token;
    if (g < group) {
      const int64_t h = kv_head * group + g, at = (t * H + h) * dv + column;
      const float memory_share = args.local_only ? 0.0f : shape.memory_share[h];
      const float local_share = args.local_only ? 1.0f : shape.local_share[h];
      args.mixed[at] = fmaf(memory_share, read, local_share * args.local[at]);
    } else {
      const int64_t at = (t * Hk + kv_head) * dv + column;
      task.update[at] = args.v[at] - read;
    }
  }
}

// ---- changing

constexpr int kWriteThreads = 64;
constexpr int kSquare = 32;  // rows and columns of a block; a thread has 4 by 4 of them
constexpr int kQuads = kSquare / 4;
constexpr int kTokens = 8;  // in shared memory at a time
constexpr int kLoads = kTokens * kSquare / kWriteThreads;
static_assert(kQuads * kQuads == kWriteThreads);

struct WriteShared {
  float s[2][kTokens][kSquare];
  float u[2][kTokens][kSquare];
};

// total += pending, pending = 0.
__device__ __forceinline__ void Commit(Quad& pending, float* total, int count, bool aligned) {
  Quad sum = LoadQuad(total, count, aligned);
#pragma unroll
  for (int i = 0; i < 4; ++i) sum.at[i] += pending.at[i];
  StoreQuad(sum, total, count, aligned);
  pending = {};
}

// Block (rows and columns, key/value head, sequence).
__global__ void __launch_bounds__(kWriteThreads)
    WriteKernel(InfiniMixShape shape, const MixTask* tasks, unsigned column_blocks) {
  const MixTask task = tasks[blockIdx.z];
  const InfiniMixArgs& args = task.args;
  const int64_t Hk = shape.kv_heads, kv_head = blockIdx.y, T = args.rows;
  const int64_t dk = shape.key_dim, dv = shape.value_dim;
  const int64_t first_row = int64_t{blockIdx.x / column_blocks} * kSquare;
  const int64_t first_column = int64_t{blockIdx.x % column_blocks} * kSquare;
  const int row_quad = static_cast<int>(threadIdx.x) / kQuads, column_quad = threadIdx.x % kQuads;
  const int64_t row = first_row + 4 * row_quad, column = first_column + 4 * column_quad;
  // Of the thread.
  const int rows = static_cast<int>(std::min<int64_t>(4, std::max<int64_t>(0, dk - row)));
  const int columns = static_cast<int>(std::min<int64_t>(4, std::max<int64_t>(0, dv - column)));
  const bool has_normalizer = first_column == 0;
  WriteShared& shared = *DynamicShared<WriteShared>();

  const int64_t at = (kv_head * dk + row) * dv + column, z_at = kv_head * dk + row;
  float* pending = args.pending_memory + at;
  float* pending_z = args.pending_normalizer + z_at;
  const bool aligned = QuadsAreAligned(args.pending_memory, dv);
  Quad sums[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) sums[r] = LoadQuad(pending + r * dv, r < rows ? columns : 0, aligned);
  Quad z_sums = LoadQuad(pending_z, has_normalizer ? rows : 0, false);

  const float* s_from = args.sk + kv_head * dk + first_row;
  const float* u_from = (shape.delta ? task.update : args.v) + kv_head * dv + first_column;
  const int load_at = threadIdx.x % kSquare, load_token = static_cast<int>(threadIdx.x) / kSquare;
  float s_next[kLoads], u_next[kLoads];
  const auto fetch = [&](int64_t first) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t t = first + load_token + i * (kWriteThreads / kSquare);
      s_next[i] = t < T && first_row + load_at < dk ? s_from[t * Hk * dk + load_at] : 0;
      u_next[i] = t < T && first_column + load_at < dv ? u_from[t * Hk * dv + load_at] : 0;
    }
  };
  const auto put = [&](int buffer) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int token = load_token + i * (kWriteThreads / kSquare);
      shared.s[buffer][token][load_at] = s_next[i];
      shared.u[buffer][token][load_at] = u_next[i];
    }
  };
  fetch(0);
  put(0);
  __syncthreads();
  int buffer = 0;
  for (int64_t first = 0; first < T; first += kTokens, buffer ^= 1) {
    const bool more = first + kTokens < T;
    if (more) fetch(first + kTokens);
#pragma unroll
    for (int token = 0; token < kTokens; ++token) {
      if (first + token >= T) break;
      const Quad s = LoadQuad(&shared.s[buffer][token][4 * row_quad]);
      const Quad u = LoadQuad(&shared.u[buffer][token][4 * column_quad]);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[r].at[c] = fmaf(s.at[r], u.at[c], sums[r].at[c]);
      }
      if (has_normalizer) {
#pragma unroll
        for (int r = 0; r < 4; ++r) z_sums.at[r] += s.at[r];
      }
    }
    if (more) put(buffer ^ 1);
    __syncthreads();
  }

  const bool total_aligned = QuadsAreAligned(args.memory, dv);
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    if (r >= rows) break;
    if (args.completes) Commit(sums[r], args.memory + at + r * dv, columns, total_aligned);
    StoreQuad(sums[r], pending + r * dv, columns, aligned);
  }
  if (has_normalizer && column_quad == 0) {
    if (args.completes) Commit(z_sums, args.normalizer + z_at, rows, false);
    StoreQuad(z_sums, pending_z, rows, false);
  }
}

}  // namespace

void InfiniFeatureMap(Exec& exec, const float* x, int64_t n, float* y) {
  Launch(Cuda(exec), FeatureMapKernel, Blocks(n, kMapThreads), kMapThreads, 0, x, n, y);
}

void InfiniMix(Exec& exec, const InfiniMixShape& shape, std::span<const InfiniMixArgs> batch) {
  if (batch.empty()) return;
  CudaDevice& device = Cuda(exec);
  int64_t rows = 0, longest = 0;
  for (const InfiniMixArgs& args : batch) {
    rows += args.rows;
    longest = std::max(longest, args.rows);
  }
  const int64_t width = shape.kv_heads * shape.value_dim;
  float* update = nullptr;
  if (shape.delta) {
    update = reinterpret_cast<float*>(
        device.Scratch(CudaDevice::kScratchA, rows * width * sizeof(float)));
  }
  Upload upload(device, Upload::Bytes<MixTask>(batch.size()));
  const Upload::Array<MixTask> tasks = upload.Allocate<MixTask>(batch.size());
  for (size_t i = 0; i < batch.size(); ++i) {
    tasks.host[i] = {batch[i], update};
    if (update != nullptr) update += batch[i].rows * width;
  }
  upload.Send();

  const auto kv_heads = static_cast<unsigned>(shape.kv_heads);
  const auto sequences = static_cast<unsigned>(batch.size());
  const int64_t rows_per_token = shape.heads / shape.kv_heads + (shape.delta ? 1 : 0);
  const unsigned column_blocks = Blocks(shape.value_dim, kColumns);
  Launch(device, ReadKernel,
         dim3(Blocks(longest * rows_per_token, kRows) * column_blocks, kv_heads, sequences),
         kReadThreads, sizeof(ReadShared), shape, tasks.device, column_blocks);
  const unsigned square_columns = Blocks(shape.value_dim, kSquare);
  Launch(device, WriteKernel,
         dim3(Blocks(shape.key_dim, kSquare) * square_columns, kv_heads, sequences), kWriteThreads,
         sizeof(WriteShared), shape, tasks.device, square_columns);
}

}  // namespace mneme::engine::cuda
