// Every backend and SIMD target against the scalar reference and the equations, and each against
// itself when rows are cut differently.
#include "engine/arch/titans/kernels.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "engine/core/half.h"
#include "gtest/gtest.h"
#include "tests/engine/kernels/kernel_setup.h"
#include "tests/support/compare.h"

namespace mneme::engine::titans {
namespace {

using test::AllClose;
using test::SameBits;

// Sums of up to 130 terms of order 1 in another order.
constexpr test::Tolerance kTolerance = {.absolute = 1e-5, .relative = 1e-5};

// Widths around the vectors', below them, odd, and a usual head.
std::vector<MemoryShape> Shapes() {
  std::vector<MemoryShape> shapes;
  const std::pair<int64_t, int64_t> widths[] = {{1, 1}, {5, 7}, {10, 14}, {16, 24}, {33, 71}};
  for (const auto& [e, h] : widths) {
    for (const int64_t depth : {1, 2, 3}) {
      shapes.push_back({.depth = depth, .width = e, .hidden = h, .eps = 1e-6f});
    }
  }
  // Every combination of options at one size.
  for (const auto activation :
       {MemoryActivation::kSilu, MemoryActivation::kGeluTanh, MemoryActivation::kGeluErf}) {
    for (const auto norm : {MemoryNorm::kNone, MemoryNorm::kRms, MemoryNorm::kLayer}) {
      for (const bool residual : {false, true}) {
        for (const int64_t depth : {1, 2, 4}) {
          shapes.push_back({.depth = depth,
                            .width = 11,
                            .hidden = 13,
                            .activation = activation,
                            .residual = residual,
                            .norm = norm,
                            .eps = 1e-5f});
        }
      }
    }
  }
  return shapes;
}

std::string Describe(const MemoryShape& s) {
  return "depth " + std::to_string(s.depth) + ", " + std::to_string(s.width) + " x " +
         std::to_string(s.hidden) + ", activation " + std::to_string(int(s.activation)) +
         ", norm " + std::to_string(int(s.norm)) + (s.residual ? ", residual" : "");
}

// A memory with random weights, and rows for it.
struct Memory {
  Memory(const MemoryShape& shape, int64_t rows, uint32_t seed = 20240613)
      : shape(shape), rows(rows), stride(2 * shape.width + 3) {
    Random random(seed);
    for (int64_t l = 0; l < shape.depth; ++l) {
      weights.push_back(random.Floats(shape.Elements(l)));
      // Activations of order 1 in every layer: a norm of tiny ones would amplify rounding.
      for (float& w : weights.back()) w *= 2.5f / std::sqrt(static_cast<float>(shape.Inputs(l)));
      pointers.push_back(weights.back().data());
    }
    gain = random.Floats(shape.width);
    k = random.Floats(rows * stride);
    v = random.Floats(rows * stride);
  }
  MemoryView View() const {
    return {&shape, pointers.data(), shape.norm == MemoryNorm::kNone ? nullptr : gain.data()};
  }
  Rows K(int64_t row = 0) const { return {k.data() + row * stride, stride}; }
  Rows V(int64_t row = 0) const { return {v.data() + row * stride, stride}; }

  MemoryShape shape;
  int64_t rows, stride;
  std::vector<std::vector<float>> weights;
  std::vector<const float*> pointers;
  std::vector<float> gain, k, v;
};

std::vector<float> Read(const TitansKernels& kernels, const Memory& memory, int64_t piece) {
  std::vector<float> y(memory.rows * memory.stride, -7.0f);
  for (int64_t t = 0; t < memory.rows; t += piece) {
    const int64_t count = std::min(piece, memory.rows - t);
    std::vector<float> scratch(2 * count * memory.shape.Widest(), NAN);
    kernels.read(memory.View(), memory.K(t), count, y.data() + t * memory.stride, memory.stride,
                 scratch.data());
  }
  return y;
}

std::vector<float> Gradient(const TitansKernels& kernels, const Memory& memory, float clip,
                            int64_t piece) {
  std::vector<float> block(Gradients::Elements(memory.shape, memory.rows), -7.0f);
  for (int64_t t = 0; t < memory.rows; t += piece) {
    kernels.gradient(memory.View(), memory.K(t), memory.V(t), t, std::min(piece, memory.rows - t),
                     clip, {block.data(), memory.rows});
  }
  return block;
}

class TitansKernelsTest : public testing::TestWithParam<engine::Variant> {
 protected:
  void SetUp() override {
    GetParam().Select();
    kernels_ = FindTitansKernels(GetParam().kernels->name);
    ASSERT_NE(kernels_, nullptr);
  }
  void TearDown() override { PinSimdTarget(""); }

  const TitansKernels* kernels_ = nullptr;
};

TEST_P(TitansKernelsTest, AgreeWithTheReference) {
  for (const MemoryShape& shape : Shapes()) {
    SCOPED_TRACE(Describe(shape));
    const Memory memory(shape, 9);
    EXPECT_TRUE(AllClose(Read(*kernels_, memory, 9), Read(ReferenceTitansKernels(), memory, 9),
                         kTolerance));
    EXPECT_TRUE(AllClose(Gradient(*kernels_, memory, 0.5f, 9),
                         Gradient(ReferenceTitansKernels(), memory, 0.5f, 9), kTolerance));
  }
}

TEST_P(TitansKernelsTest, HowRowsAreCutChangesNoBits) {
  for (const MemoryShape& shape : Shapes()) {
    SCOPED_TRACE(Describe(shape));
    const Memory memory(shape, 13);
    const std::vector<float> y = Read(*kernels_, memory, 13);
    const std::vector<float> gradient = Gradient(*kernels_, memory, 0.5f, 13);
    for (const int64_t piece : {1, 2, 3, 5, 8}) {
      EXPECT_TRUE(SameBits(Read(*kernels_, memory, piece), y));
      EXPECT_TRUE(SameBits(Gradient(*kernels_, memory, 0.5f, piece), gradient));
    }
  }
}

// 1/2 |M(k) - v|^2 of one row, in double from the definition.
double Loss(const Memory& memory, const std::vector<std::vector<double>>& weights) {
  const MemoryShape& shape = memory.shape;
  std::vector<double> a(memory.k.begin(), memory.k.begin() + shape.width);
  for (int64_t l = 0; l < shape.depth; ++l) {
    std::vector<double> z(shape.Outputs(l));
    for (size_t j = 0; j < z.size(); ++j) {
      for (size_t i = 0; i < a.size(); ++i) z[j] += a[i] * weights[l][i * z.size() + j];
      if (l + 1 == shape.depth) continue;
      switch (shape.activation) {
        case MemoryActivation::kSilu:
          z[j] /= 1 + std::exp(-z[j]);
          break;
        case MemoryActivation::kGeluTanh:
          z[j] *=
              0.5 * (1 + std::tanh(std::sqrt(2 / M_PI) * (z[j] + 0.044715 * std::pow(z[j], 3))));
          break;
        case MemoryActivation::kGeluErf:
          z[j] *= 0.5 * (1 + std::erf(z[j] / std::sqrt(2.0)));
          break;
      }
    }
    a = z;
  }
  const double e = static_cast<double>(shape.width);
  double mean = 0, squares = 0, loss = 0;
  if (shape.norm == MemoryNorm::kLayer) {
    for (const double f : a) mean += f / e;
  }
  for (const double f : a) squares += (f - mean) * (f - mean) / e;
  for (int64_t j = 0; j < shape.width; ++j) {
    double out = a[j];
    if (shape.norm != MemoryNorm::kNone) {
      out = (out - mean) / std::sqrt(squares + shape.eps) * memory.gain[j];
    }
    if (shape.residual) out += memory.k[j];
    loss += 0.5 * (out - memory.v[j]) * (out - memory.v[j]);
  }
  return loss;
}

TEST_P(TitansKernelsTest, TheGradientIsThatOfTheLoss) {
  for (const MemoryShape& shape : Shapes()) {
    if (shape.width > 11) continue;
    SCOPED_TRACE(Describe(shape));
    const Memory memory(shape, 1);
    std::vector<float> block = Gradient(*kernels_, memory, /*clip=*/0, 1);
    const Gradients gradients{block.data(), 1};
    EXPECT_EQ(gradients.Scale(shape)[0], 1);
    std::vector<std::vector<double>> weights;
    for (const auto& w : memory.weights) weights.emplace_back(w.begin(), w.end());
    double norm = 0;
    for (int64_t l = 0; l < shape.depth; ++l) {
      std::vector<float> expected, actual;
      for (int64_t i = 0; i < shape.Inputs(l); ++i) {
        for (int64_t j = 0; j < shape.Outputs(l); ++j) {
          double& w = weights[l][i * shape.Outputs(l) + j];
          const double old = w;
          w = old + 1e-5;
          const double up = Loss(memory, weights);
          w = old - 1e-5;
          const double down = Loss(memory, weights);
          w = old;
          expected.push_back(static_cast<float>((up - down) / 2e-5));
          actual.push_back(gradients.Input(shape, l)[i] * gradients.Delta(shape, l)[j]);
          norm += double(actual.back()) * actual.back();
        }
      }
      EXPECT_TRUE(AllClose(actual, expected, {1e-5, 1e-4})) << "matrix " << l;
    }
    // Clipped to half of its norm, and not at all where it is shorter.
    norm = std::sqrt(norm);
    const auto scale = [&](double clip) {
      std::vector<float> clipped = Gradient(*kernels_, memory, static_cast<float>(clip), 1);
      return Gradients{clipped.data(), 1}.Scale(shape)[0];
    };
    EXPECT_NEAR(scale(norm / 2), 0.5, 1e-5);
    EXPECT_EQ(scale(norm * 1.01), 1);
  }
}

struct Rates {
  std::vector<float> theta, eta, alpha;
};

Rates RandomRates(int64_t rows) {
  Random random(7);
  Rates rates;
  for (int64_t t = 0; t < rows; ++t) {
    rates.theta.push_back(std::abs(random.Unit()));
    rates.eta.push_back(0.95f * std::abs(random.Unit()));
    rates.alpha.push_back(0.3f * std::abs(random.Unit()));
  }
  return rates;
}

struct Update {
  std::vector<float> weights, momentum, y;
};

// `rows` steps on a matrix, in pieces.
Update Steps(const TitansKernels& kernels, int64_t inputs, int64_t outputs, int64_t rows,
             const Rates& rates, bool target, int64_t piece) {
  Random random(11);
  Update update{random.Floats(inputs * outputs), random.Floats(inputs * outputs),
                std::vector<float>(rows * outputs)};
  const std::vector<float> targets = random.Floats(inputs * outputs);
  const std::vector<float> input = random.Floats(rows * inputs);
  const std::vector<float> delta = random.Floats(rows * outputs);
  const int64_t stride = inputs + 3;
  const std::vector<float> x = random.Floats(rows * stride);
  for (int64_t t = 0; t < rows; t += piece) {
    kernels.step({.inputs = inputs,
                  .outputs = outputs,
                  .rows = std::min(piece, rows - t),
                  .input = input.data() + t * inputs,
                  .delta = delta.data() + t * outputs,
                  .theta = rates.theta.data() + t,
                  .eta = rates.eta.data() + t,
                  .alpha = rates.alpha.data() + t,
                  .target = target ? targets.data() : nullptr,
                  .weights = update.weights.data(),
                  .momentum = update.momentum.data(),
                  .x = {x.data() + t * stride, stride},
                  .y = update.y.data() + t * outputs});
  }
  return update;
}

constexpr std::pair<int64_t, int64_t> kMatrices[] = {{1, 1},   {5, 7},   {7, 5},
                                                     {10, 14}, {16, 24}, {33, 71}};

TEST_P(TitansKernelsTest, StepsAgreeWithTheReferenceHoweverTheyAreCut) {
  constexpr int64_t kRows = 11;
  const Rates rates = RandomRates(kRows);
  for (const auto& [inputs, outputs] : kMatrices) {
    for (const bool target : {false, true}) {
      SCOPED_TRACE(testing::Message() << inputs << " x " << outputs << ", target " << target);
      const Update expected =
          Steps(ReferenceTitansKernels(), inputs, outputs, kRows, rates, target, kRows);
      const Update whole = Steps(*kernels_, inputs, outputs, kRows, rates, target, kRows);
      EXPECT_TRUE(AllClose(whole.weights, expected.weights, kTolerance));
      EXPECT_TRUE(AllClose(whole.momentum, expected.momentum, kTolerance));
      EXPECT_TRUE(AllClose(whole.y, expected.y, kTolerance));
      for (const int64_t piece : {1, 3, 4, 6}) {
        const Update cut = Steps(*kernels_, inputs, outputs, kRows, rates, target, piece);
        EXPECT_TRUE(SameBits(cut.weights, whole.weights));
        EXPECT_TRUE(SameBits(cut.momentum, whole.momentum));
        EXPECT_TRUE(SameBits(cut.y, whole.y));
      }
    }
  }
}

struct CommitCase {
  float keep, carry, momentum_keep;
};

TEST_P(TitansKernelsTest, CommitsAgreeWithTheReference) {
  for (const auto& [inputs, outputs] : kMatrices) {
    for (const CommitCase& c : {CommitCase{0.8f, 0.3f, 0.6f}, {0, 0, 0}, {1, 0.5f, 0.9f}}) {
      for (const bool target : {false, true}) {
        SCOPED_TRACE(testing::Message() << inputs << " x " << outputs << ", keep " << c.keep);
        constexpr int64_t kRows = 6;
        Random random(13);
        const std::vector<float> weights = random.Floats(inputs * outputs);
        const std::vector<float> momentum = random.Floats(inputs * outputs);
        const std::vector<float> targets = random.Floats(inputs * outputs);
        const std::vector<float> input = random.Floats(kRows * inputs);
        const std::vector<float> delta = random.Floats(kRows * outputs);
        const std::vector<float> weight_rates = random.Floats(kRows);
        const std::vector<float> momentum_rates = random.Floats(kRows);
        const auto run = [&](const TitansKernels& kernels) {
          Update update{weights, momentum, {}};
          std::vector<float> scratch(2 * kRows * inputs, NAN);
          kernels.commit({.inputs = inputs,
                          .outputs = outputs,
                          .rows = kRows,
                          .input = input.data(),
                          .delta = delta.data(),
                          .weight_rates = weight_rates.data(),
                          .momentum_rates = momentum_rates.data(),
                          .keep = c.keep,
                          .carry = c.carry,
                          .momentum_keep = c.momentum_keep,
                          .target = target ? targets.data() : nullptr,
                          .weights = update.weights.data(),
                          .momentum = update.momentum.data(),
                          .scratch = scratch.data()});
          return update;
        };
        const Update expected = run(ReferenceTitansKernels()), actual = run(*kernels_);
        EXPECT_TRUE(AllClose(actual.weights, expected.weights, kTolerance));
        EXPECT_TRUE(AllClose(actual.momentum, expected.momentum, kTolerance));
      }
    }
  }
}

// With alpha 1 nothing of the old weights is left, with rates of 0 nothing changes: to the bit.
TEST_P(TitansKernelsTest, CommitsAreExactAtTheEnds) {
  Random random(17);
  const std::vector<float> old = random.Floats(5 * 7), target = random.Floats(5 * 7);
  const std::vector<float> input = random.Floats(5), delta = random.Floats(7), zero(1);
  std::vector<float> scratch(2 * 5);
  CommitArgs args{.inputs = 5,
                  .outputs = 7,
                  .rows = 1,
                  .input = input.data(),
                  .delta = delta.data(),
                  .weight_rates = zero.data(),
                  .momentum_rates = zero.data(),
                  .keep = 0,
                  .target = target.data(),
                  .scratch = scratch.data()};
  std::vector<float> weights = old, momentum(5 * 7);
  args.weights = weights.data();
  args.momentum = momentum.data();
  kernels_->commit(args);
  EXPECT_TRUE(SameBits(weights, target));
  weights = old;
  args.keep = 1;
  kernels_->commit(args);
  EXPECT_TRUE(SameBits(weights, old));
}

// What a memory of one matrix writes with a step of 1 it answers afterwards.
TEST_P(TitansKernelsTest, AFullStepStoresAPair) {
  const Memory memory({.depth = 1, .width = 11, .residual = false}, 1);
  std::vector<float> key(memory.k.begin(), memory.k.begin() + 11);
  double squares = 0;
  for (const float x : key) squares += double(x) * x;
  for (float& x : key) x = static_cast<float>(x / std::sqrt(squares));
  std::vector<float> block(Gradients::Elements(memory.shape, 1));
  const Gradients gradients{block.data(), 1};
  kernels_->gradient(memory.View(), {key.data(), 11}, memory.V(), 0, 1, 0, gradients);
  const float one = 1, zero = 0;
  std::vector<float> weights = memory.weights[0], momentum(121), y(11);
  kernels_->step({.inputs = 11,
                  .outputs = 11,
                  .rows = 1,
                  .input = gradients.Input(memory.shape, 0),
                  .delta = gradients.Delta(memory.shape, 0),
                  .theta = &one,
                  .eta = &zero,
                  .alpha = &zero,
                  .weights = weights.data(),
                  .momentum = momentum.data(),
                  .x = {key.data(), 11},
                  .y = y.data()});
  EXPECT_TRUE(AllClose(y, std::span(memory.v).first(11), kTolerance));
}

// Keys of zeros (their norm is divided by more than zero), and values of any finite size.
TEST_P(TitansKernelsTest, ExtremeRowsStayFinite) {
  std::vector<float> zeros(2 * 11);
  kernels_->normalize(zeros.data(), 2, 11);
  EXPECT_TRUE(SameBits(zeros, std::vector<float>(2 * 11)));
  for (const MemoryShape& shape : Shapes()) {
    for (const float size : {0.0f, 1e10f, 1e30f}) {
      SCOPED_TRACE(Describe(shape) + ", values of " + std::to_string(size));
      Memory memory(shape, 3);
      for (float& x : memory.v) x *= size;
      for (int64_t i = 0; i < shape.width; ++i) memory.k[i] = 0;
      std::vector<float> block = Gradient(*kernels_, memory, 1.0f, 3);
      const Gradients gradients{block.data(), 3};
      for (int64_t t = 0; t < 3; ++t) {
        const float scale = gradients.Scale(shape)[t];
        ASSERT_TRUE(scale >= 0 && scale <= 1) << scale;
        double squares = 0;
        for (int64_t l = 0; l < shape.depth; ++l) {
          for (int64_t i = 0; i < shape.Inputs(l); ++i) {
            for (int64_t j = 0; j < shape.Outputs(l); ++j) {
              const float input = gradients.Input(shape, l)[t * shape.Inputs(l) + i];
              const float delta = gradients.Delta(shape, l)[t * shape.Outputs(l) + j];
              squares += std::pow(double(scale) * input * delta, 2);
            }
          }
        }
        ASSERT_LE(std::sqrt(squares), 1.001);  // false for NaN
      }
    }
  }
}

TEST_P(TitansKernelsTest, ActivationsAreAccurate) {
  std::vector<float> z;
  for (int i = -2000; i <= 2000; ++i) z.push_back(static_cast<float>(i) * 0.01f);
  const auto expect = [&](MemoryActivation f, auto function) {
    std::vector<float> y = z, expected;
    kernels_->activate(f, y.data(), static_cast<int64_t>(y.size()));
    for (const double x : z) expected.push_back(static_cast<float>(function(x)));
    EXPECT_TRUE(AllClose(y, expected, {2e-6, 2e-6}));
    for (const float huge : {-1e30f, -1e10f, 1e10f, 1e30f}) {
      float x = huge;
      kernels_->activate(f, &x, 1);
      EXPECT_EQ(x, std::max(huge, 0.0f));
    }
  };
  expect(MemoryActivation::kSilu, [](double x) { return x / (1 + std::exp(-x)); });
  expect(MemoryActivation::kGeluErf, [](double x) { return 0.5 * x * std::erfc(-x / M_SQRT2); });
  expect(MemoryActivation::kGeluTanh, [](double x) {
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  });
}

TEST_P(TitansKernelsTest, ConvolutionsAndNorms) {
  for (const int64_t n : {1, 7, 24, 37}) {
    for (const int64_t K : {1, 3, 4}) {
      Random random(19);
      const std::vector<float> x = random.Floats(K * n), taps = random.Floats(K * n);
      std::vector<const float*> rows;
      for (int64_t k = 0; k < K; ++k) rows.push_back(x.data() + k * n);
      std::vector<float> y(n), expected(n);
      kernels_->convolve(rows.data(), taps.data(), K, n, y.data());
      for (int64_t c = 0; c < n; ++c) {
        double sum = 0;
        for (int64_t k = 0; k < K; ++k) sum += double(taps[k * n + c]) * x[k * n + c];
        expected[c] = static_cast<float>(sum / (1 + std::exp(-sum)));
      }
      EXPECT_TRUE(AllClose(y, expected, {1e-6, 1e-6}));
    }
    std::vector<float> x = Random(23).Floats(3 * n), expected = x;
    for (int64_t h = 0; h < 3; ++h) {
      double squares = 1e-6;
      for (int64_t i = 0; i < n; ++i) squares += double(x[h * n + i]) * x[h * n + i];
      for (int64_t i = 0; i < n; ++i) {
        expected[h * n + i] = static_cast<float>(x[h * n + i] / std::sqrt(squares));
      }
    }
    kernels_->normalize(x.data(), 3, n);
    EXPECT_TRUE(AllClose(x, expected, {1e-6, 1e-6}));
  }
}

TEST_P(TitansKernelsTest, AttentionIsASoftmaxOverAllRuns) {
  for (const int64_t hd : {2, 6, 8, 20, 40}) {
    constexpr int64_t kKeys = 37;
    Random random(29);
    const int64_t stride = hd + 5;
    const std::vector<float> k = random.Floats(kKeys * stride), v = random.Floats(kKeys * stride);
    const std::vector<float> plain = random.Floats(hd), rotated = random.Floats(hd);
    const auto attend = [&](const TitansKernels& kernels, std::vector<int64_t> ends) {
      std::vector<KeyRun> runs = {{k.data(), v.data(), stride, 3, false}};
      int64_t begin = 3;
      for (const int64_t end : ends) {
        runs.push_back({k.data() + begin * stride, v.data() + begin * stride, stride, end - begin});
        begin = end;
      }
      std::vector<float> out(hd), scores(ScoreElements(begin), NAN);
      kernels.attend(plain.data(), rotated.data(), runs, hd, 3.0f, scores.data(), out.data());
      return out;
    };
    const std::vector<float> whole = attend(*kernels_, {kKeys});
    EXPECT_TRUE(AllClose(whole, attend(ReferenceTitansKernels(), {kKeys}), kTolerance)) << hd;
    EXPECT_TRUE(SameBits(attend(*kernels_, {4, 9, kKeys}), whole));
    EXPECT_TRUE(SameBits(attend(*kernels_, {18, 18, kKeys}), whole));
    // One key: its value, whatever the score.
    EXPECT_TRUE(AllClose(attend(*kernels_, {}), attend(ReferenceTitansKernels(), {}), kTolerance));
  }
}

TEST_P(TitansKernelsTest, RowsComeBackAsTheStateTypeHoldsThem) {
  constexpr int64_t kRows = 3;
  // Beyond f16's range, a tie, a subnormal, below the smallest, both zeros.
  const float edges[] = {70000.0f, 1.00048828125f, 3e-6f, 1e-9f, 0.0f, -0.0f};
  for (const int64_t n : {1, 7, 8, 9, 33}) {
    const int64_t stride = n + 5;
    std::vector<float> x = Random(31).Floats(kRows * n);
    std::copy_n(edges, std::min<int64_t>(6, n), x.begin());
    for (const DType dtype : {DType::kF32, DType::kF16}) {
      const int64_t element = dtype == DType::kF16 ? 2 : 4;
      std::vector<float> expected = x;
      if (dtype == DType::kF16) {
        for (float& value : expected) value = HalfToFloat(FloatToHalf(value));
      }
      std::vector<std::byte> state(kRows * stride * element);
      for (int64_t j = 0; j < kRows; ++j) {
        kernels_->store(x.data() + j * n, dtype, n, state.data() + j * stride * element);
      }
      std::vector<float> loaded(kRows * n), rounded = x;
      kernels_->load(state.data(), dtype, stride, kRows, n, loaded.data());
      kernels_->round(rounded.data(), dtype, kRows * n);
      EXPECT_TRUE(SameBits(loaded, expected)) << n;
      EXPECT_TRUE(SameBits(rounded, expected)) << n;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, TitansKernelsTest, testing::ValuesIn(AllVariants()),
                         [](const auto& info) {
                           std::string name = info.param.Name();
                           std::replace(name.begin(), name.end(), '/', '_');
                           return name;
                         });

TEST(TitansKernelsTableTest, EveryBackendHasThem) {
  for (const Kernels* backend : AllBackends()) {
    ASSERT_NE(FindTitansKernels(backend->name), nullptr) << backend->name;
    EXPECT_EQ(FindTitansKernels(backend->name)->backend, backend->name);
  }
  EXPECT_EQ(FindTitansKernels("abacus"), nullptr);
}

}  // namespace
}  // namespace mneme::engine::titans
