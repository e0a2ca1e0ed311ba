// Products of activations with stored weights (matmul.h, contract.h), without tensor cores.
//
// All products of a call are one launch. A block has four warps and a few weight rows of a task,
// for a tile of tokens. Rows are cut at fixed places into `split` parts, by K alone: the warps of a
// block that share its rows take one each, or each warp has rows of its own.
//   - Quantised: lane l of part p takes the pieces (32 elements each) 32 * g + l for g = p,
//     p + split, ...; it unpacks a piece once for all tokens of the tile.
//   - Float types: likewise, in pieces of eight elements.
// A lane chains its terms by fmaf in ascending k, one sum per output; the lanes' sums meet in the
// tree of WarpSum, then the parts in ascending order. K and the type alone decide all this, so
// tiles of any size and tasks in any company give the same bits.
//
// Activations that meet quantised weights are laid out anew by a small launch before: quantised
// (kInt8) or as they are (kF32), so that the loads of a warp's 32 pieces lie side by side.
//
// Memory and arithmetic (modelled, paper peaks): a tile of up to eight tokens reads N * row_bytes
// of weights for 2 * N * K * T operations, at Q4_K 3.6 T operations per byte. An H200 has about 25
// integer operations by __dp4a (four products each) for a byte of its memory, so up to some seven
// tokens the weights' bytes are the cost. Tiles of more tokens find the weights in the L2 cache:
// the blocks that read the same rows are neighbours. There a lane's 40 bytes of activations per
// token and piece serve the 32 __dp4a of four rows (kF32: 128 bytes serve 128 fmaf).
#include "engine/kernels/cuda/cuda.h"
#include "engine/kernels/cuda/device.cuh"
#include "engine/kernels/cuda/launch.h"
#include "engine/kernels/cuda/weights.cuh"
#include "engine/kernels/matmul.h"

namespace mneme::engine::cuda {
namespace {

constexpr int kWarps = kProductWarps;
constexpr int kThreads = kWarps * kWarp;
constexpr int kGroup = kWarp * kPieceElements;  // elements that a warp takes at a time
static_assert(kGroup == kProductGroup);
constexpr int kMostTokens = 8;  // of a tile
constexpr int kFloats = 8;      // elements of a lane's step through a float type

// Group g of a row of activations: what each lane reads, side by side over the lanes.
struct CodeGroup {
  uint4 codes[2][kWarp];  // elements 0-15 and 16-31 of the lane's piece
  float2 scales[kWarp];   // d and s (contract.h)
};
struct FloatGroup {
  float4 values[kPieceWords][kWarp];
};

int64_t Groups(int64_t K) { return (K + kGroup - 1) / kGroup; }

// ---- activations

// Eight lanes per piece, four elements each.
__global__ void QuantizeKernel(const float* x, int64_t x_stride, int64_t pieces, int64_t T,
                               int64_t stride, CodeGroup* out) {
  const int64_t at = int64_t{blockIdx.x} * (kThreads / kPieceWords) + threadIdx.x / kPieceWords;
  const bool mine = at < T * pieces;  // lanes beyond take part in the collectives
  const int64_t t = mine ? at / pieces : 0, piece = mine ? at % pieces : 0;
  const int word = threadIdx.x % kPieceWords;
  const float* from = x + t * x_stride + piece * kPieceElements + 4 * word;
  float value[4];
  // As bits, magnitudes are in order, with infinities and NaN at the end.
  unsigned largest = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    value[i] = from[i];
    largest = max(largest, __float_as_uint(value[i]) & 0x7fffffffu);
  }
#pragma unroll
  for (int lanes = kPieceWords / 2; lanes > 0; lanes /= 2) {
    largest = max(largest, __shfl_xor_sync(kAllLanes, largest, lanes));
  }
  const bool finite = largest < 0x7f800000u;
  constexpr float kSmallestNormal = 0x1p-126f;
  float d = __uint_as_float(largest) / 127.0f;
  const bool zeros = !finite || d < kSmallestNormal;
  uint32_t codes = 0;
  int sum = 0;
  if (!zeros) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int code = static_cast<int>(rintf(value[i] / d));  // ties to even
      codes |= (static_cast<uint32_t>(code) & 0xff) << 8 * i;
      sum += code;
    }
  }
#pragma unroll
  for (int lanes = kPieceWords / 2; lanes > 0; lanes /= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, lanes);
  }
  if (!mine) return;
  CodeGroup& group = out[piece / kWarp * stride + t];
  const int lane = static_cast<int>(piece % kWarp);
  reinterpret_cast<uint32_t*>(&group.codes[word / 4][lane])[word % 4] = codes;
  if (word != 0) return;
  if (zeros) d = finite ? 0.0f : __uint_as_float(0x7fc00000u);
  group.scales[lane] = float2{d, d * static_cast<float>(sum)};
}

// A thread per four elements.
__global__ void ArrangeKernel(const float* x, int64_t x_stride, int64_t pieces, int64_t T,
                              int64_t stride, FloatGroup* out) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t words = pieces * kPieceWords;
  if (at >= T * words) return;
  const int64_t t = at / words, four = at % words, piece = four / kPieceWords;
  const float* from = x + t * x_stride + 4 * four;
  out[piece / kWarp * stride + t].values[four % kPieceWords][piece % kWarp] =
      float4{from[0], from[1], from[2], from[3]};
}

// ---- products

struct Task {
  const uint8_t* weight;
  int64_t row_bytes;
  int64_t rows;
  float* y;
  int64_t y_stride;
  const float* bias;
  float scale;
  bool accumulate;
  bool aligned;  // weight's rows, and for float types those of x
  DType type;
  unsigned first_block;  // among blocks of rows
};

// In a launch's arguments.
struct Call {
  Task tasks[kMaxProducts];
  int count;
  int split;
  unsigned tiles;  // of tokens; blocks of the same weights are neighbours
  bool int8;       // what quantised weights meet
  int64_t K;
  int64_t T;
  const float* x;
  int64_t x_stride;
  const void* groups;    // of CodeGroup or FloatGroup: [ceil(K / kGroup), group_stride]
  int64_t group_stride;  // T up to a whole tile: a tile's groups lie together
};

// What a warp has to do. Rows beyond the last are the last once more: they are not stored.
template <int kRows>
struct Tile {
  const uint8_t* row[kRows];
  int64_t first_token;
  int part;
  int lane;
};

// sum[r * kTokens + t]
template <int kRows, int kTokens>
using Sums = float[kRows * kTokens];

template <int kRows, int kTokens, typename Reader>
__device__ __forceinline__ void AddInt8(const Reader& reader, const Call& call,
                                        const Tile<kRows>& tile, Sums<kRows, kTokens>& sum) {
  const int64_t pieces = call.K / kPieceElements;
  const auto* groups = static_cast<const CodeGroup*>(call.groups) + tile.first_token;
  for (int64_t index = tile.part * kWarp + tile.lane; index < pieces; index += kWarp * call.split) {
    const auto* group = groups + index / kWarp * call.group_stride;
    Piece w[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) w[r] = reader.Load(tile.row[r], index);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const uint4 low = __ldg(&group[t].codes[0][tile.lane]);
      const uint4 high = __ldg(&group[t].codes[1][tile.lane]);
      const float2 scales = __ldg(&group[t].scales[tile.lane]);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float& s = sum[r * kTokens + t];
        int dot = __dp4a(static_cast<int>(w[r].word[0]), static_cast<int>(low.x), 0);
        dot = __dp4a(static_cast<int>(w[r].word[1]), static_cast<int>(low.y), dot);
        dot = __dp4a(static_cast<int>(w[r].word[2]), static_cast<int>(low.z), dot);
        dot = __dp4a(static_cast<int>(w[r].word[3]), static_cast<int>(low.w), dot);
        if (reader.two_scales()) {
          s = fmaf(static_cast<float>(dot), w[r].scale[0] * scales.x, s);
          dot = 0;
        }
        dot = __dp4a(static_cast<int>(w[r].word[4]), static_cast<int>(high.x), dot);
        dot = __dp4a(static_cast<int>(w[r].word[5]), static_cast<int>(high.y), dot);
        dot = __dp4a(static_cast<int>(w[r].word[6]), static_cast<int>(high.z), dot);
        dot = __dp4a(static_cast<int>(w[r].word[7]), static_cast<int>(high.w), dot);
        s = fmaf(static_cast<float>(dot), w[r].scale[1] * scales.x, s);
        if (reader.has_min()) s = fmaf(w[r].min, scales.y, s);
      }
    }
  }
}

template <int kRows, int kTokens, typename Reader>
__device__ __forceinline__ void AddDequantized(const Reader& reader, const Call& call,
                                               const Tile<kRows>& tile, Sums<kRows, kTokens>& sum) {
  const int64_t pieces = call.K / kPieceElements;
  const auto* groups = static_cast<const FloatGroup*>(call.groups) + tile.first_token;
  for (int64_t index = tile.part * kWarp + tile.lane; index < pieces; index += kWarp * call.split) {
    const auto* group = groups + index / kWarp * call.group_stride;
    Piece w[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) w[r] = reader.Load(tile.row[r], index);
      // Not unrolled over the halves: more loads ahead would not fit the registers.
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < kPieceWords / 2; ++j) {
        float value[kRows][4];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          Dequantize(reader, w[r].word[j], w[r].scale[0], w[r].min, value[r]);
        }
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
          const float4 x = __ldg(&group[t].values[half * kPieceWords / 2 + j][tile.lane]);
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            float& s = sum[r * kTokens + t];
            s = fmaf(value[r][0], x.x, s);
            s = fmaf(value[r][1], x.y, s);
            s = fmaf(value[r][2], x.z, s);
            s = fmaf(value[r][3], x.w, s);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {  // the second half moves up
        w[r].scale[0] = w[r].scale[1];
#pragma unroll
        for (int j = 0; j < kPieceWords / 2; ++j) w[r].word[j] = w[r].word[j + kPieceWords / 2];
      }
    }
  }
}

// Tokens beyond the last are the last once more: they are not stored. (Of groups there are enough.)
__device__ __forceinline__ int64_t Token(const Call& call, int64_t t) {
  return t < call.T ? t : call.T - 1;
}

// Rows of weights and of x at multiples of 16 bytes, K a multiple of eight.
template <DType kType, int kRows, int kTokens>
__device__ __forceinline__ void AddFloats(const Call& call, const Tile<kRows>& tile,
                                          Sums<kRows, kTokens>& sum) {
  const int64_t stride = int64_t{kWarp * kFloats} * call.split;
  for (int64_t k = (tile.part * kWarp + tile.lane) * kFloats; k < call.K; k += stride) {
    float w[kRows][kFloats];
#pragma unroll
    for (int r = 0; r < kRows; ++r) LoadEight<kType>(tile.row[r] + k * BlockBytes(kType), w[r]);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const auto* at = reinterpret_cast<const float4*>(
          call.x + Token(call, tile.first_token + t) * call.x_stride + k);
      const float4 low = __ldg(at), high = __ldg(at + 1);
      const float x[kFloats] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float& s = sum[r * kTokens + t];
#pragma unroll
        for (int i = 0; i < kFloats; ++i) s = fmaf(w[r][i], x[i], s);
      }
    }
  }
}

// Any float type anywhere.
template <int kRows, int kTokens>
__device__ __forceinline__ void AddFloatsByElement(DType type, const Call& call,
                                                   const Tile<kRows>& tile,
                                                   Sums<kRows, kTokens>& sum) {
  const int64_t stride = int64_t{kWarp * kFloats} * call.split;
  for (int64_t first = (tile.part * kWarp + tile.lane) * kFloats; first < call.K; first += stride) {
    const int64_t end = first + kFloats < call.K ? first + kFloats : call.K;
    for (int64_t k = first; k < end; ++k) {
      float x[kTokens];
#pragma unroll
      for (int t = 0; t < kTokens; ++t)
        x[t] = call.x[Token(call, tile.first_token + t) * call.x_stride + k];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float w = LoadFloat(type, tile.row[r], k);
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
          sum[r * kTokens + t] = fmaf(w, x[t], sum[r * kTokens + t]);
        }
      }
    }
  }
}

template <int kRows, int kTokens>
__device__ __forceinline__ void AddProducts(const Task& task, const Call& call,
                                            const Tile<kRows>& tile, Sums<kRows, kTokens>& sum) {
  const auto quantized = [&](const auto& reader) {
    if (call.int8) {
      AddInt8<kRows, kTokens>(reader, call, tile, sum);
    } else {
      AddDequantized<kRows, kTokens>(reader, call, tile, sum);
    }
  };
  if (!task.aligned) {
    if (IsBlockType(task.type)) {
      quantized(ByteReader{task.type});
    } else {
      AddFloatsByElement<kRows, kTokens>(task.type, call, tile, sum);
    }
    return;
  }
  switch (task.type) {
    case DType::kF32:
      return AddFloats<DType::kF32, kRows, kTokens>(call, tile, sum);
    case DType::kF16:
      return AddFloats<DType::kF16, kRows, kTokens>(call, tile, sum);
    case DType::kBF16:
      return AddFloats<DType::kBF16, kRows, kTokens>(call, tile, sum);
    case DType::kQ8_0:
      return quantized(AlignedReader<DType::kQ8_0>{});
    case DType::kQ4_0:
      return quantized(AlignedReader<DType::kQ4_0>{});
    case DType::kQ4_1:
      return quantized(AlignedReader<DType::kQ4_1>{});
    case DType::kQ5_0:
      return quantized(AlignedReader<DType::kQ5_0>{});
    case DType::kQ5_1:
      return quantized(AlignedReader<DType::kQ5_1>{});
    case DType::kQ4_K:
      return quantized(AlignedReader<DType::kQ4_K>{});
    case DType::kQ5_K:
      return quantized(AlignedReader<DType::kQ5_K>{});
    case DType::kQ6_K:
      return quantized(AlignedReader<DType::kQ6_K>{});
  }
}

// Sums over the warp's lanes of kCount values each, a power of two up to 32: the result is value
// lane * kCount / 32. Every value is summed in the tree of WarpSum; but lanes halve the values they
// go on with while they have several, and so send each but once.
template <int kCount>
__device__ __forceinline__ float WarpSums(float (&value)[kCount], int lane) {
  int count = kCount;
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    if (count > 1) {
      count /= 2;
      const bool upper = (lane & lanes) != 0;
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) {
        if (i >= count) break;
        const float kept = upper ? value[i + count] : value[i];
        const float sent = upper ? value[i] : value[i + count];
        value[i] = kept + __shfl_xor_sync(kAllLanes, sent, lanes);
      }
    } else {
      value[0] += __shfl_xor_sync(kAllLanes, value[0], lanes);
    }
  }
  return value[0];
}

template <int kRows, int kTokens, int kMinBlocks>
__global__ void __launch_bounds__(kThreads, kMinBlocks) MatMulKernel(Call call) {
  constexpr int kOutputs = kRows * kTokens;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const unsigned block = blockIdx.x / call.tiles;
  const int64_t first_token = int64_t{blockIdx.x % call.tiles} * kTokens;
  int i = 0;
  while (i + 1 < call.count && block >= call.tasks[i + 1].first_block) ++i;
  const Task& task = call.tasks[i];
  const int set = warp / call.split;  // of kRows rows
  const int64_t first_row =
      (int64_t{block - task.first_block} * (kWarps / call.split) + set) * kRows;

  Tile<kRows> tile;
  tile.part = warp % call.split;
  tile.lane = lane;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t n = first_row + r < task.rows ? first_row + r : task.rows - 1;
    tile.row[r] = task.weight + n * task.row_bytes;
  }
  tile.first_token = first_token;
  float sum[kOutputs];
#pragma unroll
  for (int j = 0; j < kOutputs; ++j) sum[j] = 0;
  if (first_row < task.rows) AddProducts<kRows, kTokens>(task, call, tile, sum);

  float value = WarpSums(sum, lane);
  const int output = lane * kOutputs / kWarp;
  const bool holds = lane % (kWarp / kOutputs) == 0;
  if (call.split > 1) {
    float* parts = DynamicShared<float>();  // [kWarps][kOutputs]
    if (holds) parts[warp * kOutputs + output] = value;
    __syncthreads();
    if (tile.part != 0) return;
    for (int part = 1; part < call.split; ++part) {
      value += parts[(warp + part) * kOutputs + output];
    }
  }
  const int64_t n = first_row + output / kTokens, t = first_token + output % kTokens;
  if (!holds || n >= task.rows || t >= call.T) return;
  float& y = task.y[t * task.y_stride + n];
  value *= task.scale;
  if (task.bias != nullptr) {
    const float start = task.accumulate ? y + task.bias[n] : task.bias[n];
    y = start + value;
  } else {
    y = task.accumulate ? y + value : value;
  }
}

bool IsMultiple(const void* at, int64_t of) { return reinterpret_cast<uintptr_t>(at) % of == 0; }

bool IsAligned(const Weight& weight, const float* x, int64_t x_stride) {
  if (IsBlockType(weight.dtype)) return IsMultiple(weight.data, NaturalAlignment(weight.dtype));
  return weight.columns % kFloats == 0 && IsMultiple(weight.data, 16) && IsMultiple(x, 16) &&
         x_stride % 4 == 0;
}

template <int kRows, int kTokens, int kMinBlocks>
void LaunchProducts(CudaDevice& device, Call& call) {
  unsigned blocks = 0;
  for (int i = 0; i < call.count; ++i) {
    call.tasks[i].first_block = blocks;
    blocks += Blocks(call.tasks[i].rows, kWarps / call.split * kRows);
  }
  call.tiles = Blocks(call.T, kTokens);
  const size_t shared = call.split > 1 ? kWarps * kRows * kTokens * sizeof(float) : 0;
  Launch(device, MatMulKernel<kRows, kTokens, kMinBlocks>, blocks * call.tiles, kThreads, shared,
         call);
}

}  // namespace

void MatMul(Exec& exec, std::span<const MatMulTask> tasks, const float* x, int64_t x_stride,
            int64_t T) {
  if (tasks.empty()) return;
  CudaDevice& device = Cuda(exec);
  Call call{};
  call.K = tasks[0].weight.columns;
  call.T = T;
  call.x = x;
  call.x_stride = x_stride;
  call.split = ProductSplit(call.K);
  call.int8 = exec.contract() == Contract::kInt8;
  call.group_stride = (T + kMostTokens - 1) / kMostTokens * kMostTokens;

  const bool quantized = std::any_of(tasks.begin(), tasks.end(), [](const MatMulTask& task) {
    return IsBlockType(task.weight.dtype);
  });
  if (quantized) {
    const int64_t pieces = call.K / kPieceElements;
    const unsigned blocks = Blocks(T * pieces * kPieceWords, kThreads);
    const size_t group_bytes = call.int8 ? sizeof(CodeGroup) : sizeof(FloatGroup);
    std::byte* groups =
        device.Scratch(CudaDevice::kScratchA, Groups(call.K) * call.group_stride * group_bytes);
    call.groups = groups;
    if (call.int8) {
      Launch(device, QuantizeKernel, blocks, kThreads, 0, x, x_stride, pieces, T, call.group_stride,
             reinterpret_cast<CodeGroup*>(groups));
    } else {
      Launch(device, ArrangeKernel, blocks, kThreads, 0, x, x_stride, pieces, T, call.group_stride,
             reinterpret_cast<FloatGroup*>(groups));
    }
  }

  for (size_t begin = 0; begin < tasks.size(); begin += kMaxProducts) {
    call.count = static_cast<int>(std::min<size_t>(kMaxProducts, tasks.size() - begin));
    for (int i = 0; i < call.count; ++i) {
      const MatMulTask& task = tasks[begin + i];
      assert(BlockBytes(task.weight.dtype) == Traits(task.weight.dtype).block_bytes);
      call.tasks[i] = {.weight = reinterpret_cast<const uint8_t*>(task.weight.data),
                       .row_bytes = static_cast<int64_t>(task.weight.row_bytes()),
                       .rows = task.weight.rows,
                       .y = task.y,
                       .y_stride = task.y_stride,
                       .bias = task.bias,
                       .scale = task.scale,
                       .accumulate = task.accumulate,
                       .aligned = IsAligned(task.weight, x, x_stride),
                       .type = task.weight.dtype,
                       .first_block = 0};
    }
    switch (ProductTileOf(T).tokens) {
      case 1:
        LaunchProducts<2, 1, 6>(device, call);
        break;
      case 2:
        LaunchProducts<2, 2, 5>(device, call);
        break;
      case 4:
        LaunchProducts<2, 4, 4>(device, call);
        break;
      default:
        LaunchProducts<4, kMostTokens, 2>(device, call);
    }
  }
}

}  // namespace mneme::engine::cuda
