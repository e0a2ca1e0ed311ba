// Softmax attention over tiles of keys: what the attention kernels share.
//
// A unit of work is a block of rows (a row is a query and one of the query heads that read the same
// kv head) times a partial, and has a block of threads; partials lie on an absolute grid, so that
// one long sequence fills a device. A tile of keys, then of values, is brought to shared memory as
// f32 and serves all rows. Where a query sees several partials, units leave theirs in scratch, and
// a second launch merges them in ascending order; it also keeps the call's rows in the state, which
// no query may find changed before.
//
// Order of sums, the same for every size of row block:
//   score     one chain over channels
//   weights   of a tile: eight chains of every eighth key, summed as a tree
//   values    one chain over the keys seen, ascending; scaled down tile by tile
// Row blocks are of 4, 8 or 32 rows: what decodes, and what has enough rows to share a tile.
//
// An `Op` is a sequence of the batch, on the device. It says what its rows and keys are:
//   int64_t tokens() const;
//   int64_t Partials(first, last) const;               of queries [first, last], on the host too
//   Keys KeysOf(first, last, i) const;                 keys of one of them
//   KeyRange Visible(keys, t) const;                   what query t sees, relative to keys.begin;
//                                                      neither end descends with t
//   const float* Query(keys, t) const;                 of head 0
//   float* Out(t) const;                               of head 0
//   StoredRows Rows(keys, kv_head, values, j, end) const;   rows from key j on that lie at one
//                                                           distance from each other
//   void Keep(t) const;                                by all threads of a block; if kKeeps
//   size_t ListBytes() const; void AddLists(Upload&);  of lists that it points to on the host, if
//   any
#pragma once

#include <algorithm>
#include <span>

#include "absl/container/inlined_vector.h"
#include "engine/core/dtype.h"
#include "engine/kernels/attention_plan.h"
#include "engine/kernels/cuda/device.cuh"
#include "engine/kernels/cuda/launch.h"

namespace mneme::engine::cuda {

// What all sequences of a call share.
struct AttendShape {
  int64_t kv_heads;
  int64_t group;  // query heads of a kv head
  int64_t key_dim;
  int64_t value_dim;
  float scale;
};

// What decodes one by one needs fits without an allocation.
template <typename Op>
using OpList = absl::InlinedVector<Op, 8>;

// Of one partial: [begin, begin + count) in positions or places of what `source` names.
struct Keys {
  int64_t begin;
  int64_t count;
  int64_t source;
};

enum class Stored { kF16, kF32, kF32ToRound };

struct StoredRows {
  const void* first;
  int64_t stride;  // elements
  int64_t count;
  Stored as;
};

// Rows of one sequence, and the units that are theirs.
struct RowBlock {
  int64_t first_row;   // token * group + head of the group
  int64_t first_unit;  // of this launch
  int32_t op;
  int32_t partials;
};

namespace attend {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTile = static_cast<int>(kAttentionTile);
constexpr int kWeightStride = kTile + 4;  // rows begin in different banks, 16-byte aligned
constexpr int kLanesPerRow = 8;           // in the softmax
constexpr int kRowsPerPass = kThreads / kLanesPerRow;
constexpr float kUnseen = -1;  // among weights, which are not below zero
constexpr float kNegativeInfinity = -__builtin_huge_valf();

// Sizes of a block of kRows rows. Few rows: decoding, whose time is that of reading keys; many: a
// tile that was read serves them all.
template <int kRows>
struct Sizes {
  // Channels of a tile in shared memory at a time.
  static constexpr int kChunk = kRows <= 8 ? 128 : 64;
  static constexpr int kTileStride = kChunk + 4;
  // Scores: a warp has a quarter of the keys; a lane kRowsOfLane x kKeysOfLane.
  static constexpr int kRowsOfLane = kRows == 4 ? 1 : kRows == 8 ? 2 : 4;
  static constexpr int kLanesOfRows = kRows / kRowsOfLane;
  static constexpr int kLanesOfKeys = kWarp / kLanesOfRows;
  static constexpr int kKeysOfLane = kTile / kWarps / kLanesOfKeys;
  // Values: a thread has kRowsOfThread x kChannels outputs at a time.
  static constexpr int kRowsOfThread = kRows == 8 ? 8 : 4;
  static constexpr int kChannels = kRows <= 8 ? 1 : 4;
  static_assert(kRows % kRowsOfThread == 0 && kLanesOfKeys * kKeysOfLane * kWarps == kTile);
};

__host__ __device__ constexpr int64_t RoundUp(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Shared memory of a unit.
template <int kRows>
struct Layout {
  int64_t q_stride, o_stride;             // multiples of four floats, the first an odd one
  int64_t o, weights, tile, shrink, end;  // in floats; the queries begin it

  __host__ __device__ constexpr explicit Layout(const AttendShape& shape)
      : q_stride(RoundUp(shape.key_dim, 8) + 4),
        o_stride(RoundUp(shape.value_dim, 4)),
        o(kRows * q_stride),
        weights(o + kRows * o_stride),
        tile(weights + kRows * kWeightStride),
        shrink(tile + kTile * Sizes<kRows>::kTileStride),
        end(shrink + kRows) {}
};

// The sequence lies behind it.
template <int kRows, typename Op>
constexpr size_t SharedBytes(const AttendShape& shape) {
  return Layout<kRows>(shape).end * sizeof(float) + sizeof(Op);
}

// Results of a unit: the values, then the largest score and the sum of weights of each row.
template <int kRows>
__host__ __device__ constexpr int64_t UnitFloats(const AttendShape& shape) {
  return UnitFloatsOf(kRows, shape.value_dim);
}

__device__ __forceinline__ float RoundToHalf(float x) {
  return HalfBitsToFloat(FloatToHalfBits(x));
}

// Four elements from `at` as they are stored; those from `count` on are zero.
template <bool kVector>
__device__ __forceinline__ float4 LoadFour(const float* at, int64_t count) {
  if constexpr (kVector) return *reinterpret_cast<const float4*>(at);
  return {at[0], count > 1 ? at[1] : 0.0f, count > 2 ? at[2] : 0.0f, count > 3 ? at[3] : 0.0f};
}
template <bool kVector>
__device__ __forceinline__ uint2 LoadFour(const uint16_t* at, int64_t count) {
  if constexpr (kVector) return *reinterpret_cast<const uint2*>(at);
  const unsigned high = count > 1 ? at[1] : 0, low2 = count > 2 ? at[2] : 0,
                 high2 = count > 3 ? at[3] : 0;
  return {at[0] | high << 16, low2 | high2 << 16};
}
__device__ __forceinline__ float4 Unpack(float4 x) { return x; }
__device__ __forceinline__ float4 Unpack(uint2 x) {
  return {HalfBitsToFloat(static_cast<uint16_t>(x.x)), HalfBitsToFloat(x.x >> 16),
          HalfBitsToFloat(static_cast<uint16_t>(x.y)), HalfBitsToFloat(x.y >> 16)};
}

// `rows` rows of channels [0, width) to a tile. Several loads of a thread are under way at once.
template <int kRows, bool kVector, typename T>
__device__ __forceinline__ void LoadRows(const T* from, int64_t stride, int rows, int width,
                                         bool round, float* tile) {
  using Packed = decltype(LoadFour<kVector>(from, 0));
  constexpr int kFours = Sizes<kRows>::kChunk / 4;
  constexpr int kAtOnce = kVector ? 64 / sizeof(Packed) : 1;
  const int column = static_cast<int>(threadIdx.x) % kFours * 4;
  if (column >= width) return;
  constexpr int kRowStep = kThreads / kFours;
  const int first = static_cast<int>(threadIdx.x) / kFours;
  const int64_t step = kRowStep * stride;
  from += first * stride + column;
  tile += first * Sizes<kRows>::kTileStride + column;
#pragma unroll 1
  for (int left = rows - first; left > 0; left -= kAtOnce * kRowStep) {
    Packed packed[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i * kRowStep < left) packed[i] = LoadFour<kVector>(from, width - column);
      from += step;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i * kRowStep < left) {
        float4 x = Unpack(packed[i]);
        if (round) x = {RoundToHalf(x.x), RoundToHalf(x.y), RoundToHalf(x.z), RoundToHalf(x.w)};
        *reinterpret_cast<float4*>(tile + i * kRowStep * Sizes<kRows>::kTileStride) = x;
      }
    }
    tile += kAtOnce * kRowStep * Sizes<kRows>::kTileStride;
  }
}

template <int kRows, typename T>
__device__ __forceinline__ void LoadRows(const T* from, int64_t stride, int rows, int width,
                                         bool round, float* tile) {
  if (reinterpret_cast<uintptr_t>(from) % (4 * sizeof(T)) == 0 && stride % 4 == 0 &&
      width % 4 == 0) {
    LoadRows<kRows, true>(from, stride, rows, width, round, tile);
  } else {
    LoadRows<kRows, false>(from, stride, rows, width, round, tile);
  }
}

// Channels [channel, channel + width) of keys or values [begin, end) of the tile that begins at key
// `first`; other rows are zero.
template <int kRows, typename Op>
__device__ void LoadTile(const Op& op, const Keys& keys, int64_t kv_head, bool values, int first,
                         int begin, int end, int channel, int width, float* tile) {
  for (int j = begin; j < end;) {
    const StoredRows rows = op.Rows(keys, kv_head, values, first + j, first + end);
    const int count = static_cast<int>(rows.count);
    float* to = tile + j * Sizes<kRows>::kTileStride;
    if (rows.as == Stored::kF16) {
      LoadRows<kRows>(static_cast<const uint16_t*>(rows.first) + channel, rows.stride, count, width,
                      false, to);
    } else {
      LoadRows<kRows>(static_cast<const float*>(rows.first) + channel, rows.stride, count, width,
                      rows.as == Stored::kF32ToRound, to);
    }
    j += count;
  }
  constexpr int kFours = Sizes<kRows>::kChunk / 4;
  const int hidden = kTile - (end - begin);
#pragma unroll 1
  for (int i = threadIdx.x; i < hidden * kFours; i += kThreads) {
    int row = i / kFours;
    if (row >= begin) row += end - begin;
    *reinterpret_cast<float4*>(tile + row * Sizes<kRows>::kTileStride + i % kFours * 4) = {};
  }
}

__device__ __forceinline__ float Component(const float4& x, int i) {
  return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w;
}

// Adds channels of the loaded tile to scores; `width` is a multiple of four.
template <int kRows>
__device__ __forceinline__ void AddScores(
    const float* q, int q_stride, const float* tile, int width,
    float (&score)[Sizes<kRows>::kRowsOfLane][Sizes<kRows>::kKeysOfLane]) {
  using S = Sizes<kRows>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  q += lane % S::kLanesOfRows * q_stride;
  tile += (warp * (kTile / kWarps) + lane / S::kLanesOfRows) * S::kTileStride;
#pragma unroll 1  // registers
  for (int c = 0; c < width; c += 4) {
    float4 query[S::kRowsOfLane], key[S::kKeysOfLane];
#pragma unroll
    for (int i = 0; i < S::kRowsOfLane; ++i) {
      query[i] = *reinterpret_cast<const float4*>(q + i * S::kLanesOfRows * q_stride + c);
    }
#pragma unroll
    for (int j = 0; j < S::kKeysOfLane; ++j) {
      key[j] = *reinterpret_cast<const float4*>(tile + j * S::kLanesOfKeys * S::kTileStride + c);
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < S::kRowsOfLane; ++i) {
#pragma unroll
        for (int j = 0; j < S::kKeysOfLane; ++j) {
          score[i][j] = fmaf(Component(query[i], n), Component(key[j], n), score[i][j]);
        }
      }
    }
  }
}

// o[row][channel] = o * shrink + the tile's weighted values, for channels [0, width) of the chunk
// that is loaded. `masked`: some row does not see some key of [begin, end).
template <int kRows, bool kMasked>
__device__ __forceinline__ void AddValues(const float* weights, const float* shrink,
                                          const float* tile, int rows, int begin, int end,
                                          int width, int o_stride, float* o) {
  using S = Sizes<kRows>;
  constexpr int kGroups = S::kChunk / S::kChannels;
  for (int item = threadIdx.x; item < kRows / S::kRowsOfThread * kGroups; item += kThreads) {
    const int channel = item % kGroups * S::kChannels;
    const int row = item / kGroups * S::kRowsOfThread;
    if (channel >= width || row >= rows) continue;
    float sum[S::kRowsOfThread][S::kChannels];
#pragma unroll
    for (int i = 0; i < S::kRowsOfThread; ++i) {
#pragma unroll
      for (int c = 0; c < S::kChannels; ++c) {
        sum[i][c] = o[(row + i) * o_stride + channel + c] * shrink[row + i];
      }
    }
#pragma unroll 1
    for (int j = begin / 4 * 4; j < end; j += 4) {
      float4 weight[S::kRowsOfThread];
#pragma unroll
      for (int i = 0; i < S::kRowsOfThread; ++i) {
        weight[i] = *reinterpret_cast<const float4*>(weights + (row + i) * kWeightStride + j);
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        float value[S::kChannels];
        const float* from = tile + (j + n) * S::kTileStride + channel;
        if constexpr (S::kChannels == 4) {
          const float4 four = *reinterpret_cast<const float4*>(from);
          value[0] = four.x, value[1] = four.y, value[2] = four.z, value[3] = four.w;
        } else {
          value[0] = *from;
        }
#pragma unroll
        for (int i = 0; i < S::kRowsOfThread; ++i) {
          // What a row does not see must not reach it, not even as 0 * NaN.
          const float w = Component(weight[i], n);
          const bool seen = !kMasked || !(w < 0);  // kUnseen; a NaN is seen
#pragma unroll
          for (int c = 0; c < S::kChannels; ++c) {
            const float more = fmaf(w, value[c], sum[i][c]);
            sum[i][c] = seen ? more : sum[i][c];
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < S::kRowsOfThread; ++i) {
#pragma unroll
      for (int c = 0; c < S::kChannels; ++c) {
        o[(row + i) * o_stride + channel + c] = sum[i][c];
      }
    }
  }
}

// Which row block a unit belongs to.
__device__ __forceinline__ int64_t FindRowBlock(const RowBlock* blocks, int64_t count,
                                                int64_t unit) {
  int64_t begin = 0, end = count;
  while (end - begin > 1) {
    const int64_t middle = (begin + end) / 2;
    if (blocks[middle].first_unit <= unit) {
      begin = middle;
    } else {
      end = middle;
    }
  }
  return begin;
}

// Block (unit, kv head).
template <int kRows, typename Op>
__global__ void __launch_bounds__(kThreads, 4)
    AttendKernel(const Op* ops, const RowBlock* blocks, int64_t num_blocks, AttendShape shape,
                 float* units) {
  using S = Sizes<kRows>;
  const RowBlock block = blocks[FindRowBlock(blocks, num_blocks, blockIdx.x)];
  const Layout<kRows> layout(shape);
  float* q = DynamicShared<float>();
  // In shared memory, where its fields need no registers from tile to tile.
  const Op& op = *reinterpret_cast<const Op*>(q + layout.end);
  static_assert(sizeof(Op) % sizeof(unsigned) == 0 && alignof(Op) <= 16);
  for (int i = threadIdx.x; i < static_cast<int>(sizeof(Op) / sizeof(unsigned)); i += kThreads) {
    reinterpret_cast<unsigned*>(q + layout.end)[i] =
        reinterpret_cast<const unsigned*>(ops + block.op)[i];
  }
  __syncthreads();
  const int kv_head = static_cast<int>(blockIdx.y);
  const int64_t left = op.tokens() * shape.group - block.first_row;
  const int rows = left < kRows ? static_cast<int>(left) : kRows;
  const int64_t first = block.first_row / shape.group;
  const int64_t last = (block.first_row + rows - 1) / shape.group;
  const Keys keys = op.KeysOf(first, last, blockIdx.x - block.first_unit);
  const int begin = static_cast<int>(op.Visible(keys, first).begin);
  const int end = static_cast<int>(op.Visible(keys, last).end);
  if (begin >= end) return;  // of the whole block

  float* o = q + layout.o;
  float* weights = q + layout.weights;
  float* tile = q + layout.tile;
  float* shrink = q + layout.shrink;
  const int tid = threadIdx.x;
  const int key_dim = static_cast<int>(shape.key_dim);
  const int value_dim = static_cast<int>(shape.value_dim);
  const int q_stride = static_cast<int>(layout.q_stride);
  const int o_stride = static_cast<int>(layout.o_stride);

#pragma unroll 1
  for (int row = 0; row < kRows; ++row) {
    const int64_t at = block.first_row + row;
    const float* from = row < rows ? op.Query(keys, at / shape.group) +
                                         (kv_head * shape.group + at % shape.group) * shape.key_dim
                                   : nullptr;
#pragma unroll 1
    for (int c = tid; c < q_stride; c += kThreads) {
      q[row * q_stride + c] = from != nullptr && c < key_dim ? from[c] : 0.0f;
    }
#pragma unroll 1
    for (int c = tid; c < o_stride; c += kThreads) o[row * o_stride + c] = 0;
  }

  // Of the rows that this thread has in the softmax, in each of a row's lanes.
  constexpr int kPasses = (kRows + kRowsPerPass - 1) / kRowsPerPass;
  float largest[kPasses], total[kPasses];
  int seen_begin[kPasses], seen_end[kPasses];
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int row = pass * kRowsPerPass + tid / kLanesPerRow;
    largest[pass] = kNegativeInfinity;
    total[pass] = 0;
    seen_begin[pass] = seen_end[pass] = 0;
    if (row < rows) {
      const KeyRange seen = op.Visible(keys, (block.first_row + row) / shape.group);
      seen_begin[pass] = static_cast<int>(seen.begin);
      seen_end[pass] = static_cast<int>(seen.end);
    }
  }
  // What every row sees.
  const int all_begin = static_cast<int>(op.Visible(keys, last).begin);
  const int all_end = static_cast<int>(op.Visible(keys, first).end);

#pragma unroll 1
  for (int at = begin / kTile * kTile; at < end; at += kTile) {
    const int from = begin > at ? begin - at : 0;
    const int to = end - at < kTile ? end - at : kTile;

    float score[S::kRowsOfLane][S::kKeysOfLane] = {};
#pragma unroll 1
    for (int c = 0; c < key_dim; c += S::kChunk) {
      const int rest = key_dim - c;
      const int width = rest < S::kChunk ? rest : S::kChunk;
      __syncthreads();  // the tile was read
      LoadTile<kRows>(op, keys, kv_head, false, at, from, to, c, width, tile);
      __syncthreads();
      AddScores<kRows>(q + c, q_stride, tile, (width + 3) / 4 * 4, score);
    }
    const int lane = tid % kWarp;
#pragma unroll
    for (int i = 0; i < S::kRowsOfLane; ++i) {
#pragma unroll
      for (int j = 0; j < S::kKeysOfLane; ++j) {
        weights[(lane % S::kLanesOfRows + i * S::kLanesOfRows) * kWeightStride +
                tid / kWarp * (kTile / kWarps) + lane / S::kLanesOfRows + j * S::kLanesOfKeys] =
            shape.scale * score[i][j];
      }
    }
    __syncthreads();

#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int row = pass * kRowsPerPass + tid / kLanesPerRow;
      // Of the whole warp.
      if (pass * kRowsPerPass + tid / kWarp * (kWarp / kLanesPerRow) >= rows) continue;
      const int part = tid % kLanesPerRow;
      const int seen_from = seen_begin[pass] > at ? seen_begin[pass] - at : 0;
      const int seen_to = seen_end[pass] - at < kTile ? seen_end[pass] - at : kTile;
      float* weight = weights + row * kWeightStride;
      float x[kTile / kLanesPerRow];
      float m = largest[pass];
#pragma unroll
      for (int i = 0; i < kTile / kLanesPerRow; ++i) {
        const int j = part + i * kLanesPerRow;
        x[i] = weight[j];
        if (seen_from <= j && j < seen_to) m = fmaxf(m, x[i]);
      }
#pragma unroll
      for (int lanes = kLanesPerRow / 2; lanes > 0; lanes /= 2) {
        m = fmaxf(m, __shfl_xor_sync(kAllLanes, m, lanes));
      }
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kTile / kLanesPerRow; ++i) {
        const int j = part + i * kLanesPerRow;
        const bool seen = seen_from <= j && j < seen_to;
        const float e = expf(x[i] - m);
        weight[j] = seen ? e : kUnseen;
        sum += seen ? e : 0.0f;
      }
#pragma unroll
      for (int lanes = kLanesPerRow / 2; lanes > 0; lanes /= 2) {
        sum += __shfl_xor_sync(kAllLanes, sum, lanes);
      }
      float factor = 1;
      if (seen_from < seen_to) {
        factor = expf(largest[pass] - m);
        total[pass] = fmaf(total[pass], factor, sum);
        largest[pass] = m;
      }
      if (part == 0) shrink[row] = factor;
    }

    const bool masked = all_begin > at + from || all_end < at + to || from % 4 != 0 || to % 4 != 0;
#pragma unroll 1
    for (int c = 0; c < value_dim; c += S::kChunk) {
      const int rest = value_dim - c;
      const int width = rest < S::kChunk ? rest : S::kChunk;
      if (c > 0) __syncthreads();  // the tile was read; of keys it was before the softmax
      LoadTile<kRows>(op, keys, kv_head, true, at, from, to, c, width, tile);
      __syncthreads();
      if (masked) {
        AddValues<kRows, true>(weights, shrink, tile, rows, from, to, width, o_stride, o + c);
      } else {
        AddValues<kRows, false>(weights, shrink, tile, rows, from, to, width, o_stride, o + c);
      }
    }
  }

  // Each row's largest score and sum of weights where all threads find them.
  float* sums = weights;
  __syncthreads();  // the weights were read
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int row = pass * kRowsPerPass + tid / kLanesPerRow;
    if (row >= kRows || tid % kLanesPerRow != 0) continue;
    sums[2 * row] = largest[pass];
    sums[2 * row + 1] = total[pass];
  }
  __syncthreads();
  if (block.partials == 1) {
#pragma unroll 1
    for (int row = 0; row < rows; ++row) {
      const int64_t row_at = block.first_row + row;
      float* out =
          op.Out(row_at / shape.group) + (kv_head * shape.group + row_at % shape.group) * value_dim;
#pragma unroll 1
      for (int c = tid; c < value_dim; c += kThreads) {
        out[c] = o[row * o_stride + c] / sums[2 * row + 1];
      }
    }
    return;
  }
  float* unit = units + (int64_t{blockIdx.x} * shape.kv_heads + kv_head) * UnitFloats<kRows>(shape);
#pragma unroll 1
  for (int row = 0; row < rows; ++row) {
#pragma unroll 1
    for (int c = tid; c < value_dim; c += kThreads) {
      unit[row * value_dim + c] = o[row * o_stride + c];
    }
  }
  if (tid < 2 * rows) unit[kRows * value_dim + tid] = sums[tid];
}

// Merges the partials of a row in ascending order; a warp has a row, its lanes have channels.
template <int kRows, typename Op>
__device__ void Merge(const Op* ops, const RowBlock& block, const AttendShape& shape,
                      int64_t kv_head, int row, const float* units) {
  const Op& op = ops[block.op];
  const int64_t at = block.first_row + row;
  const int64_t end = op.tokens() * shape.group;
  if (block.partials == 1 || at >= end) return;
  const int64_t t = at / shape.group;
  const int64_t last_row = block.first_row + kRows < end ? block.first_row + kRows : end;
  const int64_t first = block.first_row / shape.group, last = (last_row - 1) / shape.group;
  float* out = op.Out(t) + (kv_head * shape.group + at % shape.group) * shape.value_dim;
  const int64_t unit_floats = UnitFloats<kRows>(shape);
  constexpr int kColumns = 4;
  for (int64_t channel = threadIdx.x % kWarp; channel < shape.value_dim;
       channel += kColumns * kWarp) {
    float m = kNegativeInfinity, l = 0, o[kColumns] = {};
    bool any = false;  // the first one is taken as it is
    for (int i = 0; i < block.partials; ++i) {
      const KeyRange seen = op.Visible(op.KeysOf(first, last, i), t);
      if (seen.begin >= seen.end) continue;
      const float* unit = units + ((block.first_unit + i) * shape.kv_heads + kv_head) * unit_floats;
      const float from_m = unit[kRows * shape.value_dim + 2 * row];
      const float from_l = unit[kRows * shape.value_dim + 2 * row + 1];
      const float new_m = fmaxf(m, from_m);
      const float a = expf(m - new_m), b = expf(from_m - new_m);
      l = any ? fmaf(a, l, b * from_l) : from_l;
      m = new_m;
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        const int64_t c = channel + k * kWarp;
        const float from = c < shape.value_dim ? unit[row * shape.value_dim + c] : 0.0f;
        o[k] = any ? fmaf(b, from, a * o[k]) : from;
      }
      any = true;
    }
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      const int64_t c = channel + k * kWarp;
      if (c < shape.value_dim) out[c] = o[k] / l;
    }
  }
}

// First `merges` blocks of rows to merge, a warp per row, then a block per token to keep.
template <int kRows, typename Op>
__global__ void __launch_bounds__(kThreads)
    FinishKernel(const Op* ops, const RowBlock* blocks, int64_t merges, AttendShape shape,
                 const float* units, int64_t longest) {
  const int64_t index = blockIdx.x;
  if (index < merges) {
    constexpr int kParts = kRows / kWarps;
    const int row = static_cast<int>(index % kParts * kWarps + threadIdx.x / kWarp);
    Merge<kRows>(ops, blocks[index / kParts / shape.kv_heads], shape,
                 index / kParts % shape.kv_heads, row, units);
    return;
  }
  if constexpr (Op::kKeeps) {
    const Op& op = ops[(index - merges) / longest];
    const int64_t t = (index - merges) % longest;
    if (t < op.tokens()) op.Keep(t);
  }
}

template <int kRows, typename Op>
void Run(CudaDevice& device, std::span<const Op> ops, const AttendShape& shape) {
  const int64_t unit_floats = UnitFloats<kRows>(shape) * shape.kv_heads;
  struct Piece {
    size_t first_block;
    int64_t units = 0;
    bool merges = false;
  };
  absl::InlinedVector<RowBlock, 16> blocks;
  absl::InlinedVector<Piece, 4> pieces;
  int64_t longest = 0;
  for (size_t i = 0; i < ops.size(); ++i) {
    longest = std::max(longest, ops[i].tokens());
    const int64_t rows = ops[i].tokens() * shape.group;
    for (int64_t row = 0; row < rows; row += kRows) {
      const int64_t last = std::min(rows, row + kRows) - 1;
      const int64_t partials = ops[i].Partials(row / shape.group, last / shape.group);
      if (pieces.empty() || (pieces.back().units + partials) * unit_floats > kMostUnitFloats) {
        pieces.push_back({blocks.size()});
      }
      Piece& piece = pieces.back();
      blocks.push_back({row, piece.units, static_cast<int32_t>(i), static_cast<int32_t>(partials)});
      piece.units += partials;
      piece.merges |= partials > 1;
    }
  }
  if (blocks.empty()) return;
  size_t room = Upload::Bytes<Op>(ops.size()) + Upload::Bytes<RowBlock>(blocks.size());
  if constexpr (requires(Op op, Upload & upload) { op.AddLists(upload); }) {
    for (const Op& op : ops) room += op.ListBytes();
  }
  Upload upload(device, room);
  const auto [host_ops, device_ops] = upload.Allocate<Op>(ops.size());
  for (size_t i = 0; i < ops.size(); ++i) {
    host_ops[i] = ops[i];
    if constexpr (requires { host_ops[i].AddLists(upload); }) host_ops[i].AddLists(upload);
  }
  const RowBlock* device_blocks = upload.Add(std::span<const RowBlock>(blocks));
  upload.Send();
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece& piece = pieces[i];
    const bool is_last = i + 1 == pieces.size();
    const int64_t count = (is_last ? blocks.size() : pieces[i + 1].first_block) - piece.first_block;
    auto* units = piece.merges
                      ? reinterpret_cast<float*>(device.Scratch(
                            CudaDevice::kScratchA, piece.units * unit_floats * sizeof(float)))
                      : nullptr;
    Launch(device, AttendKernel<kRows, Op>,
           dim3(static_cast<unsigned>(piece.units), static_cast<unsigned>(shape.kv_heads)),
           kThreads, SharedBytes<kRows, Op>(shape), device_ops, device_blocks + piece.first_block,
           count, shape, units);
    const int64_t merges = piece.merges ? count * shape.kv_heads * (kRows / kWarps) : 0;
    const int64_t kept =
        is_last && Op::kKeeps ? static_cast<int64_t>(ops.size()) * longest : int64_t{0};
    Launch(device, FinishKernel<kRows, Op>, static_cast<unsigned>(merges + kept), kThreads, 0,
           device_ops, device_blocks + piece.first_block, merges, shape,
           static_cast<const float*>(units), longest);
  }
}

}  // namespace attend

// Attention of all sequences, heads and queries. Sequences that decode and others have launches of
// their own.
template <typename Op>
void Attend(CudaDevice& device, std::span<const Op> ops, const AttendShape& shape) {
  OpList<Op> few, some, many;
  for (const Op& op : ops) {
    const int rows = RowsOfBlock(op.tokens() * shape.group);
    (rows == kFewRows ? few : rows == kSomeRows ? some : many).push_back(op);
  }
  attend::Run<kFewRows, Op>(device, few, shape);
  attend::Run<kSomeRows, Op>(device, some, shape);
  if (attend::SharedBytes<kManyRows, Op>(shape) <= device.properties().sharedMemPerBlockOptin) {
    attend::Run<kManyRows, Op>(device, many, shape);
  } else {
    attend::Run<kSomeRows, Op>(device, many, shape);
  }
}

}  // namespace mneme::engine::cuda
