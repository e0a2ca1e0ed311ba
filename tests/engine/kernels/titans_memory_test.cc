// Every backend and SIMD target against the equations and the scalar reference, and each against
// itself when rows are cut differently.
#include "engine/kernels/titans_memory.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/kernels/kernel_setup.h"
#include "tests/support/compare.h"

namespace mneme::engine {
namespace {

using test::AllClose;
using test::SameBits;

// Sums of up to 130 terms of order 1 in another order.
constexpr test::Tolerance kTolerance = {.absolute = 1e-5, .relative = 1e-5};

// Widths around the vectors', below them, odd, much wider inside, and a usual head; then every
// combination of options.
std::vector<TitansMemoryShape> Shapes() {
  std::vector<TitansMemoryShape> shapes;
  const std::pair<int64_t, int64_t> widths[] = {{1, 1},  {5, 7},   {10, 14}, {16, 24},
                                                {2, 90}, {33, 71}, {36, 68}};
  for (const auto& [e, h] : widths) {
    for (const int64_t depth : {1, 2, 3}) {
      shapes.push_back({.depth = depth, .width = e, .hidden = h, .eps = 1e-6f});
    }
  }
  for (const auto activation :
       {TitansActivation::kSilu, TitansActivation::kGeluTanh, TitansActivation::kGeluErf}) {
    for (const auto norm : {TitansNorm::kNone, TitansNorm::kRms, TitansNorm::kLayer}) {
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

std::string Describe(const TitansMemoryShape& s) {
  return "depth " + std::to_string(s.depth) + ", " + std::to_string(s.width) + " x " +
         std::to_string(s.hidden) + ", activation " + std::to_string(int(s.activation)) +
         ", norm " + std::to_string(int(s.norm)) + (s.residual ? ", residual" : "");
}

// A sequence with its state: random weights, momentum, rows and rates of every head.
struct Sequence {
  Sequence(const TitansMemoryShape& shape, int64_t heads, int64_t chunk, int64_t rows,
           uint32_t seed = 20240613)
      : shape(shape), heads(heads), chunk(chunk), rows(rows) {
    Random random(seed);
    for (int64_t l = 0; l < shape.depth; ++l) {
      committed.push_back(random.Floats(heads * shape.Elements(l)));
      // Activations of order 1 in every layer: a norm of tiny ones would amplify rounding.
      for (float& w : committed.back()) w *= 2.5f / std::sqrt(float(shape.Inputs(l)));
      momentum.push_back(random.Floats(heads * shape.Elements(l)));
      for (float& s : momentum.back()) s *= 0.1f;
      target.push_back(random.Floats(heads * shape.Elements(l)));
    }
    running = committed;
    gain = random.Floats(heads * shape.width);
    const int64_t width = heads * shape.width;
    q = random.Floats(rows * width);
    k = random.Floats(rows * width);
    v = random.Floats(rows * width);
    for (int64_t t = 0; t < rows; ++t) {
      for (const float largest : {0.1f, 0.9f, 0.3f}) {  // theta, eta, alpha
        for (int64_t h = 0; h < heads; ++h) rates.push_back(largest * std::abs(random.Unit()));
      }
    }
    y.assign(rows * width, -7.0f);
    pending_k.resize((chunk - 1) * width);
    pending_v.resize((chunk - 1) * width);
    pending_rates.resize((chunk - 1) * 3 * heads);
  }

  void SetRates(float theta, float eta, float alpha) {
    for (int64_t i = 0; i < std::ssize(rates); ++i) {
      const int64_t which = i / heads % 3;
      rates[i] = which == 0 ? theta : which == 1 ? eta : alpha;
    }
  }

  TitansMemoryLayer Layer(bool token_mode, float clip, bool decays_to_target) const {
    TitansMemoryLayer layer{.memory = shape,
                            .heads = heads,
                            .chunk_tokens = chunk,
                            .token_mode = token_mode,
                            .gradient_clip = clip,
                            .target = {},
                            .gain = shape.norm == TitansNorm::kNone ? nullptr : gain.data()};
    if (decays_to_target) {
      for (const auto& t : target) layer.target.push_back(t.data());
    }
    return layer;
  }

  TitansMemoryArgs Args(bool token_mode, int64_t first, int64_t count, bool write = true) {
    const int64_t at = first * heads * shape.width;
    TitansMemoryArgs args{.committed = Pointers(committed),
                          .momentum = Pointers(momentum),
                          .running = {},
                          .position = first,
                          .rows = count,
                          .q = q.data() + at,
                          .y = y.data() + at};
    if (token_mode) args.running = Pointers(running);
    if (!token_mode && chunk > 1) {
      args.pending_k = pending_k.data();
      args.pending_v = pending_v.data();
      args.pending_rates = pending_rates.data();
    }
    if (write) {
      args.k = k.data() + at;
      args.v = v.data() + at;
      args.rates = rates.data() + first * 3 * heads;
    }
    return args;
  }

  static std::vector<float*> Pointers(std::vector<std::vector<float>>& matrices) {
    std::vector<float*> pointers;
    for (auto& m : matrices) pointers.push_back(m.data());
    return pointers;
  }

  TitansMemoryShape shape;
  int64_t heads, chunk, rows;
  std::vector<std::vector<float>> committed, momentum, running, target;
  std::vector<float> gain, q, k, v, rates, y, pending_k, pending_v, pending_rates;
};

struct Options {
  bool token_mode = false;
  float clip = 0.5f;
  bool decays_to_target = true;
  int64_t piece = 1000;
  int threads = 1;
};

// All rows of all sequences, each call with `piece` rows of each.
void Feed(const Variant& variant, std::span<Sequence> sequences, const Options& options) {
  variant.Select();
  KernelExec exec(*variant.kernels, Contract::kF32, options.threads);
  const Sequence& first = sequences.front();
  const TitansMemoryLayer layer =
      first.Layer(options.token_mode, options.clip, options.decays_to_target);
  for (int64_t t = 0; t < first.rows; t += options.piece) {
    std::vector<TitansMemoryArgs> batch;
    for (Sequence& s : sequences) {
      batch.push_back(s.Args(options.token_mode, t, std::min(options.piece, first.rows - t)));
    }
    variant.kernels->titans_memory(exec, layer, batch);
  }
}

Sequence Feed(const Variant& variant, Sequence sequence, const Options& options) {
  Feed(variant, {&sequence, 1}, options);
  return sequence;
}

void ExpectSameBits(const Sequence& actual, const Sequence& expected) {
  for (int64_t l = 0; l < expected.shape.depth; ++l) {
    EXPECT_TRUE(SameBits(actual.committed[l], expected.committed[l]));
    EXPECT_TRUE(SameBits(actual.momentum[l], expected.momentum[l]));
    EXPECT_TRUE(SameBits(actual.running[l], expected.running[l]));
  }
  EXPECT_TRUE(SameBits(actual.y, expected.y));
  EXPECT_TRUE(SameBits(actual.pending_k, expected.pending_k));
  EXPECT_TRUE(SameBits(actual.pending_v, expected.pending_v));
  EXPECT_TRUE(SameBits(actual.pending_rates, expected.pending_rates));
}

void ExpectClose(const Sequence& actual, const Sequence& expected) {
  for (int64_t l = 0; l < expected.shape.depth; ++l) {
    EXPECT_TRUE(AllClose(actual.committed[l], expected.committed[l], kTolerance));
    EXPECT_TRUE(AllClose(actual.momentum[l], expected.momentum[l], kTolerance));
    EXPECT_TRUE(AllClose(actual.running[l], expected.running[l], kTolerance));
  }
  EXPECT_TRUE(AllClose(actual.y, expected.y, kTolerance));
}

class TitansMemoryTest : public testing::TestWithParam<Variant> {
 protected:
  void TearDown() override { PinSimdTarget(""); }
  static Sequence Feed(Sequence sequence, const Options& options) {
    return engine::Feed(GetParam(), std::move(sequence), options);
  }
};

TEST_P(TitansMemoryTest, AgreesWithTheReference) {
  for (const TitansMemoryShape& shape : Shapes()) {
    for (const bool token_mode : {false, true}) {
      SCOPED_TRACE(Describe(shape) + (token_mode ? ", token mode" : ", chunks"));
      const Sequence sequence(shape, 2, 5, 9);
      const Options options{.token_mode = token_mode, .decays_to_target = shape.depth != 2};
      const Sequence actual = Feed(sequence, options);
      const Sequence expected = engine::Feed(AllVariants().front(), sequence, options);
      ExpectClose(actual, expected);
    }
  }
}

TEST_P(TitansMemoryTest, LongChunksAgreeWithTheReference) {
  for (const bool token_mode : {false, true}) {
    SCOPED_TRACE(token_mode ? "token mode" : "chunks");
    const Sequence sequence({.depth = 2, .width = 10, .hidden = 14}, 2, 70, 75);
    const Options options{.token_mode = token_mode, .piece = 40};
    ExpectClose(Feed(sequence, options), engine::Feed(AllVariants().front(), sequence, options));
  }
}

TEST_P(TitansMemoryTest, CutsThreadsAndNeighboursChangeNoBits) {
  for (const TitansMemoryShape& shape : Shapes()) {
    // Emulation is slow, and activations have no part in how rows are cut.
    if (GetParam().kernels->name == "cuda-emu" && shape.activation != TitansActivation::kSilu) {
      continue;
    }
    for (const bool token_mode : {false, true}) {
      for (const int64_t chunk : {1, 6}) {
        const Sequence sequence(shape, 2, chunk, 14);
        const Sequence whole = Feed(sequence, {.token_mode = token_mode});
        for (const auto& [piece, threads] : {std::pair{1, 1}, {2, 3}, {5, 2}, {8, 1}}) {
          SCOPED_TRACE(Describe(shape) + (token_mode ? ", token mode" : ", chunks") +
                       ", pieces of " + std::to_string(piece));
          std::vector<Sequence> sequences{Sequence(shape, 2, chunk, 14, /*seed=*/7), sequence};
          sequences[0].gain = sequence.gain;
          sequences[0].target = sequence.target;
          engine::Feed(GetParam(), sequences,
                       {.token_mode = token_mode, .piece = piece, .threads = threads});
          ExpectSameBits(sequences[1], whole);
        }
      }
    }
  }
}

using Weights = std::vector<std::vector<double>>;

Weights InDouble(const std::vector<std::vector<float>>& weights) {
  Weights result;
  for (const auto& w : weights) result.emplace_back(w.begin(), w.end());
  return result;
}

double Activate(TitansActivation f, double z) {
  switch (f) {
    case TitansActivation::kSilu:
      return z / (1 + std::exp(-z));
    case TitansActivation::kGeluTanh:
      return 0.5 * z * (1 + std::tanh(std::sqrt(2 / M_PI) * (z + 0.044715 * z * z * z)));
    case TitansActivation::kGeluErf:
      return 0.5 * z * std::erfc(-z / M_SQRT2);
  }
  return NAN;
}

// M(x) of a memory of one head, in double from the definition.
std::vector<double> Answer(const Sequence& s, const Weights& weights, const float* x) {
  const TitansMemoryShape& shape = s.shape;
  std::vector<double> a(x, x + shape.width);
  for (int64_t l = 0; l < shape.depth; ++l) {
    std::vector<double> z(shape.Outputs(l));
    for (size_t j = 0; j < z.size(); ++j) {
      for (size_t i = 0; i < a.size(); ++i) z[j] += a[i] * weights[l][i * z.size() + j];
      if (l + 1 < shape.depth) z[j] = Activate(shape.activation, z[j]);
    }
    a = z;
  }
  const double e = static_cast<double>(shape.width);
  double mean = 0, squares = 0;
  if (shape.norm == TitansNorm::kLayer) {
    for (const double f : a) mean += f / e;
  }
  for (const double f : a) squares += (f - mean) * (f - mean) / e;
  for (int64_t j = 0; j < shape.width; ++j) {
    if (shape.norm != TitansNorm::kNone) {
      a[j] = (a[j] - mean) / std::sqrt(squares + shape.eps) * s.gain[j];
    }
    if (shape.residual) a[j] += x[j];
  }
  return a;
}

// 1/2 |M(k) - v|^2 of row t.
double Loss(const Sequence& s, const Weights& weights, int64_t t) {
  const int64_t e = s.shape.width;
  double loss = 0;
  const std::vector<double> answer = Answer(s, weights, s.k.data() + t * e);
  for (int64_t j = 0; j < e; ++j) loss += 0.5 * std::pow(answer[j] - s.v[t * e + j], 2);
  return loss;
}

// By differences.
Weights GradientOfTheLoss(const Sequence& s, Weights weights, int64_t t) {
  Weights gradient = weights;
  for (size_t l = 0; l < weights.size(); ++l) {
    for (size_t i = 0; i < weights[l].size(); ++i) {
      double& w = weights[l][i];
      const double old = w;
      w = old + 1e-5;
      const double up = Loss(s, weights, t);
      w = old - 1e-5;
      const double down = Loss(s, weights, t);
      w = old;
      gradient[l][i] = (up - down) / 2e-5;
    }
  }
  return gradient;
}

// With theta 1 and eta 0, what is left in the momentum is minus the gradient.
TEST_P(TitansMemoryTest, TheGradientIsThatOfTheLoss) {
  for (const TitansMemoryShape& shape : Shapes()) {
    if (shape.width > 11) continue;
    Sequence sequence(shape, 1, 1, 1);
    sequence.SetRates(1, 0, 0);
    const Weights expected = GradientOfTheLoss(sequence, InDouble(sequence.committed), 0);
    for (const bool token_mode : {false, true}) {
      SCOPED_TRACE(Describe(shape) + (token_mode ? ", token mode" : ", chunks"));
      const auto momentum = [&](double clip) {
        return Feed(sequence, {.token_mode = token_mode, .clip = float(clip)}).momentum;
      };
      double squares = 0;
      const std::vector<std::vector<float>> whole = momentum(0);
      for (int64_t l = 0; l < shape.depth; ++l) {
        std::vector<float> gradient;
        for (const double g : expected[l]) gradient.push_back(static_cast<float>(-g));
        EXPECT_TRUE(AllClose(whole[l], gradient, {1e-5, 1e-4})) << "matrix " << l;
        for (const float g : whole[l]) squares += double(g) * g;
      }
      // Clipped to half of its length, and not at all where it is shorter.
      const double norm = std::sqrt(squares);
      const auto half = momentum(norm / 2), unclipped = momentum(norm * 1.01);
      for (int64_t l = 0; l < shape.depth; ++l) {
        std::vector<float> halved = whole[l];
        for (float& g : halved) g /= 2;
        EXPECT_TRUE(AllClose(half[l], halved, kTolerance));
        EXPECT_TRUE(SameBits(unclipped[l], whole[l]));
      }
    }
  }
}

// Chunks and single tokens against the recurrences, row by row in double.
TEST_P(TitansMemoryTest, WritesAsTheRecurrencesSay) {
  for (const int64_t depth : {1, 2}) {
    for (const bool residual : {false, true}) {
      for (const bool decays_to_target : {false, true}) {
        for (const bool token_mode : {false, true}) {
          SCOPED_TRACE(testing::Message() << "depth " << depth << ", residual " << residual
                                          << ", token mode " << token_mode);
          const TitansMemoryShape shape{
              .depth = depth, .width = 6, .hidden = 9, .residual = residual};
          constexpr int64_t kChunk = 4, kRows = 10;  // a chunk is left unfinished
          const Sequence before(shape, 1, kChunk, kRows);
          const Sequence after = Feed(before, {.token_mode = token_mode,
                                               .clip = 0,
                                               .decays_to_target = decays_to_target,
                                               .piece = 3});
          Weights committed = InDouble(before.committed), running = committed,
                  momentum = InDouble(before.momentum), committed_momentum = momentum;
          std::vector<float> y;
          for (int64_t t = 0; t < kRows; ++t) {
            const Weights gradient = GradientOfTheLoss(before, committed, t);
            const float theta = before.rates[3 * t], eta = before.rates[3 * t + 1],
                        alpha = before.rates[3 * t + 2];
            for (int64_t l = 0; l < depth; ++l) {
              for (size_t i = 0; i < running[l].size(); ++i) {
                double& w = running[l][i];
                double& s = momentum[l][i];
                s = eta * s - theta * gradient[l][i];
                w += s + alpha * ((decays_to_target ? before.target[l][i] : 0.0) - w);
              }
            }
            for (const double a :
                 Answer(before, token_mode ? running : committed, before.q.data() + t * 6)) {
              y.push_back(static_cast<float>(a));
            }
            if (t % kChunk == kChunk - 1) {
              committed = running;
              committed_momentum = momentum;
            }
          }
          const auto expect = [&](const std::vector<std::vector<float>>& actual,
                                  const Weights& expected) {
            for (int64_t l = 0; l < depth; ++l) {
              const std::vector<float> floats(expected[l].begin(), expected[l].end());
              EXPECT_TRUE(AllClose(actual[l], floats, {2e-5, 2e-5}));
            }
          };
          EXPECT_TRUE(AllClose(after.y, y, {2e-5, 2e-5}));
          expect(after.committed, committed);
          expect(after.momentum, token_mode ? momentum : committed_momentum);
          if (token_mode) expect(after.running, running);
        }
      }
    }
  }
}

// With alpha 1 nothing of the old weights is left, with rates of 0 nothing changes: to the bit.
TEST_P(TitansMemoryTest, WritesAreExactAtTheEnds) {
  for (const bool token_mode : {false, true}) {
    Sequence sequence({.depth = 2, .width = 5, .hidden = 7}, 2, 3, 3);
    const Options options{.token_mode = token_mode};
    sequence.SetRates(0, 0, 0);
    const Sequence kept = Feed(sequence, options);
    sequence.SetRates(0, 0, 1);
    const Sequence decayed = Feed(sequence, options);
    for (int64_t l = 0; l < 2; ++l) {
      EXPECT_TRUE(SameBits(kept.committed[l], sequence.committed[l]));
      if (token_mode) {
        EXPECT_TRUE(AllClose(decayed.committed[l], sequence.target[l], {1e-6, 1e-6}));
      } else {
        EXPECT_TRUE(SameBits(decayed.committed[l], sequence.target[l]));
      }
    }
  }
}

// What a memory of one matrix writes with a step of 1 it answers afterwards.
TEST_P(TitansMemoryTest, AFullStepStoresAPair) {
  Sequence sequence({.depth = 1, .width = 11, .residual = false}, 1, 1, 1);
  double squares = 0;
  for (const float x : sequence.k) squares += double(x) * x;
  for (float& x : sequence.k) x = static_cast<float>(x / std::sqrt(squares));
  sequence.q = sequence.k;
  sequence.SetRates(1, 0, 0);
  const Sequence after = Feed(sequence, {.token_mode = true, .clip = 0});
  EXPECT_TRUE(AllClose(after.y, sequence.v, kTolerance));
}

// Without keys a memory is read and not written: the committed weights, or the running ones.
TEST_P(TitansMemoryTest, ReadingLeavesTheState) {
  for (const TitansMemoryShape& shape : Shapes()) {
    for (const bool token_mode : {false, true}) {
      SCOPED_TRACE(Describe(shape));
      Sequence sequence(shape, 1, 4, 9);
      for (auto& w : sequence.running) {
        for (float& x : w) x *= 0.9f;
      }
      const Sequence before = sequence;
      GetParam().Select();
      KernelExec exec(*GetParam().kernels, Contract::kF32, 1);
      const TitansMemoryArgs args = sequence.Args(token_mode, 0, 9, /*write=*/false);
      GetParam().kernels->titans_memory(exec, sequence.Layer(token_mode, 1, true), {&args, 1});
      std::vector<float> y;
      for (int64_t t = 0; t < 9; ++t) {
        for (const double a :
             Answer(before, InDouble(token_mode ? before.running : before.committed),
                    before.q.data() + t * shape.width)) {
          y.push_back(static_cast<float>(a));
        }
      }
      EXPECT_TRUE(AllClose(sequence.y, y, {1e-5, 1e-4}));
      sequence.y = before.y;
      ExpectSameBits(sequence, before);
    }
  }
}

// Keys of zeros and values of any finite size: a clipped step is never longer than the clip.
TEST_P(TitansMemoryTest, ExtremeRowsStayFinite) {
  for (const TitansMemoryShape& shape : Shapes()) {
    for (const bool token_mode : {false, true}) {
      for (const float size : {0.0f, 1e10f, 1e30f}) {
        for (const bool zero_key : {false, true}) {
          SCOPED_TRACE(Describe(shape) + ", values of " + std::to_string(size));
          Sequence sequence(shape, 1, 1, 1);
          for (float& x : sequence.v) x *= size;
          if (zero_key) std::fill(sequence.k.begin(), sequence.k.end(), 0.0f);
          sequence.SetRates(1, 0, 0);
          double squares = 0;
          const Sequence after = Feed(sequence, {.token_mode = token_mode, .clip = 1});
          for (const auto& s : after.momentum) {
            for (const float x : s) squares += double(x) * x;
          }
          ASSERT_LE(std::sqrt(squares), 1.001);  // false for NaN
        }
      }
    }
  }
}

// Through two matrices of ones on the diagonal.
TEST_P(TitansMemoryTest, ActivationsAreAccurate) {
  for (const int64_t n : {1, 16}) {
    for (const auto f :
         {TitansActivation::kSilu, TitansActivation::kGeluTanh, TitansActivation::kGeluErf}) {
      const int64_t rows = 4032 / n;
      Sequence sequence({.depth = 2, .width = n, .hidden = n, .activation = f, .residual = false},
                        1, 1, rows);
      for (auto& w : sequence.committed) {
        for (int64_t i = 0; i < n * n; ++i) w[i] = i % (n + 1) == 0 ? 1.0f : 0.0f;
      }
      std::vector<float> expected;
      for (int64_t i = 0; i < rows * n; ++i) {
        sequence.q[i] = static_cast<float>(i - rows * n / 2) * 0.01f;
        expected.push_back(static_cast<float>(Activate(f, sequence.q[i])));
      }
      const float huge[] = {-1e30f, -1e10f, 1e10f, 1e30f};
      for (int64_t i = 0; i < 4; ++i) {  // each alone in its row
        std::fill_n(sequence.q.begin() + i * n, n, 0.0f);
        std::fill_n(expected.begin() + i * n, n, 0.0f);
        sequence.q[i * n] = huge[i];
        expected[i * n] = std::max(huge[i], 0.0f);
      }
      GetParam().Select();
      KernelExec exec(*GetParam().kernels, Contract::kF32, 1);
      const TitansMemoryArgs args = sequence.Args(false, 0, rows, /*write=*/false);
      GetParam().kernels->titans_memory(exec, sequence.Layer(false, 0, false), {&args, 1});
      EXPECT_TRUE(AllClose(sequence.y, expected, {2e-6, 2e-6}));
      for (int64_t i = 0; i < 4; ++i) EXPECT_EQ(sequence.y[i * n], expected[i * n]);
    }
  }
}

TEST_P(TitansMemoryTest, RatesAreGatesOfTheirLogits) {
  constexpr int64_t kHeads = 3, kRows = 50;
  for (const bool forget : {false, true}) {
    for (const float floor : {0.0f, 0.25f}) {
      std::vector<float> z = Random(3).Floats(kRows * 3 * kHeads), expected;
      for (float& x : z) x *= 20;
      for (int64_t i = 0; i < std::ssize(z); ++i) {
        const double s = 1 / (1 + std::exp(-double(z[i])));
        const double gate = std::max(0.0, s - floor) / (1 - floor);
        const int64_t which = i / kHeads % 3;
        expected.push_back(static_cast<float>(which == 0   ? 0.5 * gate
                                              : which == 1 ? 0.9 * s
                                              : forget     ? gate
                                                           : 0));
      }
      GetParam().Select();
      KernelExec exec(*GetParam().kernels, Contract::kF32, 2);
      GetParam().kernels->titans_rates(exec,
                                       {.heads = kHeads,
                                        .theta_max = 0.5f,
                                        .eta_max = 0.9f,
                                        .gate_floor = floor,
                                        .forget = forget},
                                       kRows, z.data());
      EXPECT_TRUE(AllClose(z, expected, {1e-6, 1e-6}));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, TitansMemoryTest, testing::ValuesIn(AllVariants()),
                         [](const auto& info) { return ParameterName(info.param.Name()); });

}  // namespace
}  // namespace mneme::engine
