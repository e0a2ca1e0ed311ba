// The recurrent memories of RWKV (wkv.h).
//
// RWKV-4: a thread per channel. RWKV-5 to 7: a matrix's rows are independent, and a block has
// some rows of one head: each row is held by a few neighbouring lanes, in registers, from the first
// token to the last; the vectors of the tokens pass through shared memory, those of the next tokens
// on their way while the present ones are used. A row's sums are over a lane's elements first, then
// over its lanes; how many lanes there are is a matter of the head's size alone.
#include "engine/kernels/cuda/activation.cuh"
#include "engine/kernels/cuda/cuda.h"
#include "engine/kernels/cuda/device.cuh"
#include "engine/kernels/cuda/launch.h"
#include "engine/kernels/cuda/quad.cuh"

namespace mneme::engine::cuda {
namespace {

// ---- RWKV-4

constexpr int kWkv4Threads = 64;
constexpr int kWkv4Tokens = 8;  // loaded at a time: what hides the latency of memory

struct KeysAndValues {
  float k[kWkv4Tokens], v[kWkv4Tokens];

  __device__ __forceinline__ void Load(const Wkv4Args& args, int64_t first, int64_t c) {
#pragma unroll
    for (int i = 0; i < kWkv4Tokens; ++i) {
      const bool exists = first + i < args.T;
      k[i] = exists ? args.k[(first + i) * args.C + c] : 0;
      v[i] = exists ? args.v[(first + i) * args.C + c] : 0;
    }
  }
};

// Block (channels, sequence).
__global__ void Wkv4Kernel(const __grid_constant__ List<Wkv4Args> batch) {
  const Wkv4Args args = batch[blockIdx.y];
  const int64_t c = int64_t{blockIdx.x} * kWkv4Threads + threadIdx.x;
  if (c >= args.C) return;
  float a = args.numerator[c], b = args.denominator[c], p = args.exponent[c];
  const float decay = args.decay[c], bonus = args.bonus[c];
  KeysAndValues now, next;
  now.Load(args, 0, c);
  for (int64_t first = 0; first < args.T; first += kWkv4Tokens) {
    // Before the outputs, which may take the place of the present keys or values.
    next.Load(args, first + kWkv4Tokens, c);
#pragma unroll
    for (int i = 0; i < kWkv4Tokens; ++i) {
      if (first + i >= args.T) break;
      const float k = now.k[i], v = now.v[i];
      const float with_bonus = bonus + k;
      float q = fmaxf(p, with_bonus);
      float old_weight = expf(p - q), new_weight = expf(with_bonus - q);
      args.y[(first + i) * args.C + c] =
          fmaf(old_weight, a, new_weight * v) / fmaf(old_weight, b, new_weight);
      const float faded = p + decay;
      q = fmaxf(faded, k);
      old_weight = expf(faded - q);
      new_weight = expf(k - q);
      a = fmaf(old_weight, a, new_weight * v);
      b = fmaf(old_weight, b, new_weight);
      p = q;
    }
    now = next;
  }
  args.numerator[c] = a;
  args.denominator[c] = b;
  args.exponent[c] = p;
}

// ---- RWKV-5 to 7

constexpr int kThreads = kScanThreads;
// Of a multiprocessor, at least. Heads that do not fill their rows need more registers.
constexpr int Residents(bool whole) { return whole ? 4 : 3; }
constexpr int kQuads = 4;  // of a lane

// kLanes lanes hold a row of up to kWidth elements, a lane the quads lane, lane + kLanes and so on.
template <int kLanes>
struct Tile {
  static constexpr int kWidth = kLanes * kQuads * 4;
  static constexpr int kRows = kThreads / kLanes;                // of a block
  static constexpr int kTokens = kLanes < 16 ? 16 / kLanes : 1;  // in shared memory at a time
  static constexpr int kLoads = kTokens * kWidth / kThreads;     // of a thread, per vector
  static_assert(kLoads * kThreads == kTokens * kWidth && kWidth % kRows == 0);
};

// A head's part of one of the arrays of tokens.
struct HeadVectors {
  const float* first;  // token 0's
  int64_t stride;
};

// kVectors vectors of kTokens tokens in each of two buffers in shared memory. Elements that a head
// or a sequence does not have are zeros.
template <int kVectors, int kLanes>
class TokenStage {
 public:
  using Sizes = Tile<kLanes>;
  static constexpr size_t kBuffer = size_t{kVectors} * Sizes::kTokens * Sizes::kWidth;
  static constexpr size_t kSharedBytes = 2 * kBuffer * sizeof(float);

  // Reads tokens from `token` on.
  __device__ __forceinline__ void Fetch(const HeadVectors (&vectors)[kVectors], int64_t token,
                                        int64_t T, int N) {
#pragma unroll
    for (int i = 0; i < Sizes::kLoads; ++i) {
      const int place = i * kThreads + static_cast<int>(threadIdx.x);
      const int64_t t = token + place / Sizes::kWidth;
      const int j = place % Sizes::kWidth;
      const bool exists = t < T && j < N;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        fetched_[v][i] = exists ? vectors[v].first[t * vectors[v].stride + j] : 0;
      }
    }
  }

  // Puts them into a buffer that no thread reads.
  __device__ __forceinline__ void Put(int buffer) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
#pragma unroll
      for (int i = 0; i < Sizes::kLoads; ++i) {
        Vector(buffer, v, 0)[i * kThreads + threadIdx.x] = fetched_[v][i];
      }
    }
  }

  __device__ __forceinline__ float* Vector(int buffer, int vector, int token) const {
    return DynamicShared<float>() + buffer * kBuffer +
           (vector * Sizes::kTokens + token) * Sizes::kWidth;
  }

 private:
  float fetched_[kVectors][Sizes::kLoads];
};

// A lane's part of a row. kWhole: rows have all the elements that there is room for.
template <int kLanes, bool kWhole>
struct RowPart {
  Quad quads[kQuads];

  // The first element of quad m.
  static __device__ __forceinline__ int Place(int m) {
    return 4 * (m * kLanes + static_cast<int>(threadIdx.x) % kLanes);
  }
  // Also of vectors; of rows that do not exist, zeros.
  __device__ __forceinline__ void Load(const float* row, int N, bool exists, bool aligned) {
#pragma unroll
    for (int m = 0; m < kQuads; ++m) {
      quads[m] = LoadQuad(row + Place(m), exists ? N - Place(m) : 0, aligned);
    }
  }
  __device__ __forceinline__ void Store(float* row, int N, bool exists, bool aligned) const {
#pragma unroll
    for (int m = 0; m < kQuads; ++m) {
      StoreQuad(quads[m], row + Place(m), exists ? N - Place(m) : 0, aligned);
    }
  }
  // Elements beyond a row's end stay 0, whatever an infinity would make of them.
  static __device__ __forceinline__ bool Has(int m, int i, int N) {
    return kWhole || Place(m) + i < N;
  }
};

__device__ __forceinline__ float SumOfQuad(const Quad& x) {
  return (x.at[0] + x.at[1]) + (x.at[2] + x.at[3]);
}

// Over the lanes of each row, in all of them.
template <int kLanes>
__device__ __forceinline__ float RowSum(float x) {
#pragma unroll
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}

// What a block has of a matrix.
template <int kLanes>
struct BlockRows {
  int64_t head = blockIdx.y;
  int row = static_cast<int>(blockIdx.x * Tile<kLanes>::kRows + threadIdx.x / kLanes);
  bool writes = threadIdx.x % kLanes == 0;  // the row's output
};

// Block (rows, head, sequence).
template <int kLanes, bool kWhole>
__global__ void __launch_bounds__(kThreads, Residents(kWhole))
    Wkv6Kernel(const __grid_constant__ List<Wkv6Args> batch) {
  using Sizes = Tile<kLanes>;
  using Part = RowPart<kLanes, kWhole>;
  enum Vectors { kR, kK, kV, kDecay, kVectors };
  const Wkv6Args args = batch[blockIdx.z];
  const int N = static_cast<int>(args.head_size);
  const BlockRows<kLanes> mine;
  const int64_t C = args.heads * N, head = mine.head * N, T = args.T;
  const bool exists = mine.row < N;
  float* row = args.state + (head + mine.row) * N;
  const bool aligned = QuadsAreAligned(args.state, N);
  Part state, bonus;
  state.Load(row, N, exists, aligned);
  bonus.Load(args.bonus + head, N, true, QuadsAreAligned(args.bonus, N));
  const HeadVectors vectors[kVectors] = {{args.r + head, C},
                                         {args.k + head, C},
                                         {args.v + head, C},
                                         {args.decay + head, args.decay_stride}};
  TokenStage<kVectors, kLanes> stage;
  stage.Fetch(vectors, 0, T, N);
  stage.Put(0);
  __syncthreads();
  int buffer = 0;
  for (int64_t first = 0; first < T; first += Sizes::kTokens, buffer ^= 1) {
    const bool more = first + Sizes::kTokens < T;
    if (more) stage.Fetch(vectors, first + Sizes::kTokens, T, N);
#pragma unroll
    for (int token = 0; token < Sizes::kTokens; ++token) {
      if (first + token >= T) break;
      const float value = stage.Vector(buffer, kV, token)[mine.row];
      Quad outputs{}, bonuses{};
#pragma unroll
      for (int m = 0; m < kQuads; ++m) {
        const Quad r = LoadQuad(stage.Vector(buffer, kR, token) + Part::Place(m));
        const Quad k = LoadQuad(stage.Vector(buffer, kK, token) + Part::Place(m));
        const Quad decay = LoadQuad(stage.Vector(buffer, kDecay, token) + Part::Place(m));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& s = state.quads[m].at[i];
          outputs.at[i] = fmaf(s, r.at[i], outputs.at[i]);
          bonuses.at[i] = fmaf(bonus.quads[m].at[i] * k.at[i], r.at[i], bonuses.at[i]);
          if (Part::Has(m, i, N)) s = fmaf(value, k.at[i], decay.at[i] * s);
        }
      }
      const float output = RowSum<kLanes>(SumOfQuad(outputs));
      const float now = RowSum<kLanes>(SumOfQuad(bonuses));
      if (exists && mine.writes) {
        args.y[(first + token) * C + head + mine.row] = fmaf(value, now, output);
      }
    }
    if (more) stage.Put(buffer ^ 1);
    __syncthreads();
  }
  state.Store(row, N, exists, aligned);
}

template <int kLanes, bool kWhole>
__global__ void __launch_bounds__(kThreads, Residents(kWhole))
    Wkv7Kernel(const __grid_constant__ List<Wkv7Args> batch) {
  using Sizes = Tile<kLanes>;
  using Part = RowPart<kLanes, kWhole>;
  enum Vectors { kR, kDecay, kK, kV, kKappa, kB, kVectors };
  const Wkv7Args args = batch[blockIdx.z];
  const int N = static_cast<int>(args.head_size);
  const BlockRows<kLanes> mine;
  const int64_t C = args.heads * N, head = mine.head * N, T = args.T;
  const bool exists = mine.row < N;
  float* row = args.state + (head + mine.row) * N;
  const bool aligned = QuadsAreAligned(args.state, N);
  Part state;
  state.Load(row, N, exists, aligned);
  const HeadVectors vectors[kVectors] = {{args.r + head, C},     {args.decay + head, C},
                                         {args.k + head, C},     {args.v + head, C},
                                         {args.kappa + head, C}, {args.b + head, C}};
  TokenStage<kVectors, kLanes> stage;
  stage.Fetch(vectors, 0, T, N);
  stage.Put(0);
  __syncthreads();
  // A lane's part of the output of the token before: summed over the lanes along with the next
  // token's s, which the state waits for.
  float output = 0;
  const auto write = [&](int64_t t, float y) {
    if (exists && mine.writes) args.y[t * C + head + mine.row] = y;
  };
  int buffer = 0;
  for (int64_t first = 0; first < T; first += Sizes::kTokens, buffer ^= 1) {
    const bool more = first + Sizes::kTokens < T;
    if (more) stage.Fetch(vectors, first + Sizes::kTokens, T, N);
#pragma unroll
    for (int token = 0; token < Sizes::kTokens; ++token) {
      const int64_t t = first + token;
      if (t >= T) break;
      Quad removed{};
#pragma unroll
      for (int m = 0; m < kQuads; ++m) {
        const Quad kappa = LoadQuad(stage.Vector(buffer, kKappa, token) + Part::Place(m));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          removed.at[i] = fmaf(state.quads[m].at[i], kappa.at[i], removed.at[i]);
        }
      }
      const float s = -RowSum<kLanes>(SumOfQuad(removed));
      const float before = RowSum<kLanes>(output);
      if (t > 0) write(t - 1, before);
      const float value = stage.Vector(buffer, kV, token)[mine.row];
      Quad outputs{};
#pragma unroll
      for (int m = 0; m < kQuads; ++m) {
        const Quad decay = LoadQuad(stage.Vector(buffer, kDecay, token) + Part::Place(m));
        const Quad b = LoadQuad(stage.Vector(buffer, kB, token) + Part::Place(m));
        const Quad k = LoadQuad(stage.Vector(buffer, kK, token) + Part::Place(m));
        const Quad r = LoadQuad(stage.Vector(buffer, kR, token) + Part::Place(m));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& x = state.quads[m].at[i];
          if (Part::Has(m, i, N)) {
            x = fmaf(value, k.at[i], fmaf(s, b.at[i], decay.at[i] * x));
          }
          outputs.at[i] = fmaf(x, r.at[i], outputs.at[i]);
        }
      }
      output = SumOfQuad(outputs);
    }
    if (more) stage.Put(buffer ^ 1);
    __syncthreads();
  }
  output = RowSum<kLanes>(output);
  if (T > 0) write(T - 1, output);
  state.Store(row, N, exists, aligned);
}

// Launches `Kernels::Of<kLanes, kWhole>()` for the batch's heads, which are all of one size.
template <typename Kernels, int kLanes, bool kWhole, typename Args>
void LaunchTiles(CudaDevice& device, std::span<const Args> batch) {
  const Args& args = batch[0];
  const dim3 grid(Blocks(args.head_size, Tile<kLanes>::kRows), static_cast<unsigned>(args.heads),
                  static_cast<unsigned>(batch.size()));
  Launch(device, Kernels::template Of<kLanes, kWhole>(), grid, kThreads,
         TokenStage<Kernels::kVectors, kLanes>::kSharedBytes, ListOf(device, batch));
}

template <typename Kernels, typename Args>
void LaunchScan(Exec& exec, std::span<const Args> batch) {
  if (batch.empty()) return;
  CudaDevice& device = Cuda(exec);
  const int64_t N = batch[0].head_size;
  if (N > Tile<32>::kWidth) {
    device.Check(cudaErrorInvalidValue, "heads of RWKV with more than 512 channels");
  } else if (N == Tile<4>::kWidth) {
    LaunchTiles<Kernels, 4, true>(device, batch);
  } else if (ScanLanes(N) == 4) {
    LaunchTiles<Kernels, 4, false>(device, batch);
  } else if (ScanLanes(N) == 8) {
    LaunchTiles<Kernels, 8, false>(device, batch);
  } else if (ScanLanes(N) == 16) {
    LaunchTiles<Kernels, 16, false>(device, batch);
  } else {
    LaunchTiles<Kernels, 32, false>(device, batch);
  }
}

struct Wkv6Kernels {
  static constexpr int kVectors = 4;
  template <int kLanes, bool kWhole>
  static auto Of() {
    return Wkv6Kernel<kLanes, kWhole>;
  }
};
struct Wkv7Kernels {
  static constexpr int kVectors = 6;
  template <int kLanes, bool kWhole>
  static auto Of() {
    return Wkv7Kernel<kLanes, kWhole>;
  }
};

// ---- What leads into and out of RWKV-7's scan: a warp per head of a token

constexpr int kHeadWarps = kThreads / kWarp;

__global__ void Wkv7PrepareKernel(Wkv7PrepareArgs args) {
  const int64_t head = int64_t{blockIdx.x} * kHeadWarps + threadIdx.x / kWarp;
  if (head >= args.T * args.heads) return;  // of the whole warp
  const int64_t N = args.head_size, begin = head * N, column = head % args.heads * N;
  const int lane = threadIdx.x % kWarp;
  float squares = 0;
  for (int64_t j = lane; j < N; j += kWarp) {
    const float kappa = args.k[begin + j] * args.k_k[column + j];
    squares = fmaf(kappa, kappa, squares);
  }
  float norm = sqrtf(WarpSum(squares));
  if (norm < 1e-12f) norm = 1e-12f;  // not fmaxf, which would lose a NaN
  for (int64_t j = lane; j < N; j += kWarp) {
    const int64_t i = begin + j;
    const float k = args.k[i];
    const float kappa = k * args.k_k[column + j] / norm;
    const float a = Sigmoid(args.a[i]);
    args.kappa[i] = kappa;
    args.k[i] = k * fmaf(a - 1.0f, args.k_a[column + j], 1.0f);
    args.a[i] = kappa * a;
    args.w[i] = expf(-0.60653066f * Sigmoid(args.w[i]));  // -e^(-1/2)
    if (args.mix != nullptr) {
      const float v = args.v[i];
      args.v[i] = fmaf(args.first[i] - v, Sigmoid(args.mix[i]), v);
    }
  }
}

__global__ void Wkv7BonusKernel(Wkv7BonusArgs args) {
  const int64_t head = int64_t{blockIdx.x} * kHeadWarps + threadIdx.x / kWarp;
  if (head >= args.T * args.heads) return;  // of the whole warp
  const int64_t N = args.head_size, begin = head * N, column = head % args.heads * N;
  const int lane = threadIdx.x % kWarp;
  float sum = 0;
  for (int64_t j = lane; j < N; j += kWarp) {
    sum = fmaf(args.r[begin + j] * args.k[begin + j], args.r_k[column + j], sum);
  }
  sum = WarpSum(sum);
  for (int64_t i = begin + lane; i < begin + N; i += kWarp) {
    args.y[i] = fmaf(sum, args.v[i], args.y[i]) * args.gate[i];
  }
}

}  // namespace

void Wkv4(Exec& exec, std::span<const Wkv4Args> batch) {
  if (batch.empty()) return;
  CudaDevice& device = Cuda(exec);
  const dim3 grid(Blocks(batch[0].C, kWkv4Threads), static_cast<unsigned>(batch.size()));
  Launch(device, Wkv4Kernel, grid, kWkv4Threads, 0, ListOf(device, batch));
}

void Wkv6(Exec& exec, std::span<const Wkv6Args> batch) { LaunchScan<Wkv6Kernels>(exec, batch); }

void Wkv7(Exec& exec, std::span<const Wkv7Args> batch) { LaunchScan<Wkv7Kernels>(exec, batch); }

void Wkv7Prepare(Exec& exec, const Wkv7PrepareArgs& args) {
  Launch(Cuda(exec), Wkv7PrepareKernel, Blocks(args.T * args.heads, kHeadWarps), kThreads, 0, args);
}

void Wkv7Bonus(Exec& exec, const Wkv7BonusArgs& args) {
  Launch(Cuda(exec), Wkv7BonusKernel, Blocks(args.T * args.heads, kHeadWarps), kThreads, 0, args);
}

}  // namespace mneme::engine::cuda
