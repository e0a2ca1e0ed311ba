// The equations as written, one scalar at a time.
#include <algorithm>
#include <cmath>
#include <vector>

#include "engine/kernels/reference/recurrent.h"
#include "engine/kernels/reference/reference.h"
#include "engine/kernels/titans_memory_plan.h"

namespace mneme::engine::reference {
namespace {

constexpr float kInverseSqrt2 = 0.70710678f;
constexpr float kInverseSqrt2Pi = 0.39894228f;
constexpr float kSqrt2OverPi = 0.79788456f;

float Sigmoid(float z) { return 1.0f / (1.0f + std::exp(-z)); }

float Activation(TitansActivation f, float z) {
  switch (f) {
    case TitansActivation::kSilu:
      return z * Sigmoid(z);
    case TitansActivation::kGeluTanh:
      return 0.5f * z * (1 + std::tanh(kSqrt2OverPi * (z + 0.044715f * z * z * z)));
    case TitansActivation::kGeluErf:
      return 0.5f * z * std::erfc(-z * kInverseSqrt2);
  }
  return z;
}

float Derivative(TitansActivation f, float z) {
  switch (f) {
    case TitansActivation::kSilu: {
      const float s = Sigmoid(z);
      return s * (1 + z * (1 - s));
    }
    case TitansActivation::kGeluTanh: {
      const float x = std::clamp(z, -100.0f, 100.0f);  // flat beyond; its square stays finite
      const float t = std::tanh(kSqrt2OverPi * (x + 0.044715f * x * x * x));
      return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * kSqrt2OverPi * (1 + 0.134145f * x * x);
    }
    case TitansActivation::kGeluErf:
      return 0.5f * std::erfc(-z * kInverseSqrt2) + z * kInverseSqrt2Pi * std::exp(-0.5f * z * z);
  }
  return 1;
}

// y[j] = sum_i x[i] W[i, j].
void Product(const float* x, const float* weights, int64_t inputs, int64_t outputs, float* y) {
  for (int64_t j = 0; j < outputs; ++j) {
    float sum = 0;
    for (int64_t i = 0; i < inputs; ++i) sum += x[i] * weights[i * outputs + j];
    y[j] = sum;
  }
}

// n = (f - mean) s, the normalised f before the gain; returns s.
float Normalized(const TitansMemoryShape& shape, const float* f, float* n) {
  const auto width = static_cast<float>(shape.width);
  float mean = 0;
  if (shape.norm == TitansNorm::kLayer) {
    for (int64_t j = 0; j < shape.width; ++j) mean += f[j];
    mean /= width;
  }
  float squares = 0;
  for (int64_t j = 0; j < shape.width; ++j) squares += (f[j] - mean) * (f[j] - mean);
  const float s = 1.0f / std::sqrt(squares / width + shape.eps);
  for (int64_t j = 0; j < shape.width; ++j) n[j] = (f[j] - mean) * s;
  return s;
}

// M's output from f and x.
void FinishRow(const TitansMemoryView& memory, const float* f, const float* x, float* y) {
  const TitansMemoryShape& shape = *memory.shape;
  std::vector<float> n(shape.width);
  if (shape.norm != TitansNorm::kNone) Normalized(shape, f, n.data());
  for (int64_t j = 0; j < shape.width; ++j) {
    const float out = shape.norm == TitansNorm::kNone ? f[j] : n[j] * memory.gain[j];
    y[j] = shape.residual ? out + x[j] : out;
  }
}

// The loss's gradient with respect to f.
void LastDelta(const TitansMemoryView& memory, const float* f, const float* k, const float* v,
               float* delta) {
  const TitansMemoryShape& shape = *memory.shape;
  FinishRow(memory, f, k, delta);
  for (int64_t j = 0; j < shape.width; ++j) delta[j] -= v[j];
  if (shape.norm == TitansNorm::kNone) return;
  std::vector<float> n(shape.width);
  const float s = Normalized(shape, f, n.data());
  float mean = 0, along = 0;
  for (int64_t j = 0; j < shape.width; ++j) {
    delta[j] *= memory.gain[j];
    if (shape.norm == TitansNorm::kLayer) mean += delta[j];
    along += delta[j] * n[j];
  }
  mean /= static_cast<float>(shape.width);
  along /= static_cast<float>(shape.width);
  for (int64_t j = 0; j < shape.width; ++j) delta[j] = s * (delta[j] - mean - n[j] * along);
}

struct TitansOps {
  static void Activate(TitansActivation f, float* x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) x[i] = Activation(f, x[i]);
  }

  static void Finish(const TitansMemoryView& memory, const float* f, TitansRows x, int64_t count,
                     float* y, int64_t y_stride) {
    for (int64_t t = 0; t < count; ++t) {
      FinishRow(memory, f + t * memory.shape->width, x.data + t * x.stride, y + t * y_stride);
    }
  }

  static void Read(const TitansMemoryView& memory, TitansRows x, int64_t count, float* y,
                   int64_t y_stride, float* scratch) {
    const TitansMemoryShape& shape = *memory.shape;
    float* in = scratch;
    float* out = scratch + shape.Widest();
    for (int64_t t = 0; t < count; ++t) {
      const float* row = x.data + t * x.stride;
      std::copy_n(row, shape.width, in);
      for (int64_t l = 0; l < shape.depth; ++l) {
        Product(in, memory.weights[l], shape.Inputs(l), shape.Outputs(l), out);
        if (l + 1 < shape.depth) Activate(shape.activation, out, shape.Outputs(l));
        std::swap(in, out);
      }
      FinishRow(memory, in, row, y + t * y_stride);
    }
  }

  static void Gradient(const TitansMemoryView& memory, TitansRows k, TitansRows v, int64_t first,
                       int64_t count, float clip, const TitansGradients& out) {
    const TitansMemoryShape& shape = *memory.shape;
    const int64_t last = shape.depth - 1;
    std::vector<float> f(shape.width);
    std::vector<std::vector<float>> z(shape.depth);
    for (int64_t t = first; t < first + count; ++t) {
      const float* key = k.data + (t - first) * k.stride;
      const auto input = [&](int64_t l) { return out.Input(shape, l) + t * shape.Inputs(l); };
      const auto delta = [&](int64_t l) { return out.Delta(shape, l) + t * shape.Outputs(l); };
      std::copy_n(key, shape.width, input(0));
      for (int64_t l = 0; l < last; ++l) {
        z[l].resize(shape.Outputs(l));
        Product(input(l), memory.weights[l], shape.Inputs(l), shape.Outputs(l), z[l].data());
        for (int64_t j = 0; j < shape.Outputs(l); ++j) {
          input(l + 1)[j] = Activation(shape.activation, z[l][j]);
        }
      }
      Product(input(last), memory.weights[last], shape.Inputs(last), shape.width, f.data());
      LastDelta(memory, f.data(), key, v.data + (t - first) * v.stride, delta(last));
      for (int64_t l = last - 1; l >= 0; --l) {
        const float* weights = memory.weights[l + 1];
        const int64_t outputs = shape.Outputs(l + 1);
        for (int64_t i = 0; i < shape.Outputs(l); ++i) {
          float sum = 0;
          for (int64_t j = 0; j < outputs; ++j) sum += delta(l + 1)[j] * weights[i * outputs + j];
          delta(l)[i] = sum * Derivative(shape.activation, z[l][i]);
        }
      }
      // In double: the squares of finite f32 stay finite.
      double squares = 0;
      for (int64_t l = 0; l < shape.depth; ++l) {
        double a = 0, d = 0;
        for (int64_t i = 0; i < shape.Inputs(l); ++i) a += double(input(l)[i]) * input(l)[i];
        for (int64_t j = 0; j < shape.Outputs(l); ++j) d += double(delta(l)[j]) * delta(l)[j];
        squares += a * d;
      }
      const double norm = std::sqrt(squares);
      out.Scale(shape)[t] = clip > 0 && norm > clip ? static_cast<float>(clip / norm) : 1.0f;
    }
  }

  static void Commit(const TitansCommit& args) {
    for (int64_t i = 0; i < args.inputs; ++i) {
      for (int64_t j = 0; j < args.outputs; ++j) {
        float& w = args.weights[i * args.outputs + j];
        float& s = args.momentum[i * args.outputs + j];
        const float target = args.target == nullptr ? 0 : args.target[i * args.outputs + j];
        float weight = args.keep == 0 ? target : w + (1 - args.keep) * (target - w);
        weight += args.carry * s;
        float momentum = args.momentum_keep * s;
        for (int64_t t = 0; t < args.rows; ++t) {
          const float input = args.input[t * args.inputs + i];
          const float delta = args.delta[t * args.outputs + j];
          weight -= args.weight_rates[t] * input * delta;
          momentum -= args.momentum_rates[t] * input * delta;
        }
        w = weight;
        s = momentum;
      }
    }
  }

  static void Step(const TitansSteps& args) {
    for (int64_t t = 0; t < args.rows; ++t) {
      const float* x = args.x.data + t * args.x.stride;
      float* y = args.y + t * args.outputs;
      std::fill_n(y, args.outputs, 0.0f);
      for (int64_t i = 0; i < args.inputs; ++i) {
        const float rate = args.theta[t] * args.input[t * args.inputs + i];
        for (int64_t j = 0; j < args.outputs; ++j) {
          float& m = args.weights[i * args.outputs + j];
          float& s = args.momentum[i * args.outputs + j];
          const float target = args.target == nullptr ? 0 : args.target[i * args.outputs + j];
          s = args.eta[t] * s - rate * args.delta[t * args.outputs + j];
          m = m + args.alpha[t] * (target - m) + s;
          y[j] += x[i] * m;
        }
      }
    }
  }
};

}  // namespace

void TitansRates(Exec& exec, const TitansRatesArgs& args, int64_t T, float* z) {
  Activate(exec, engine::Activation::kSigmoid, z, T * 3 * args.heads, z);
  ScaleTitansRates(args, T, z);
}

void TitansMemory(Exec& exec, const TitansMemoryLayer& layer,
                  std::span<const TitansMemoryArgs> batch) {
  RunTitansMemory<TitansOps>(exec, layer, batch);
}

}  // namespace mneme::engine::reference
