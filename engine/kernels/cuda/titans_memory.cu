// The neural memory of Titans (titans_memory.h): one launch, a block per head of a sequence. A
// block goes through all rows of its head as TitansHead of titans_memory_plan.h does, in phases
// with a barrier behind each. In a product threads share out the columns and tiles of rows; in what
// is done to whole rows (norms, lengths, copies) a warp has a row.
//
// A sum over a matrix's rows is cut into segments of kSegment inputs, each a chain of its own,
// added in order: a call of few rows spreads the segments over threads, one of many does not, and
// both round alike.
#include "engine/kernels/cuda/activation.cuh"
#include "engine/kernels/cuda/cuda.h"
#include "engine/kernels/cuda/device.cuh"
#include "engine/kernels/cuda/launch.h"
#include "engine/kernels/titans_memory.h"
#include "engine/kernels/titans_memory_plan.h"

namespace mneme::engine::cuda {
namespace {

// ---- the rates

constexpr int kRatesThreads = 256;

__global__ void TitansRatesKernel(TitansRatesArgs args, int64_t n, float* z) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride) {
    const int64_t which = i / args.heads % 3;
    const float s = Sigmoid(z[i]);
    const float gate = fmaxf(0.0f, s - args.gate_floor) / (1 - args.gate_floor);
    if (which == 0) {
      z[i] = args.theta_max * gate;
    } else if (which == 1) {
      z[i] = args.eta_max * s;
    } else {
      z[i] = args.forget ? gate : 0.0f;
    }
  }
}

// ---- the memory

constexpr int kMostThreads = 256;
constexpr int kSegment = 32;  // part of what a product is
constexpr int kRows = 4;      // of a tile, where there are as many
// A warp's tile of a matrix on the way back, [kWarp, kTileColumns]: a column more keeps its lanes,
// which read rows, in different banks.
constexpr int kTileColumns = 16;
constexpr int kTilePitch = kTileColumns + 1;
constexpr int kSharedPerThread = kTilePitch;   // f32
static_assert(kSharedPerThread >= kRows * 4);  // a tile's sums

struct Layer {
  TitansMemoryShape memory;
  int64_t heads;
  int64_t chunk_tokens;
  float gradient_clip;
  const float* const* target;  // [depth]; null: zeros
  const float* gain;
};

struct Sequence {
  float* const* committed;  // [depth]
  float* const* momentum;
  float* const* running;
  float* pending_k;
  float* pending_v;
  float* pending_rates;
  int64_t position;
  int64_t rows;
  const float* q;
  const float* k;
  const float* v;
  const float* rates;
  float* y;
  float* worker;            // [H, worker_elements]
  int64_t worker_elements;  // a multiple of 4
};

__device__ __forceinline__ float Activated(TitansActivation f, float z) {
  switch (f) {
    case TitansActivation::kSilu:
      return Silu(z);
    case TitansActivation::kGeluTanh:
      return Apply(Activation::kGeluTanh, z);
    case TitansActivation::kGeluErf:
      return Apply(Activation::kGeluErf, z);
  }
  return z;
}

__device__ __forceinline__ float Slope(TitansActivation f, float z) {
  constexpr float kInverseSqrt2 = 0.70710678f, kInverseSqrt2Pi = 0.39894228f;
  constexpr float kSqrt2OverPi = 0.79788456f;
  switch (f) {
    case TitansActivation::kSilu: {
      const float s = Sigmoid(z);
      return s * fmaf(z, 1.0f - s, 1.0f);
    }
    case TitansActivation::kGeluTanh: {
      // Flat beyond; the square of what is left stays finite. A NaN stays one.
      const float x = z < -100.0f ? -100.0f : z > 100.0f ? 100.0f : z;
      const float t = tanhf(kSqrt2OverPi * (x + 0.044715f * x * x * x));
      const float bell = fmaf(-t, t, 1.0f) * kSqrt2OverPi * fmaf(0.134145f * x, x, 1.0f);
      return 0.5f * (fmaf(x, bell, 1.0f) + t);
    }
    case TitansActivation::kGeluErf:
      return fmaf(z * kInverseSqrt2Pi, expf(-0.5f * z * z), 0.5f * erfcf(-z * kInverseSqrt2));
  }
  return 1.0f;
}

__device__ __forceinline__ double WarpSum(double x) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}

// Neighbouring columns of a row; four of them lie at a multiple of 16 bytes.
template <int kColumns>
struct Columns {
  float at[kColumns] = {};
};
template <int kColumns>
__device__ __forceinline__ Columns<kColumns> Load(const float* from) {
  if constexpr (kColumns == 4) {
    const float4 v = *reinterpret_cast<const float4*>(from);
    return {{v.x, v.y, v.z, v.w}};
  } else {
    return {{*from}};
  }
}
template <int kColumns>
__device__ __forceinline__ void Store(const Columns<kColumns>& v, float* to) {
  if constexpr (kColumns == 4) {
    *reinterpret_cast<float4*>(to) = {v.at[0], v.at[1], v.at[2], v.at[3]};
  } else {
    *to = v.at[0];
  }
}

// One head of one sequence: what a block knows, and its phases. kColumns: of a thread in a product,
// 4 where all widths are multiples of it and everything is aligned, else 1; no bits depend on it.
// kTokenMode: the layer's.
template <int kColumns, bool kTokenMode>
class Head {
 public:
  __device__ __forceinline__ Head(const Layer& layer, const Sequence& sequence, int64_t head)
      : layer_(layer),
        shape_(layer.memory),
        args_(sequence),
        head_(head),
        worker_(sequence.worker + head * sequence.worker_elements) {}

  // Run by run: a run ends with its chunk, so that all of its rows see the same weights.
  __device__ __forceinline__ void Run() const {
    const int64_t b = layer_.chunk_tokens;
    int64_t count = 0;
#pragma unroll 1
    for (int64_t t = 0; t < args_.rows; t += count) {
      const int64_t slot = (args_.position + t) % b;
      count = std::min(args_.rows - t, b - slot);
      const bool ends = slot + count == b;
      const bool writes = args_.k != nullptr;
      if (!(kTokenMode && writes)) Read(t, count);
      if (!writes) continue;
      if constexpr (kTokenMode) {
        const Gradients gradients = Gradient({.pending = 0, .first = t, .count = count},
                                             worker_ + 2 * count * shape_.Widest());
        StepThrough(t, count, gradients);
        if (ends) CopyRunning();
      } else {
        Collect(t, slot, count);
        if (!ends) continue;
        const ChunkRows rows{.pending = slot, .first = t, .count = b};
        CommitChunk(rows, Gradient(rows, worker_));
      }
    }
  }

 private:
  using Gradients = TitansGradients;
  using Some = Columns<kColumns>;

  // Rows of a chunk: `pending` of them wait in the state, the others are the call's from `first`
  // on.
  struct ChunkRows {
    int64_t pending;
    int64_t first;
    int64_t count;  // all
  };

  // y[t] = x[t] W for rows [0, count).
  struct Multiply {
    TitansRows x;
    int64_t count;
    const float* weights;
    int64_t inputs;
    int64_t outputs;
    float* y;  // [count, outputs]
  };

  // kHeight rows of kColumns sums.
  template <int kHeight>
  struct Sums {
    Columns<kColumns> at[kHeight];

    // A partial sum into shared memory, and the one of a thread out of it.
    __device__ __forceinline__ void Share(float* shared) const {
#pragma unroll
      for (int r = 0; r < kHeight; ++r) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          shared[(r * kColumns + c) * blockDim.x + threadIdx.x] = at[r].at[c];
        }
      }
    }
    __device__ __forceinline__ void AddShared(const float* shared, int64_t thread) {
#pragma unroll
      for (int r = 0; r < kHeight; ++r) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          at[r].at[c] += shared[(r * kColumns + c) * blockDim.x + thread];
        }
      }
    }
    // The first `rows` rows.
    __device__ __forceinline__ void Store(float* to, int64_t stride, int64_t rows) const {
#pragma unroll
      for (int r = 0; r < kHeight; ++r) {
        if (r < rows) cuda::Store(at[r], to + r * stride);
      }
    }
    __device__ __forceinline__ void Add(const Sums& other) {
#pragma unroll
      for (int r = 0; r < kHeight; ++r) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) at[r].at[c] += other.at[r].at[c];
      }
    }
  };

  // ---- where things are

  __device__ __forceinline__ int warp() const { return static_cast<int>(threadIdx.x) / kWarp; }
  __device__ __forceinline__ int warps() const { return static_cast<int>(blockDim.x) / kWarp; }
  __device__ __forceinline__ int lane() const { return static_cast<int>(threadIdx.x) % kWarp; }

  template <typename T>
  __device__ __forceinline__ T* Matrix(T* const* matrices, int64_t l) const {
    return matrices[l] + head_ * shape_.Elements(l);
  }
  __device__ __forceinline__ const float* Target(int64_t l) const {
    return layer_.target == nullptr ? nullptr : Matrix(layer_.target, l);
  }
  __device__ __forceinline__ int64_t Stride() const { return layer_.heads * shape_.width; }
  // This head's part of row t of an array [.., H, e].
  template <typename T>
  __device__ __forceinline__ T* Row(T* array, int64_t t) const {
    return array + t * Stride() + head_ * shape_.width;
  }
  __device__ __forceinline__ const float* Key(const ChunkRows& rows, int64_t i) const {
    return i < rows.pending ? Row<const float>(args_.pending_k, i)
                            : Row(args_.k, rows.first + i - rows.pending);
  }
  __device__ __forceinline__ const float* Value(const ChunkRows& rows, int64_t i) const {
    return i < rows.pending ? Row<const float>(args_.pending_v, i)
                            : Row(args_.v, rows.first + i - rows.pending);
  }
  // theta, eta or alpha of a row.
  __device__ __forceinline__ float Rate(const ChunkRows& rows, int which, int64_t i) const {
    const float* of = i < rows.pending
                          ? args_.pending_rates + i * 3 * layer_.heads
                          : args_.rates + (rows.first + i - rows.pending) * 3 * layer_.heads;
    return of[which * layer_.heads + head_];
  }

  // ---- products

  // Of rows [t, t + kHeight), those behind the last one being it again, and of columns from j on:
  // the chain over the inputs from `first` on.
  template <int kHeight>
  __device__ __forceinline__ Sums<kHeight> Segment(const Multiply& m, int64_t t, int64_t first,
                                                   int64_t j) const {
    const float* x[kHeight];
#pragma unroll
    for (int r = 0; r < kHeight; ++r) {
      x[r] = m.x.data + std::min(t + r, m.count - 1) * m.x.stride + first;
    }
    const float* weights = m.weights + first * m.outputs + j;
    const int outputs = static_cast<int>(m.outputs);
    const int n = static_cast<int>(std::min<int64_t>(kSegment, m.inputs - first));
    Sums<kHeight> sum;
#pragma unroll(kHeight == 1 ? 8 : 4)
    for (int i = 0; i < n; ++i) {
      const Some w = Load<kColumns>(weights + i * outputs);
#pragma unroll
      for (int r = 0; r < kHeight; ++r) {
        const float factor = x[r][i];
#pragma unroll
        for (int c = 0; c < kColumns; ++c) sum.at[r].at[c] = fmaf(factor, w.at[c], sum.at[r].at[c]);
      }
    }
    return sum;
  }

  // Tiles of rows over the threads, each with all of its sums.
  template <int kHeight>
  __device__ __forceinline__ void ProductOfTiles(const Multiply& m) const {
    const int64_t groups = m.outputs / kColumns, tiles = (m.count + kHeight - 1) / kHeight;
#pragma unroll 1
    for (int64_t item = threadIdx.x; item < tiles * groups; item += blockDim.x) {
      const int64_t t = item / groups * kHeight, j = item % groups * kColumns;
      Sums<kHeight> sum;
#pragma unroll 1
      for (int64_t i = 0; i < m.inputs; i += kSegment) sum.Add(Segment<kHeight>(m, t, i, j));
      sum.Store(m.y + t * m.outputs + j, m.outputs, m.count - t);
    }
  }

  // Segments over the threads as well: at least two of each of the `items` sums at a time.
  __device__ __forceinline__ void ProductOfSegments(const Multiply& m, int items) const {
    float* shared = DynamicShared<float>();
    const int thread = static_cast<int>(threadIdx.x),
              groups = static_cast<int>(m.outputs / kColumns);
    const int at_once = static_cast<int>(blockDim.x) / items;
    const int item = thread % items, t = item / groups, j = item % groups * kColumns;
    const int mine = thread / items;
    const int64_t segments = (m.inputs + kSegment - 1) / kSegment;
    Sums<1> sum;
#pragma unroll 1
    for (int64_t first = 0; first < segments; first += at_once) {
      if (mine < at_once && first + mine < segments) {
        Segment<1>(m, t, (first + mine) * kSegment, j).Share(shared);
      }
      __syncthreads();
      const int there = static_cast<int>(std::min<int64_t>(at_once, segments - first));
      if (mine == 0) {
        for (int s = 0; s < there; ++s) sum.AddShared(shared, s * items + item);
      }
      __syncthreads();
    }
    if (mine == 0) sum.Store(m.y + t * m.outputs + j, m.outputs, 1);
  }

  __device__ __forceinline__ void Product(const Multiply& m) const {
    const int64_t items = m.count * (m.outputs / kColumns);
    if (m.inputs > kSegment && 2 * items <= blockDim.x) {
      ProductOfSegments(m, static_cast<int>(items));
    } else if (m.count < kRows) {
      ProductOfTiles<1>(m);
    } else {
      ProductOfTiles<kRows>(m);
    }
    __syncthreads();
  }

  // y = (x W^T) y elementwise; x [count, width], W [inputs, width], y [count, inputs]. A warp has
  // 32 of the inputs and kHeight rows, and turns the matrix round in shared memory, tile by tile.
  template <int kHeight>
  __device__ __forceinline__ void BackProduct(const float* x, int64_t count, const float* weights,
                                              int64_t inputs, int64_t width, float* y) const {
    float* tile = DynamicShared<float>() + warp() * (kWarp * kTilePitch);
    const int64_t groups = (inputs + kWarp - 1) / kWarp, tiles = (count + kHeight - 1) / kHeight;
    constexpr int kRowsAtOnce = kWarp / kTileColumns;
    const int row = lane() / kTileColumns, column = lane() % kTileColumns;
#pragma unroll 1
    for (int64_t item = warp(); item < tiles * groups; item += warps()) {
      const int64_t t = item / groups * kHeight, first = item % groups * kWarp;
      const float* from[kHeight];
#pragma unroll
      for (int r = 0; r < kHeight; ++r) from[r] = x + std::min(t + r, count - 1) * width;
      float sum[kHeight] = {};
#pragma unroll 1
      for (int64_t j = 0; j < width; j += kTileColumns) {
        __syncwarp();
#pragma unroll 8
        for (int i = 0; i < kWarp; i += kRowsAtOnce) {
          const bool inside = first + i + row < inputs && j + column < width;
          tile[(i + row) * kTilePitch + column] =
              inside ? weights[(first + i + row) * width + j + column] : 0.0f;
        }
        __syncwarp();
        const int n = static_cast<int>(std::min<int64_t>(kTileColumns, width - j));
#pragma unroll 4
        for (int c = 0; c < n; ++c) {
          const float w = tile[lane() * kTilePitch + c];
#pragma unroll
          for (int r = 0; r < kHeight; ++r) sum[r] = fmaf(from[r][j + c], w, sum[r]);
        }
      }
#pragma unroll
      for (int r = 0; r < kHeight; ++r) {
        if (t + r < count && first + lane() < inputs) {
          y[(t + r) * inputs + first + lane()] *= sum[r];
        }
      }
    }
    __syncthreads();
  }

  // To y the activation of z [n], to `slopes` its derivative unless that is null; either may be z.
  __device__ __forceinline__ void Activate(const float* z, int64_t n, float* y,
                                           float* slopes) const {
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
      const float x = z[i];
      y[i] = Activated(shape_.activation, x);
      if (slopes != nullptr) slopes[i] = Slope(shape_.activation, x);
    }
    __syncthreads();
  }

  // ---- rows, a warp each

  struct Moments {
    float mean = 0;
    float scale = 1;
  };
  // Of f, for its norm.
  __device__ __forceinline__ Moments RowMoments(const float* f) const {
    Moments moments;
    if (shape_.norm == TitansNorm::kNone) return moments;
    const auto width = static_cast<float>(shape_.width);
    if (shape_.norm == TitansNorm::kLayer) {
      float sum = 0;
      for (int64_t j = lane(); j < shape_.width; j += kWarp) sum += f[j];
      moments.mean = cuda::WarpSum(sum) / width;
    }
    float squares = 0;
    for (int64_t j = lane(); j < shape_.width; j += kWarp) {
      const float centred = f[j] - moments.mean;
      squares = fmaf(centred, centred, squares);
    }
    moments.scale = 1.0f / sqrtf(cuda::WarpSum(squares) / width + shape_.eps);
    return moments;
  }

  // One element of M's output, from f and x.
  __device__ __forceinline__ float Finished(const Moments& moments, const float* f, const float* x,
                                            int64_t j) const {
    float y = f[j];
    if (shape_.norm != TitansNorm::kNone) {
      y = (y - moments.mean) * moments.scale * layer_.gain[head_ * shape_.width + j];
    }
    return shape_.residual ? y + x[j] : y;
  }

  // M's answers to rows [t, t + count) of q, from f [count, e].
  __device__ __forceinline__ void Finish(const float* f, int64_t t, int64_t count) const {
#pragma unroll 1
    for (int64_t i = warp(); i < count; i += warps()) {
      const float* from = f + i * shape_.width;
      const float* x = Row(args_.q, t + i);
      float* y = Row(args_.y, t + i);
      const Moments moments = RowMoments(from);
      for (int64_t j = lane(); j < shape_.width; j += kWarp) y[j] = Finished(moments, from, x, j);
    }
    __syncthreads();
  }

  // f becomes the loss's gradient with respect to f.
  __device__ __forceinline__ void LastDelta(const float* k, const float* v, float* f) const {
    const int64_t e = shape_.width;
    const Moments moments = RowMoments(f);
    if (shape_.norm == TitansNorm::kNone) {
      for (int64_t j = lane(); j < e; j += kWarp) f[j] = Finished(moments, f, k, j) - v[j];
      return;
    }
    const auto normalized = [&](int64_t j) { return (f[j] - moments.mean) * moments.scale; };
    // The residual times the gain.
    const auto weighted = [&](int64_t j) {
      return (Finished(moments, f, k, j) - v[j]) * layer_.gain[head_ * e + j];
    };
    float sum = 0, along = 0;
    for (int64_t j = lane(); j < e; j += kWarp) {
      const float r = weighted(j);
      sum += r;
      along = fmaf(r, normalized(j), along);
    }
    const auto width = static_cast<float>(e);
    const float mean = shape_.norm == TitansNorm::kLayer ? cuda::WarpSum(sum) / width : 0.0f;
    along = cuda::WarpSum(along) / width;
    for (int64_t j = lane(); j < e; j += kWarp) {
      f[j] = moments.scale * fmaf(-normalized(j), along, weighted(j) - mean);
    }
  }

  // In double: the squares of finite f32 stay finite.
  __device__ __forceinline__ double SumOfSquares(const float* x, int64_t n) const {
    double sum = 0;
    for (int64_t i = lane(); i < n; i += kWarp) sum = fma(double{x[i]}, double{x[i]}, sum);
    return WarpSum(sum);
  }

  // ---- the parts of a run

  __device__ __forceinline__ void Read(int64_t t, int64_t count) const {
    float* const* weights = kTokenMode ? args_.running : args_.committed;
    TitansRows x{Row(args_.q, t), Stride()};
    float* y = worker_;
    float* spare = worker_ + count * shape_.Widest();
#pragma unroll 1
    for (int64_t l = 0; l < shape_.depth; ++l) {
      const int64_t outputs = shape_.Outputs(l);
      Product({.x = x,
               .count = count,
               .weights = Matrix(weights, l),
               .inputs = shape_.Inputs(l),
               .outputs = outputs,
               .y = y});
      if (l + 1 < shape_.depth) Activate(y, count * outputs, y, nullptr);
      x = {y, outputs};
      y = spare;
      spare = const_cast<float*>(x.data);
    }
    Finish(x.data, t, count);
  }

  // Rows into the chunk, except its last one.
  __device__ __forceinline__ void Collect(int64_t t, int64_t slot, int64_t count) const {
    const int64_t kept = std::min(count, layer_.chunk_tokens - 1 - slot);
#pragma unroll 1
    for (int64_t i = warp(); i < kept; i += warps()) {
      for (int64_t j = lane(); j < shape_.width; j += kWarp) {
        Row(args_.pending_k, slot + i)[j] = Row(args_.k, t + i)[j];
        Row(args_.pending_v, slot + i)[j] = Row(args_.v, t + i)[j];
      }
      if (lane() < 3) {
        const int64_t column = lane() * layer_.heads + head_;
        args_.pending_rates[(slot + i) * 3 * layer_.heads + column] =
            args_.rates[(t + i) * 3 * layer_.heads + column];
      }
    }
    __syncthreads();
  }

  // Of all rows, at the weights of the last commit, in `block`.
  __device__ __forceinline__ Gradients Gradient(const ChunkRows& rows, float* block) const {
    const Gradients out{block, rows.count};
    const int64_t last = shape_.depth - 1, e = shape_.width;
#pragma unroll 1
    for (int64_t t = warp(); t < rows.count; t += warps()) {
      const float* key = Key(rows, t);
      for (int64_t j = lane(); j < e; j += kWarp) out.Input(shape_, 0)[t * e + j] = key[j];
    }
    __syncthreads();
#pragma unroll 1
    for (int64_t l = 0; l <= last; ++l) {
      const int64_t outputs = shape_.Outputs(l);
      float* z = out.Delta(shape_, l);
      Product({.x = {out.Input(shape_, l), shape_.Inputs(l)},
               .count = rows.count,
               .weights = Matrix(args_.committed, l),
               .inputs = shape_.Inputs(l),
               .outputs = outputs,
               .y = z});
      // The activation goes on, its derivative waits where the way back will multiply it.
      if (l < last) Activate(z, rows.count * outputs, out.Input(shape_, l + 1), z);
    }
#pragma unroll 1
    for (int64_t t = warp(); t < rows.count; t += warps()) {
      LastDelta(Key(rows, t), Value(rows, t), out.Delta(shape_, last) + t * e);
    }
    __syncthreads();
#pragma unroll 1
    for (int64_t l = last - 1; l >= 0; --l) {
      const float* weights = Matrix(args_.committed, l + 1);
      const int64_t inputs = shape_.Inputs(l + 1), outputs = shape_.Outputs(l + 1);
      const float* above = out.Delta(shape_, l + 1);
      float* delta = out.Delta(shape_, l);
      if (rows.count < kRows) {
        BackProduct<1>(above, rows.count, weights, inputs, outputs, delta);
      } else {
        BackProduct<kRows>(above, rows.count, weights, inputs, outputs, delta);
      }
    }
#pragma unroll 1
    for (int64_t t = warp(); t < rows.count; t += warps()) {
      float scale = 1;
      if (layer_.gradient_clip > 0) {
        double squares = 0;
#pragma unroll 1
        for (int64_t l = 0; l < shape_.depth; ++l) {
          const int64_t inputs = shape_.Inputs(l), outputs = shape_.Outputs(l);
          squares += SumOfSquares(out.Input(shape_, l) + t * inputs, inputs) *
                     SumOfSquares(out.Delta(shape_, l) + t * outputs, outputs);
        }
        const double norm = sqrt(squares), clip = layer_.gradient_clip;
        if (norm > clip) scale = static_cast<float>(clip / norm);
      }
      if (lane() == 0) out.Scale(shape_)[t] = scale;
    }
    __syncthreads();
    return out;
  }

  // What the recurrences of S and W give after all rows, from the last one back, as the plan's
  // CommitChunk says: one warp, whose lanes have 32 rows at a time and all go through them.
  // rates: weight_rates [b], momentum_rates [b]; keep, carry, momentum_keep.
  __device__ __forceinline__ void Recurrences(const ChunkRows& rows, const float* scale,
                                              float* rates) const {
    const int64_t b = rows.count;
    float kept = 1, weight = 1, momentum = 1;
#pragma unroll 1
    for (int64_t above = b; above > 0; above -= kWarp) {
      const int n = static_cast<int>(std::min<int64_t>(kWarp, above));
      const int64_t j = above - 1 - lane();
      const bool inside = lane() < n;
      const float theta = inside ? Rate(rows, 0, j) * scale[j] : 0.0f;
      const float eta = inside ? Rate(rows, 1, j) : 0.0f;
      const float alpha = inside ? Rate(rows, 2, j) : 0.0f;
      float my_weight = 0, my_momentum = 0;
#pragma unroll 1
      for (int i = 0; i < n; ++i) {
        if (lane() == i) {
          my_weight = weight;
          my_momentum = momentum;
        }
        // From this row to what was there before it.
        const float e = __shfl_sync(kAllLanes, eta, i);
        momentum *= e;
        weight *= e;
        kept *= 1 - __shfl_sync(kAllLanes, alpha, i);
        if (above - 1 - i > 0) weight += kept;
      }
      if (inside) {
        rates[j] = theta * my_weight;
        rates[b + j] = theta * my_momentum;
      }
    }
    if (lane() == 0) {
      rates[2 * b] = kept;
      rates[2 * b + 1] = weight;
      rates[2 * b + 2] = momentum;
    }
  }

  // A thread has kRows rows and kColumns columns of a matrix.
  __device__ __forceinline__ void Commit(const TitansCommit& args) const {
    const int64_t groups = args.outputs / kColumns, tiles = (args.inputs + kRows - 1) / kRows;
#pragma unroll 1
    for (int64_t item = threadIdx.x; item < tiles * groups; item += blockDim.x) {
      const int64_t i = item / groups * kRows, j = item % groups * kColumns;
      Some weight[kRows], momentum[kRows];
      int64_t row[kRows];
#pragma unroll
      for (int a = 0; a < kRows; ++a) {
        row[a] = std::min(i + a, args.inputs - 1);
        const int64_t at = row[a] * args.outputs + j;
        const Some w = Load<kColumns>(args.weights + at), s = Load<kColumns>(args.momentum + at);
        Some target;
        if (args.target != nullptr) target = Load<kColumns>(args.target + at);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const float decayed =
              args.keep == 0 ? target.at[c] : fmaf(1 - args.keep, target.at[c] - w.at[c], w.at[c]);
          weight[a].at[c] = fmaf(args.carry, s.at[c], decayed);
          momentum[a].at[c] = args.momentum_keep * s.at[c];
        }
      }
#pragma unroll 2
      for (int64_t t = 0; t < args.rows; ++t) {
        const Some delta = Load<kColumns>(args.delta + t * args.outputs + j);
        const float weight_rate = args.weight_rates[t], momentum_rate = args.momentum_rates[t];
#pragma unroll
        for (int a = 0; a < kRows; ++a) {
          const float input = args.input[t * args.inputs + row[a]];
          const float by_weight = weight_rate * input, by_momentum = momentum_rate * input;
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            weight[a].at[c] = fmaf(-by_weight, delta.at[c], weight[a].at[c]);
            momentum[a].at[c] = fmaf(-by_momentum, delta.at[c], momentum[a].at[c]);
          }
        }
      }
#pragma unroll
      for (int a = 0; a < kRows; ++a) {
        if (i + a >= args.inputs) continue;
        Store(weight[a], args.weights + row[a] * args.outputs + j);
        Store(momentum[a], args.momentum + row[a] * args.outputs + j);
      }
    }
  }

  __device__ __forceinline__ void CommitChunk(const ChunkRows& rows,
                                              const Gradients& gradients) const {
    const int64_t b = rows.count;
    float* rates = gradients.Scale(shape_) + b;
    if (warp() == 0) Recurrences(rows, gradients.Scale(shape_), rates);
    __syncthreads();
#pragma unroll 1
    for (int64_t l = 0; l < shape_.depth; ++l) {
      Commit({.inputs = shape_.Inputs(l),
              .outputs = shape_.Outputs(l),
              .rows = b,
              .input = gradients.Input(shape_, l),
              .delta = gradients.Delta(shape_, l),
              .weight_rates = rates,
              .momentum_rates = rates + b,
              .keep = rates[2 * b],
              .carry = rates[2 * b + 1],
              .momentum_keep = rates[2 * b + 2],
              .target = Target(l),
              .weights = Matrix(args_.committed, l),
              .momentum = Matrix(args_.momentum, l)});
    }
    __syncthreads();
  }

  // Rows [t, t + kHeight) through one segment of a matrix, columns from j on: updates it row by row
  // and returns what the segment adds to each row's product.
  template <int kHeight>
  __device__ __forceinline__ Sums<kHeight> StepSegment(const TitansSteps& args, int64_t t,
                                                       int64_t first, int64_t j) const {
    Some delta[kHeight];
    float theta[kHeight], eta[kHeight], alpha[kHeight];
#pragma unroll
    for (int r = 0; r < kHeight; ++r) {
      delta[r] = Load<kColumns>(args.delta + (t + r) * args.outputs + j);
      theta[r] = args.theta[t + r];
      eta[r] = args.eta[t + r];
      alpha[r] = args.alpha[t + r];
    }
    const int n = static_cast<int>(std::min<int64_t>(kSegment, args.inputs - first));
    const float* input = args.input + t * args.inputs + first;
    const float* x = args.x.data + t * args.x.stride + first;
    const int inputs = static_cast<int>(args.inputs), outputs = static_cast<int>(args.outputs);
    const int x_stride = static_cast<int>(args.x.stride);
    const int64_t from = first * args.outputs + j;
    float* weights = args.weights + from;
    float* momenta = args.momentum + from;
    const float* targets = args.target == nullptr ? nullptr : args.target + from;
    Sums<kHeight> sum;
    // A lone row's elements are read some inputs ahead, before the first of them is written: what
    // is stored might be what is read next, for all the compiler knows.
    constexpr int kAhead = kHeight == 1 ? 4 : 1;
#pragma unroll 1
    for (int i = 0; i < n; i += kAhead) {
      Some w[kAhead], s[kAhead], target[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (i + a >= n) continue;
        const int at = (i + a) * outputs;
        w[a] = Load<kColumns>(weights + at);
        s[a] = Load<kColumns>(momenta + at);
        if (targets != nullptr) target[a] = Load<kColumns>(targets + at);
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (i + a >= n) continue;
#pragma unroll
        for (int r = 0; r < kHeight; ++r) {
          const float rate = theta[r] * input[r * inputs + i + a];
          const float factor = x[r * x_stride + i + a];
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            float& weight = w[a].at[c];
            float& momentum = s[a].at[c];
            momentum = fmaf(-rate, delta[r].at[c], eta[r] * momentum);
            weight = fmaf(alpha[r], target[a].at[c] - weight, weight) + momentum;
            sum.at[r].at[c] = fmaf(factor, weight, sum.at[r].at[c]);
          }
        }
        Store(w[a], weights + (i + a) * outputs);
        Store(s[a], momenta + (i + a) * outputs);
      }
    }
    return sum;
  }

  // Rows [t, t + kHeight) through a whole matrix, whose every element is one thread's in all calls.
  template <int kHeight>
  __device__ __forceinline__ void StepRows(const TitansSteps& args, int64_t t) const {
    float* shared = DynamicShared<float>();
    const int64_t groups = args.outputs / kColumns;
    const int64_t segments = (args.inputs + kSegment - 1) / kSegment;
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll 1
    for (int64_t base = 0; base < groups; base += blockDim.x) {
      const int items = static_cast<int>(std::min<int64_t>(groups - base, blockDim.x));
      const int at_once = static_cast<int>(blockDim.x) / items;
      const int item = thread % items, mine = thread / items;
      const int64_t j = (base + item) * kColumns;
      Sums<kHeight> sum;
#pragma unroll 1
      for (int64_t first = 0; first < segments; first += at_once) {
        if (mine < at_once && first + mine < segments) {
          StepSegment<kHeight>(args, t, (first + mine) * kSegment, j).Share(shared);
        }
        __syncthreads();
        const int there = static_cast<int>(std::min<int64_t>(at_once, segments - first));
        if (mine == 0) {
          for (int s = 0; s < there; ++s) sum.AddShared(shared, s * items + item);
        }
        __syncthreads();
      }
      if (mine == 0) sum.Store(args.y + t * args.outputs + j, args.outputs, kHeight);
    }
  }

  // Token mode: the updates of a run, row by row, matrix by matrix, each row's query multiplied as
  // soon as its weights are there.
  __device__ __forceinline__ void StepThrough(int64_t t, int64_t count,
                                              const Gradients& gradients) const {
    const float* scale = gradients.Scale(shape_);
    float* theta = gradients.Scale(shape_) + count;  // [3, count]
    const ChunkRows rows{.pending = 0, .first = t, .count = count};
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
      theta[i] = Rate(rows, 0, i) * scale[i];
      theta[count + i] = Rate(rows, 1, i);
      theta[2 * count + i] = Rate(rows, 2, i);
    }
    __syncthreads();
    TitansRows x{Row(args_.q, t), Stride()};
    float* y = worker_;
    float* spare = worker_ + count * shape_.Widest();
#pragma unroll 1
    for (int64_t l = 0; l < shape_.depth; ++l) {
      const int64_t inputs = shape_.Inputs(l), outputs = shape_.Outputs(l);
      const TitansSteps steps{.inputs = inputs,
                              .outputs = outputs,
                              .rows = count,
                              .input = gradients.Input(shape_, l),
                              .delta = gradients.Delta(shape_, l),
                              .theta = theta,
                              .eta = theta + count,
                              .alpha = theta + 2 * count,
                              .target = Target(l),
                              .weights = Matrix(args_.running, l),
                              .momentum = Matrix(args_.momentum, l),
                              .x = x,
                              .y = y};
      int64_t i = 0;
      for (; i + kRows <= count; i += kRows) StepRows<kRows>(steps, i);
      for (; i < count; ++i) StepRows<1>(steps, i);
      __syncthreads();
      if (l + 1 < shape_.depth) Activate(y, count * outputs, y, nullptr);
      x = {y, outputs};
      y = spare;
      spare = const_cast<float*>(x.data);
    }
    Finish(x.data, t, count);
  }

  __device__ __forceinline__ void CopyRunning() const {
#pragma unroll 1
    for (int64_t l = 0; l < shape_.depth; ++l) {
      const float* from = Matrix(args_.running, l);
      float* to = Matrix(args_.committed, l);
      for (int64_t i = threadIdx.x; i < shape_.Elements(l); i += blockDim.x) to[i] = from[i];
    }
    __syncthreads();
  }

  const Layer& layer_;
  const TitansMemoryShape& shape_;
  const Sequence& args_;
  const int64_t head_;
  float* const worker_;
};

// Block sequence * H + head.
template <int kColumns, bool kTokenMode>
__global__ void __launch_bounds__(kMostThreads, 1)
    TitansMemoryKernel(Layer layer, const Sequence* batch) {
  const Sequence& sequence = batch[blockIdx.x / layer.heads];
  Head<kColumns, kTokenMode>(layer, sequence, blockIdx.x % layer.heads).Run();
}

// ---- launching

// f32 of a block, as TitansHead::WorkerElements but for what is only scratch of its Commit.
int64_t WorkerElements(const TitansMemoryLayer& layer, const TitansMemoryArgs& args) {
  const TitansMemoryShape& shape = layer.memory;
  const int64_t b = layer.chunk_tokens, count = std::min(args.rows, b);
  int64_t elements = 2 * count * shape.Widest();
  if (args.k != nullptr && layer.token_mode) {
    elements += TitansGradients::Elements(shape, count) + 3 * count;
  } else if (args.k != nullptr && args.position % b + args.rows >= b) {
    elements = std::max(elements, TitansGradients::Elements(shape, b) + 2 * b + 3);
  }
  return (elements + 3) / 4 * 4;
}

// A thread for every 32 elements of the largest matrix, in a power of two.
unsigned Threads(const TitansMemoryShape& shape) {
  int64_t elements = 0;
  for (int64_t l = 0; l < shape.depth; ++l) elements = std::max(elements, shape.Elements(l));
  unsigned threads = 2 * kWarp;
  while (threads < kMostThreads && threads * 32 < elements) threads *= 2;
  return threads;
}

bool Aligned(std::span<const float* const> matrices) {
  return std::all_of(matrices.begin(), matrices.end(), [](const float* matrix) {
    return reinterpret_cast<uintptr_t>(matrix) % sizeof(float4) == 0;
  });
}

// Whether four columns may be read at a time.
bool InFours(const TitansMemoryLayer& layer, std::span<const TitansMemoryArgs> batch) {
  const TitansMemoryShape& shape = layer.memory;
  if (shape.width % 4 != 0 || (shape.depth > 1 && shape.hidden % 4 != 0)) return false;
  return Aligned(layer.target) &&
         std::all_of(batch.begin(), batch.end(), [](const TitansMemoryArgs& args) {
           return Aligned(args.committed) && Aligned(args.momentum) && Aligned(args.running);
         });
}

}  // namespace

void TitansRates(Exec& exec, const TitansRatesArgs& args, int64_t T, float* z) {
  const int64_t n = T * 3 * args.heads;
  const unsigned grid = static_cast<unsigned>(std::min<int64_t>(Blocks(n, kRatesThreads), 4096));
  Launch(Cuda(exec), TitansRatesKernel, grid, kRatesThreads, 0, args, n, z);
}

void TitansMemory(Exec& exec, const TitansMemoryLayer& layer,
                  std::span<const TitansMemoryArgs> batch) {
  if (batch.empty()) return;
  CudaDevice& device = Cuda(exec);
  int64_t elements = 0;
  for (const TitansMemoryArgs& args : batch) elements += layer.heads * WorkerElements(layer, args);
  auto* worker = reinterpret_cast<float*>(
      device.Scratch(CudaDevice::kScratchA, std::max<int64_t>(elements, 1) * sizeof(float)));

  const size_t depth = layer.memory.depth;
  Upload upload(device, Upload::Bytes<Sequence>(batch.size()) +
                            (1 + 3 * batch.size()) * Upload::Bytes<float*>(depth));
  const auto add = [&](const auto& matrices) { return upload.Add(std::span(matrices)); };
  const auto sequences = upload.Allocate<Sequence>(batch.size());
  for (size_t i = 0; i < batch.size(); ++i) {
    const TitansMemoryArgs& args = batch[i];
    const int64_t worker_elements = WorkerElements(layer, args);
    sequences.host[i] = {.committed = add(args.committed),
                         .momentum = add(args.momentum),
                         .running = add(args.running),
                         .pending_k = args.pending_k,
                         .pending_v = args.pending_v,
                         .pending_rates = args.pending_rates,
                         .position = args.position,
                         .rows = args.rows,
                         .q = args.q,
                         .k = args.k,
                         .v = args.v,
                         .rates = args.rates,
                         .y = args.y,
                         .worker = worker,
                         .worker_elements = worker_elements};
    worker += layer.heads * worker_elements;
  }
  const Layer shared{.memory = layer.memory,
                     .heads = layer.heads,
                     .chunk_tokens = layer.chunk_tokens,
                     .gradient_clip = layer.gradient_clip,
                     .target = layer.target.empty() ? nullptr : add(layer.target),
                     .gain = layer.gain};
  upload.Send();

  const unsigned threads = Threads(layer.memory);
  const auto launch = [&](auto* kernel) {
    Launch(device, kernel, static_cast<unsigned>(batch.size() * layer.heads), threads,
           threads * kSharedPerThread * sizeof(float), shared,
           static_cast<const Sequence*>(sequences.device));
  };
  if (InFours(layer, batch)) {
    launch(layer.token_mode ? TitansMemoryKernel<4, true> : TitansMemoryKernel<4, false>);
  } else {
    launch(layer.token_mode ? TitansMemoryKernel<1, true> : TitansMemoryKernel<1, false>);
  }
}

}  // namespace mneme::engine::cuda
