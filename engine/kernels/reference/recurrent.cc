#include "engine/kernels/reference/recurrent.h"

#include <algorithm>
#include <cmath>

namespace mneme::engine::reference {
namespace {

float Sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

float Relu(float x) { return x < 0 ? 0 : x; }  // NaN stays NaN

float Apply(Activation f, float x) {
  switch (f) {
    case Activation::kSigmoid:
      return Sigmoid(x);
    case Activation::kTanh:
      return std::tanh(x);
    case Activation::kReluSquared:
      return Relu(x) * Relu(x);
    case Activation::kDecay:
      return std::exp(-std::exp(x));
    case Activation::kSilu:
      return x / (1.0f + std::exp(-x));
    case Activation::kGeluErf:
      return 0.5f * x * (1.0f + std::erf(x * 0.70710678f));
    case Activation::kGeluTanh:
      return 0.5f * x * (1.0f + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
    case Activation::kRelu:
      return Relu(x);
  }
  return x;
}

}  // namespace

void LayerNorm(Exec& exec, const LayerNormArgs& args) {
  const int64_t width = args.D / args.groups;
  for (int64_t part = 0; part < args.T * args.groups; ++part) {
    const float* x = args.x + part * width;
    float* y = args.y + part * width;
    const int64_t column = part % args.groups * width;
    float sum = 0;
    for (int64_t i = 0; i < width; ++i) sum += x[i];
    const float mean = sum / static_cast<float>(width);
    float squares = 0;
    for (int64_t i = 0; i < width; ++i) squares += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / std::sqrt(squares / static_cast<float>(width) + args.eps);
    for (int64_t i = 0; i < width; ++i) {
      y[i] = (x[i] - mean) * scale * args.w[column + i] + args.b[column + i];
    }
  }
}

void Activate(Exec& exec, Activation f, const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = Apply(f, x[i]);
}

void SeriesActivate(Exec& exec, const SeriesActivateArgs& args) {
  for (int64_t t = 0; t < args.T; ++t) {
    for (int64_t c = 0; c < args.C; ++c) {
      const float x = args.x[t * args.C + c];
      float sum = 0;
      for (size_t i = 0; i < args.series.size(); ++i) {
        const int64_t at = static_cast<int64_t>(i) * args.C + c;
        sum += Apply(args.series[i], args.scale[at] * x + args.bias[at]);
      }
      args.y[t * args.C + c] = sum;
    }
  }
}

void Mul(Exec& exec, const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] *= x[i];
}

void TokenShift(Exec& exec, std::span<const TokenShiftArgs> batch) {
  for (const TokenShiftArgs& args : batch) {
    const int64_t C = args.C;
    for (int64_t t = 0; t < args.T; ++t) {
      const float* before = t == 0 ? args.previous : args.x + (t - 1) * C;
      for (int64_t c = 0; c < C; ++c) args.delta[t * C + c] = before[c] - args.x[t * C + c];
    }
    std::copy_n(args.x + (args.T - 1) * C, C, args.previous);
  }
}

void Lerp(Exec& exec, std::span<const LerpArgs> batch) {
  for (const LerpArgs& args : batch) {
    for (int64_t t = 0; t < args.T; ++t) {
      for (int64_t c = 0; c < args.C; ++c) {
        const int64_t i = t * args.C + c;
        float mu = args.mu[c];
        if (args.dynamic != nullptr) mu += args.dynamic[t * args.dynamic_stride + c];
        args.y[i] = args.x[i] + args.delta[i] * mu;
      }
    }
  }
}

void Wkv4(Exec& exec, std::span<const Wkv4Args> batch) {
  for (const Wkv4Args& args : batch) {
    for (int64_t c = 0; c < args.C; ++c) {
      float a = args.numerator[c], b = args.denominator[c], p = args.exponent[c];
      for (int64_t t = 0; t < args.T; ++t) {
        const float k = args.k[t * args.C + c], v = args.v[t * args.C + c];
        const float now = args.bonus[c] + k;
        float q = std::max(p, now);
        float old_weight = std::exp(p - q), new_weight = std::exp(now - q);
        args.y[t * args.C + c] = (old_weight * a + new_weight * v) / (old_weight * b + new_weight);
        const float faded = p + args.decay[c];
        q = std::max(faded, k);
        old_weight = std::exp(faded - q);
        new_weight = std::exp(k - q);
        a = old_weight * a + new_weight * v;
        b = old_weight * b + new_weight;
        p = q;
      }
      args.numerator[c] = a;
      args.denominator[c] = b;
      args.exponent[c] = p;
    }
  }
}

void Wkv6(Exec& exec, std::span<const Wkv6Args> batch) {
  for (const Wkv6Args& args : batch) {
    const int64_t N = args.head_size, C = args.heads * N;
    for (int64_t t = 0; t < args.T; ++t) {
      for (int64_t h = 0; h < args.heads; ++h) {
        const float* r = args.r + t * C + h * N;
        const float* k = args.k + t * C + h * N;
        const float* v = args.v + t * C + h * N;
        const float* d = args.decay + t * args.decay_stride + h * N;
        const float* u = args.bonus + h * N;
        float* y = args.y + t * C + h * N;
        float now = 0;
        for (int64_t j = 0; j < N; ++j) now += u[j] * k[j] * r[j];
        for (int64_t i = 0; i < N; ++i) {
          float* row = args.state + (h * N + i) * N;
          float sum = 0;
          for (int64_t j = 0; j < N; ++j) {
            sum += row[j] * r[j];
            row[j] = d[j] * row[j] + v[i] * k[j];
          }
          y[i] = sum + v[i] * now;
        }
      }
    }
  }
}

void Wkv7Prepare(Exec& exec, const Wkv7PrepareArgs& args) {
  const int64_t N = args.head_size, C = args.heads * N;
  for (int64_t head = 0; head < args.T * args.heads; ++head) {
    const int64_t begin = head * N;
    const int64_t column = begin % C;
    float squares = 0;
    for (int64_t i = begin; i < begin + N; ++i) {
      args.kappa[i] = args.k[i] * args.k_k[column + i - begin];
      squares += args.kappa[i] * args.kappa[i];
    }
    const float norm = std::max(std::sqrt(squares), 1e-12f);
    for (int64_t i = begin; i < begin + N; ++i) {
      args.kappa[i] /= norm;
      args.w[i] = std::exp(-0.60653066f * Sigmoid(args.w[i]));
      const float a = Sigmoid(args.a[i]);
      args.k[i] *= 1.0f + (a - 1.0f) * args.k_a[column + i - begin];
      args.a[i] = args.kappa[i] * a;
      if (args.mix != nullptr) args.v[i] += (args.first[i] - args.v[i]) * Sigmoid(args.mix[i]);
    }
  }
}

void Wkv7(Exec& exec, std::span<const Wkv7Args> batch) {
  for (const Wkv7Args& args : batch) {
    const int64_t N = args.head_size, C = args.heads * N;
    for (int64_t t = 0; t < args.T; ++t) {
      for (int64_t h = 0; h < args.heads; ++h) {
        const int64_t at = t * C + h * N;
        for (int64_t i = 0; i < N; ++i) {
          float* row = args.state + (h * N + i) * N;
          float s = 0;
          for (int64_t j = 0; j < N; ++j) s -= row[j] * args.kappa[at + j];
          float y = 0;
          for (int64_t j = 0; j < N; ++j) {
            row[j] =
                args.decay[at + j] * row[j] + s * args.b[at + j] + args.v[at + i] * args.k[at + j];
            y += row[j] * args.r[at + j];
          }
          args.y[at + i] = y;
        }
      }
    }
  }
}

void Wkv7Bonus(Exec& exec, const Wkv7BonusArgs& args) {
  const int64_t N = args.head_size, C = args.heads * N;
  for (int64_t head = 0; head < args.T * args.heads; ++head) {
    const int64_t begin = head * N;
    float sum = 0;
    for (int64_t i = begin; i < begin + N; ++i) {
      sum += args.r[i] * args.k[i] * args.r_k[begin % C + i - begin];
    }
    for (int64_t i = begin; i < begin + N; ++i) {
      args.y[i] = (args.y[i] + sum * args.v[i]) * args.gate[i];
    }
  }
}

}  // namespace mneme::engine::reference
