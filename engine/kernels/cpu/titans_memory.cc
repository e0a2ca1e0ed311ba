// SIMD versions of a memory's forward pass, gradient and update. Lanes are columns of a matrix
// (chains run over its rows, or over tokens) and, on the way back, a row's elements, whose lanes
// are summed in one fixed order. Blocks of rows share loads and change no chain.
#define HWY_DISABLED_TARGETS HWY_SSSE3
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/kernels/cpu/titans_memory.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h:
#include <algorithm>
#include <cmath>

#include "engine/kernels/cpu/cpu.h"
#include "engine/kernels/cpu/exp-inl.h"
#include "engine/kernels/cpu/partial_vector-inl.h"
#include "engine/kernels/cpu/recurrent.h"
#include "engine/kernels/cpu/simd_target.h"
#include "engine/kernels/cpu/titans_activation-inl.h"
#include "engine/kernels/titans_memory_plan.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mneme::engine::cpu::HWY_NAMESPACE {
namespace titans {

void Activate(TitansActivation f, float* x, int64_t n) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  for (int64_t i = 0; i < n; i += lanes) {
    StoreUpTo(d, Activation(d, f, LoadUpTo(d, x + i, n - i)), x + i, n - i);
  }
}

// kRows rows times kVectors vectors of columns from `weights` on, of which `rest` columns are left.
template <int kRows, int kVectors>
HWY_INLINE void ProductBlock(F32 d, TitansRows x, const float* weights, int64_t inputs,
                             int64_t outputs, int64_t rest, float* y, int64_t y_stride) {
  const int64_t lanes = hn::Lanes(d);
  Vec sum[kRows][kVectors];
  for (auto& row : sum) {
    for (Vec& v : row) v = hn::Zero(d);
  }
  for (int64_t i = 0; i < inputs; ++i, weights += outputs) {
    Vec w[kVectors];
    for (int c = 0; c < kVectors; ++c) {
      w[c] = kVectors > 1 ? hn::LoadU(d, weights + c * lanes) : LoadUpTo(d, weights, rest);
    }
    for (int t = 0; t < kRows; ++t) {
      const Vec factor = hn::Set(d, x.data[t * x.stride + i]);
      for (int c = 0; c < kVectors; ++c) sum[t][c] = hn::MulAdd(factor, w[c], sum[t][c]);
    }
  }
  for (int t = 0; t < kRows; ++t) {
    for (int c = 0; c < kVectors; ++c) {
      StoreUpTo(d, sum[t][c], y + t * y_stride + c * lanes, rest - c * lanes);
    }
  }
}

template <int kRows, int kWide>
HWY_INLINE void ProductRows(F32 d, TitansRows x, const float* weights, int64_t inputs,
                            int64_t outputs, float* y, int64_t y_stride) {
  const int64_t lanes = hn::Lanes(d);
  int64_t j = 0;
  for (; j + kWide * lanes <= outputs; j += kWide * lanes) {
    ProductBlock<kRows, kWide>(d, x, weights + j, inputs, outputs, outputs - j, y + j, y_stride);
  }
  for (; j < outputs; j += lanes) {
    ProductBlock<kRows, 1>(d, x, weights + j, inputs, outputs, outputs - j, y + j, y_stride);
  }
}

// y[t] = x[t] W. One row hides the latency of its chains by more columns at a time than four do.
HWY_INLINE void Product(F32 d, TitansRows x, int64_t count, const float* weights, int64_t inputs,
                        int64_t outputs, float* y, int64_t y_stride) {
  int64_t t = 0;
  for (; t + 4 <= count; t += 4) {
    ProductRows<4, 2>(d, {x.data + t * x.stride, x.stride}, weights, inputs, outputs,
                      y + t * y_stride, y_stride);
  }
  for (; t < count; ++t) {
    ProductRows<1, 4>(d, {x.data + t * x.stride, x.stride}, weights, inputs, outputs,
                      y + t * y_stride, y_stride);
  }
}

// Sums of the lanes of four vectors, in the first four elements of out.
HWY_INLINE void SumLanes4(F32 d, const Vec (&v)[4], float* out) {
#if HWY_TARGET == HWY_SCALAR
  for (int i = 0; i < 4; ++i) out[i] = hn::GetLane(v[i]);
#else
  const hn::Repartition<double, F32> dd;
  const Vec ab = hn::Add(hn::InterleaveLower(d, v[0], v[1]), hn::InterleaveUpper(d, v[0], v[1]));
  const Vec cd = hn::Add(hn::InterleaveLower(d, v[2], v[3]), hn::InterleaveUpper(d, v[2], v[3]));
  const auto ab64 = hn::BitCast(dd, ab), cd64 = hn::BitCast(dd, cd);
  const Vec sums = hn::Add(hn::BitCast(d, hn::InterleaveLower(dd, ab64, cd64)),
                           hn::BitCast(d, hn::InterleaveUpper(dd, ab64, cd64)));
  HWY_ALIGN float lanes[8];
  hn::Store(sums, d, lanes);
  for (int i = 0; i < 4; ++i) out[i] = hn::Lanes(d) == 8 ? lanes[i] + lanes[i + 4] : lanes[i];
#endif
}

// kRows rows of y[t, i] = (sum_j x[t, j] W[i, j]) y[t, i], for kSums rows i of W.
template <int kRows, int kSums>
HWY_INLINE void BackBlock(F32 d, const float* x, int64_t x_stride, const float* weights,
                          int64_t width, float* y, int64_t y_stride) {
  const int64_t lanes = hn::Lanes(d);
  Vec sum[kRows][kSums];
  for (auto& row : sum) {
    for (Vec& v : row) v = hn::Zero(d);
  }
  int64_t j = 0;
  for (; j + lanes <= width; j += lanes) {
    Vec w[kSums];
    for (int i = 0; i < kSums; ++i) w[i] = hn::LoadU(d, weights + i * width + j);
    for (int t = 0; t < kRows; ++t) {
      const Vec row = hn::LoadU(d, x + t * x_stride + j);
      for (int i = 0; i < kSums; ++i) sum[t][i] = hn::MulAdd(row, w[i], sum[t][i]);
    }
  }
  if (j < width) {
    Vec w[kSums];
    for (int i = 0; i < kSums; ++i) w[i] = LoadUpTo(d, weights + i * width + j, width - j);
    for (int t = 0; t < kRows; ++t) {
      const Vec row = LoadUpTo(d, x + t * x_stride + j, width - j);
      for (int i = 0; i < kSums; ++i) sum[t][i] = hn::MulAdd(row, w[i], sum[t][i]);
    }
  }
  for (int t = 0; t < kRows; ++t) {
    float sums[4];
    if constexpr (kSums == 4) {
      SumLanes4(d, sum[t], sums);
    } else {
      sums[0] = hn::GetLane(hn::SumOfLanes(d, sum[t][0]));
    }
    for (int i = 0; i < kSums; ++i) y[t * y_stride + i] *= sums[i];
  }
}

template <int kRows>
HWY_INLINE void BackRows(F32 d, const float* x, int64_t x_stride, const float* weights,
                         int64_t inputs, int64_t width, float* y) {
  int64_t i = 0;
  for (; i + 4 <= inputs; i += 4) {
    BackBlock<kRows, 4>(d, x, x_stride, weights + i * width, width, y + i, inputs);
  }
  for (; i < inputs; ++i) {
    BackBlock<kRows, 1>(d, x, x_stride, weights + i * width, width, y + i, inputs);
  }
}

// y = (x W^T) y elementwise; x [count, width], W [inputs, width], y [count, inputs].
HWY_INLINE void BackProduct(F32 d, const float* x, int64_t count, const float* weights,
                            int64_t inputs, int64_t width, float* y) {
  int64_t t = 0;
  for (; t + 2 <= count; t += 2) {
    BackRows<2>(d, x + t * width, width, weights, inputs, width, y + t * inputs);
  }
  for (; t < count; ++t) {
    BackRows<1>(d, x + t * width, width, weights, inputs, width, y + t * inputs);
  }
}

// Mean and 1 / deviation of a row of f, for its norm.
struct Moments {
  float mean = 0;
  float scale = 1;
};
HWY_INLINE Moments RowMoments(F32 d, const TitansMemoryShape& shape, const float* f) {
  const int64_t lanes = hn::Lanes(d), e = shape.width;
  Moments moments;
  if (shape.norm == TitansNorm::kNone) return moments;
  const auto width = static_cast<float>(e);
  if (shape.norm == TitansNorm::kLayer) {
    Vec sum = hn::Zero(d);
    for (int64_t j = 0; j < e; j += lanes) sum = hn::Add(sum, LoadUpTo(d, f + j, e - j));
    moments.mean = hn::GetLane(hn::SumOfLanes(d, sum)) / width;
  }
  const Vec mean = hn::Set(d, moments.mean);
  Vec squares = hn::Zero(d);
  int64_t j = 0;
  for (; j + lanes <= e; j += lanes) {
    const Vec c = hn::Sub(hn::LoadU(d, f + j), mean);
    squares = hn::MulAdd(c, c, squares);
  }
  float total = hn::GetLane(hn::SumOfLanes(d, squares));
  // Absent lanes would count as -mean.
  for (; j < e; ++j) total += (f[j] - moments.mean) * (f[j] - moments.mean);
  moments.scale = 1.0f / std::sqrt(total / width + shape.eps);
  return moments;
}

// One vector of M's output, from f and x.
HWY_INLINE Vec FinishVec(F32 d, const TitansMemoryView& memory, const Moments& moments,
                         const float* f, const float* x, int64_t j) {
  const TitansMemoryShape& shape = *memory.shape;
  const int64_t rest = shape.width - j;
  Vec y = LoadUpTo(d, f + j, rest);
  if (shape.norm != TitansNorm::kNone) {
    const Vec n = hn::Mul(hn::Sub(y, hn::Set(d, moments.mean)), hn::Set(d, moments.scale));
    y = hn::Mul(n, LoadUpTo(d, memory.gain + j, rest));
  }
  return shape.residual ? hn::Add(y, LoadUpTo(d, x + j, rest)) : y;
}

void Finish(const TitansMemoryView& memory, const float* f, TitansRows x, int64_t count, float* y,
            int64_t y_stride) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d), e = memory.shape->width;
  for (int64_t t = 0; t < count; ++t) {
    const Moments moments = RowMoments(d, *memory.shape, f + t * e);
    for (int64_t j = 0; j < e; j += lanes) {
      const Vec out = FinishVec(d, memory, moments, f + t * e, x.data + t * x.stride, j);
      StoreUpTo(d, out, y + t * y_stride + j, e - j);
    }
  }
}

void Read(const TitansMemoryView& memory, TitansRows x, int64_t count, float* y, int64_t y_stride,
          float* scratch) {
  const F32 d;
  const TitansMemoryShape& shape = *memory.shape;
  float* out = scratch;
  float* spare = scratch + count * shape.Widest();
  TitansRows in = x;
  for (int64_t l = 0; l < shape.depth; ++l) {
    const int64_t outputs = shape.Outputs(l);
    Product(d, in, count, memory.weights[l], shape.Inputs(l), outputs, out, outputs);
    if (l + 1 < shape.depth) Activate(shape.activation, out, count * outputs);
    in = {out, outputs};
    std::swap(out, spare);
  }
  Finish(memory, in.data, x, count, y, y_stride);
}

// f becomes the loss's gradient with respect to f.
HWY_INLINE void LastDelta(F32 d, const TitansMemoryView& memory, const float* k, const float* v,
                          float* f) {
  const TitansMemoryShape& shape = *memory.shape;
  const int64_t lanes = hn::Lanes(d), e = shape.width;
  const Moments moments = RowMoments(d, shape, f);
  if (shape.norm == TitansNorm::kNone) {
    for (int64_t j = 0; j < e; j += lanes) {
      const Vec out = FinishVec(d, memory, moments, f, k, j);
      StoreUpTo(d, hn::Sub(out, LoadUpTo(d, v + j, e - j)), f + j, e - j);
    }
    return;
  }
  const Vec mean = hn::Set(d, moments.mean), scale = hn::Set(d, moments.scale);
  const auto normalized = [&](int64_t j) {
    return hn::Mul(hn::Sub(LoadUpTo(d, f + j, e - j), mean), scale);
  };
  // The residual times the gain; zero in absent lanes because the gain is.
  const auto weighted = [&](int64_t j) {
    const Vec r = hn::Sub(FinishVec(d, memory, moments, f, k, j), LoadUpTo(d, v + j, e - j));
    return hn::Mul(r, LoadUpTo(d, memory.gain + j, e - j));
  };
  Vec sum = hn::Zero(d), along = hn::Zero(d);
  for (int64_t j = 0; j < e; j += lanes) {
    const Vec r = weighted(j);
    if (shape.norm == TitansNorm::kLayer) sum = hn::Add(sum, r);
    along = hn::MulAdd(r, normalized(j), along);
  }
  const auto width = static_cast<float>(e);
  const Vec r_mean = hn::Set(d, hn::GetLane(hn::SumOfLanes(d, sum)) / width);
  const Vec n_factor = hn::Set(d, hn::GetLane(hn::SumOfLanes(d, along)) / width);
  for (int64_t j = 0; j < e; j += lanes) {
    const Vec centred = hn::Sub(weighted(j), r_mean);
    const Vec delta = hn::Mul(scale, hn::NegMulAdd(normalized(j), n_factor, centred));
    StoreUpTo(d, delta, f + j, e - j);
  }
}

// In double, four lanes per half, so that the squares of finite f32 stay finite.
HWY_INLINE double SumOfSquares(F32 d, const float* x, int64_t n) {
#if HWY_TARGET == HWY_SCALAR
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += double(x[i]) * x[i];
  return sum;
#else
  const hn::Half<F32> half;
  const hn::Rebind<double, hn::Half<F32>> dd;
  const int64_t lanes = hn::Lanes(d);
  auto low = hn::Zero(dd), high = hn::Zero(dd);
  for (int64_t i = 0; i < n; i += lanes) {
    const Vec v = LoadUpTo(d, x + i, n - i);
    const auto a = hn::PromoteTo(dd, hn::LowerHalf(half, v));
    const auto b = hn::PromoteTo(dd, hn::UpperHalf(half, v));
    low = hn::MulAdd(a, a, low);
    high = hn::MulAdd(b, b, high);
  }
  return hn::GetLane(hn::SumOfLanes(dd, hn::Add(low, high)));
#endif
}

void Gradient(const TitansMemoryView& memory, TitansRows k, TitansRows v, int64_t first,
              int64_t count, float clip, const TitansGradients& out) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  const TitansMemoryShape& shape = *memory.shape;
  const int64_t last = shape.depth - 1, e = shape.width;
  const auto input = [&](int64_t l) { return out.Input(shape, l) + first * shape.Inputs(l); };
  const auto delta = [&](int64_t l) { return out.Delta(shape, l) + first * shape.Outputs(l); };
  for (int64_t t = 0; t < count; ++t) std::copy_n(k.data + t * k.stride, e, input(0) + t * e);
  for (int64_t l = 0; l < shape.depth; ++l) {
    const int64_t outputs = shape.Outputs(l);
    Product(d, {input(l), shape.Inputs(l)}, count, memory.weights[l], shape.Inputs(l), outputs,
            delta(l), outputs);
    if (l == last) break;
    // The activation goes on, its derivative waits where the way back will multiply it.
    float* z = delta(l);
    float* a = input(l + 1);
    for (int64_t i = 0; i < count * outputs; i += lanes) {
      const int64_t rest = count * outputs - i;
      const Vec value = LoadUpTo(d, z + i, rest);
      StoreUpTo(d, Activation(d, shape.activation, value), a + i, rest);
      StoreUpTo(d, Derivative(d, shape.activation, value), z + i, rest);
    }
  }
  for (int64_t t = 0; t < count; ++t) {
    LastDelta(d, memory, k.data + t * k.stride, v.data + t * v.stride, delta(last) + t * e);
  }
  for (int64_t l = last - 1; l >= 0; --l) {
    BackProduct(d, delta(l + 1), count, memory.weights[l + 1], shape.Inputs(l + 1),
                shape.Outputs(l + 1), delta(l));
  }
  float* scales = out.Scale(shape) + first;
  for (int64_t t = 0; t < count; ++t) {
    scales[t] = 1;
    if (!(clip > 0)) continue;
    double squares = 0;
    for (int64_t l = 0; l < shape.depth; ++l) {
      squares += SumOfSquares(d, input(l) + t * shape.Inputs(l), shape.Inputs(l)) *
                 SumOfSquares(d, delta(l) + t * shape.Outputs(l), shape.Outputs(l));
    }
    const double norm = std::sqrt(squares);
    if (norm > clip) scales[t] = static_cast<float>(clip / norm);
  }
}

// TitansRows [i, i + kRows) of the matrix, kVectors vectors of columns from j on. `rates` holds the
// inputs times the rates, for weights and then for momentum.
template <int kRows, int kVectors>
HWY_INLINE void CommitBlock(F32 d, const TitansCommit& args, int64_t i, int64_t j) {
  const int64_t lanes = hn::Lanes(d), rest = args.outputs - j;
  const auto load = [&](const float* p, int c) {
    return kVectors > 1 ? hn::LoadU(d, p + c * lanes) : LoadUpTo(d, p, rest);
  };
  Vec weight[kRows][kVectors], momentum[kRows][kVectors];
  const Vec forget = hn::Set(d, 1 - args.keep), carry = hn::Set(d, args.carry);
  const Vec momentum_keep = hn::Set(d, args.momentum_keep);
  for (int a = 0; a < kRows; ++a) {
    const int64_t at = (i + a) * args.outputs + j;
    for (int c = 0; c < kVectors; ++c) {
      const Vec target = args.target == nullptr ? hn::Zero(d) : load(args.target + at, c);
      const Vec s = load(args.momentum + at, c);
      Vec w = target;
      if (args.keep != 0) {
        w = load(args.weights + at, c);
        w = hn::MulAdd(forget, hn::Sub(target, w), w);
      }
      weight[a][c] = hn::MulAdd(carry, s, w);
      momentum[a][c] = hn::Mul(momentum_keep, s);
    }
  }
  const float* weight_rates = args.scratch + i;
  const float* momentum_rates = weight_rates + args.rows * args.inputs;
  for (int64_t t = 0; t < args.rows; ++t) {
    Vec delta[kVectors];
    for (int c = 0; c < kVectors; ++c) delta[c] = load(args.delta + t * args.outputs + j, c);
    for (int a = 0; a < kRows; ++a) {
      const Vec w = hn::Set(d, weight_rates[t * args.inputs + a]);
      const Vec s = hn::Set(d, momentum_rates[t * args.inputs + a]);
      for (int c = 0; c < kVectors; ++c) {
        weight[a][c] = hn::NegMulAdd(w, delta[c], weight[a][c]);
        momentum[a][c] = hn::NegMulAdd(s, delta[c], momentum[a][c]);
      }
    }
  }
  for (int a = 0; a < kRows; ++a) {
    const int64_t at = (i + a) * args.outputs + j;
    for (int c = 0; c < kVectors; ++c) {
      StoreUpTo(d, weight[a][c], args.weights + at + c * lanes, rest - c * lanes);
      StoreUpTo(d, momentum[a][c], args.momentum + at + c * lanes, rest - c * lanes);
    }
  }
}

template <int kRows>
HWY_INLINE void CommitRows(F32 d, const TitansCommit& args, int64_t i) {
  const int64_t lanes = hn::Lanes(d);
  int64_t j = 0;
  for (; j + 2 * lanes <= args.outputs; j += 2 * lanes) CommitBlock<kRows, 2>(d, args, i, j);
  for (; j < args.outputs; j += lanes) CommitBlock<kRows, 1>(d, args, i, j);
}

void Commit(const TitansCommit& args) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d), inputs = args.inputs;
  for (int64_t t = 0; t < args.rows; ++t) {
    const Vec weight_rate = hn::Set(d, args.weight_rates[t]);
    const Vec momentum_rate = hn::Set(d, args.momentum_rates[t]);
    float* scaled = args.scratch + t * inputs;
    for (int64_t i = 0; i < inputs; i += lanes) {
      const Vec input = LoadUpTo(d, args.input + t * inputs + i, inputs - i);
      StoreUpTo(d, hn::Mul(weight_rate, input), scaled + i, inputs - i);
      StoreUpTo(d, hn::Mul(momentum_rate, input), scaled + args.rows * inputs + i, inputs - i);
    }
  }
  int64_t i = 0;
  for (; i + 2 <= inputs; i += 2) CommitRows<2>(d, args, i);
  for (; i < inputs; ++i) CommitRows<1>(d, args, i);
}

// TitansRows [t, t + kRows) of the call, kVectors vectors of columns from j on.
template <int kRows, int kVectors, bool kTarget>
HWY_INLINE void StepBlock(F32 d, const TitansSteps& args, int64_t t, int64_t j) {
  const int64_t lanes = hn::Lanes(d), rest = args.outputs - j;
  const int64_t inputs = args.inputs, outputs = args.outputs, x_stride = args.x.stride;
  const auto load = [&](const float* p, int c) {
    return kVectors > 1 ? hn::LoadU(d, p + c * lanes) : LoadUpTo(d, p, rest);
  };
  // Copies: what is stored below might otherwise be one of them, for all the compiler knows.
  Vec sum[kRows][kVectors], delta[kRows][kVectors], eta[kRows], alpha[kRows], theta[kRows];
  for (int a = 0; a < kRows; ++a) {
    for (int c = 0; c < kVectors; ++c) {
      sum[a][c] = hn::Zero(d);
      delta[a][c] = load(args.delta + (t + a) * outputs + j, c);
    }
    theta[a] = hn::Set(d, args.theta[t + a]);
    eta[a] = hn::Set(d, args.eta[t + a]);
    alpha[a] = hn::Set(d, args.alpha[t + a]);
  }
  const float* input = args.input + t * inputs;
  const float* x = args.x.data + t * x_stride;
  float* weights = args.weights + j;
  float* momenta = args.momentum + j;
  const float* targets = kTarget ? args.target + j : nullptr;
  for (int64_t i = 0; i < inputs; ++i, weights += outputs, momenta += outputs) {
    Vec weight[kVectors], momentum[kVectors], target[kVectors];
    for (int c = 0; c < kVectors; ++c) {
      weight[c] = load(weights, c);
      momentum[c] = load(momenta, c);
      target[c] = kTarget ? load(targets + i * outputs, c) : hn::Zero(d);
    }
    for (int a = 0; a < kRows; ++a) {
      const Vec rate = hn::Mul(theta[a], hn::Set(d, input[a * inputs + i]));
      const Vec factor = hn::Set(d, x[a * x_stride + i]);
      for (int c = 0; c < kVectors; ++c) {
        momentum[c] = hn::NegMulAdd(rate, delta[a][c], hn::Mul(eta[a], momentum[c]));
        weight[c] =
            hn::Add(hn::MulAdd(alpha[a], hn::Sub(target[c], weight[c]), weight[c]), momentum[c]);
        sum[a][c] = hn::MulAdd(factor, weight[c], sum[a][c]);
      }
    }
    for (int c = 0; c < kVectors; ++c) {
      StoreUpTo(d, weight[c], weights + c * lanes, rest - c * lanes);
      StoreUpTo(d, momentum[c], momenta + c * lanes, rest - c * lanes);
    }
  }
  for (int a = 0; a < kRows; ++a) {
    for (int c = 0; c < kVectors; ++c) {
      StoreUpTo(d, sum[a][c], args.y + (t + a) * outputs + j + c * lanes, rest - c * lanes);
    }
  }
}

template <int kRows, int kWide, bool kTarget>
HWY_INLINE void StepRows(F32 d, const TitansSteps& args, int64_t t) {
  const int64_t lanes = hn::Lanes(d);
  int64_t j = 0;
  for (; j + kWide * lanes <= args.outputs; j += kWide * lanes) {
    StepBlock<kRows, kWide, kTarget>(d, args, t, j);
  }
  for (; j < args.outputs; j += lanes) StepBlock<kRows, 1, kTarget>(d, args, t, j);
}

template <bool kTarget>
HWY_INLINE void StepAll(F32 d, const TitansSteps& args) {
  int64_t t = 0;
  for (; t + 4 <= args.rows; t += 4) StepRows<4, 2, kTarget>(d, args, t);
  for (; t < args.rows; ++t) StepRows<1, 4, kTarget>(d, args, t);
}

void Step(const TitansSteps& args) {
  const F32 d;
  if (args.target == nullptr) {
    StepAll<false>(d, args);
  } else {
    StepAll<true>(d, args);
  }
}

struct MemoryOps {
  static constexpr auto Read = titans::Read;
  static constexpr auto Gradient = titans::Gradient;
  static constexpr auto Commit = titans::Commit;
  static constexpr auto Step = titans::Step;
  static constexpr auto Activate = titans::Activate;
  static constexpr auto Finish = titans::Finish;
};

}  // namespace titans

void TitansMemoryAll(Exec& exec, const TitansMemoryLayer& layer,
                     std::span<const TitansMemoryArgs> batch) {
  RunTitansMemory<titans::MemoryOps>(exec, layer, batch);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace mneme::engine::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mneme::engine::cpu {
namespace {

HWY_EXPORT(TitansMemoryAll);

}  // namespace

void TitansRates(Exec& exec, const TitansRatesArgs& args, int64_t T, float* z) {
  Activate(exec, Activation::kSigmoid, z, T * 3 * args.heads, z);
  ScaleTitansRates(args, T, z);
}

void TitansMemory(Exec& exec, const TitansMemoryLayer& layer,
                  std::span<const TitansMemoryArgs> batch) {
  CurrentSimdTarget();  // before the first dispatch: it may be pinned
  HWY_DYNAMIC_DISPATCH(TitansMemoryAll)(exec, layer, batch);
}

}  // namespace mneme::engine::cpu
#endif  // HWY_ONCE
