// The kernels of recurrent networks on every backend and SIMD target against the reference:
// layer_norm.h, activation.h, token_shift.h, wkv.h. Sizes are around and between vectors' lanes.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/kernels/kernel_setup.h"
#include "tests/support/compare.h"

namespace mneme::engine {
namespace {

using test::AllClose;
using test::SameBits;
using test::Tolerance;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Sums of up to 100 products of numbers below 1 in another order, exponentials within 2 ulp.
constexpr Tolerance kClose{.absolute = 2e-6, .relative = 2e-6};

class RecurrentTest : public ::testing::Test {
 protected:
  ~RecurrentTest() override { PinSimdTarget(""); }

  const Kernels& reference_ = *FindBackend("reference");
};

std::vector<float> Scaled(std::vector<float> values, float scale, float shift = 0) {
  for (float& x : values) x = x * scale + shift;
  return values;
}

// Runs `body(kernels, exec, name)` for every variant, the reference included.
template <typename Body>
void ForEachVariant(Body body) {
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    variant.Select();
    KernelExec exec(*variant.kernels, Contract::kF32, 2);
    body(*variant.kernels, exec);
  }
}

struct Shape {
  int64_t heads, head_size;
  int64_t C() const { return heads * head_size; }
};
const Shape kShapes[] = {{1, 1},  {3, 4},  {2, 7},   {1, 8},   {3, 12}, {3, 20},
                         {2, 33}, {5, 64}, {1, 100}, {1, 130}, {1, 260}};
constexpr int64_t kT = 9;
// Scans sum over a head, the widest over more than kClose is for.
Tolerance CloseFor(const Shape& shape) {
  const double times = std::max(1.0, static_cast<double>(shape.head_size) / 100);
  return {kClose.absolute * times, kClose.relative * times};
}

TEST_F(RecurrentTest, LayerAndGroupNorm) {
  const std::pair<int64_t, int64_t> sizes[] = {{1, 1},  {7, 1},   {8, 1},   {36, 3},   {60, 3},
                                               {66, 2}, {100, 1}, {576, 9}, {1000, 1}, {2048, 32}};
  ForEachVariant([&](const Kernels& kernels, Exec& exec) {
    for (const auto& [D, groups] : sizes) {
      for (const int64_t T : {1, 40}) {
        const std::vector<float> x = Scaled(Random(1).Floats(T * D), 3, 5);
        const std::vector<float> w = Random(2).Floats(D), b = Random(3).Floats(D);
        const int64_t n = D / groups;
        std::vector<float> expected(T * D), y(T * D);
        for (int64_t part = 0; part < T * groups; ++part) {
          double mean = 0, variance = 0;
          for (int64_t i = 0; i < n; ++i) mean += x[part * n + i] / static_cast<double>(n);
          for (int64_t i = 0; i < n; ++i) {
            variance += std::pow(x[part * n + i] - mean, 2) / static_cast<double>(n);
          }
          for (int64_t i = 0; i < n; ++i) {
            const int64_t c = part % groups * n + i;
            expected[part * n + i] = static_cast<float>(
                (x[part * n + i] - mean) / std::sqrt(variance + 1e-5f) * w[c] + b[c]);
          }
        }
        const LayerNormArgs args{.x = x.data(),
                                 .w = w.data(),
                                 .b = b.data(),
                                 .eps = 1e-5f,
                                 .T = T,
                                 .D = D,
                                 .groups = groups,
                                 .y = y.data()};
        kernels.layer_norm(exec, args);
        ASSERT_TRUE(AllClose(y, expected, {4e-6, 4e-6})) << "D " << D << " groups " << groups;
        // The last row on its own, in place.
        std::vector<float> last(x.end() - D, x.end());
        kernels.layer_norm(exec, {.x = last.data(),
                                  .w = w.data(),
                                  .b = b.data(),
                                  .eps = 1e-5f,
                                  .T = 1,
                                  .D = D,
                                  .groups = groups,
                                  .y = last.data()});
        ASSERT_TRUE(SameBits(last, std::span(y).last(D))) << "D " << D << " groups " << groups;
      }
    }
  });
}

// Both lose what a mean of 4096 takes from 24 bits, and no more.
TEST_F(RecurrentTest, NormOfRowsFarFromZero) {
  const int64_t D = 100;
  const std::vector<float> x = Scaled(Random(4).Floats(D), 1, 4096);
  const std::vector<float> w(D, 1.0f), b(D, 0.0f);
  std::vector<float> expected(D), y(D);
  KernelExec plain(reference_, Contract::kF32, 1);
  LayerNormArgs args{.x = x.data(),
                     .w = w.data(),
                     .b = b.data(),
                     .eps = 1e-5f,
                     .T = 1,
                     .D = D,
                     .y = expected.data()};
  reference_.layer_norm(plain, args);
  args.y = y.data();
  ForEachVariant([&](const Kernels& kernels, Exec& exec) {
    kernels.layer_norm(exec, args);
    ASSERT_TRUE(AllClose(y, expected, {2e-3, 0}));
  });
}

constexpr Activation kActivations[] = {Activation::kSigmoid, Activation::kTanh,
                                       Activation::kReluSquared, Activation::kDecay};

TEST_F(RecurrentTest, ActivationsEqualTheirFormulas) {
  ForEachVariant([&](const Kernels& kernels, Exec& exec) {
    for (const Activation f : kActivations) {
      for (const size_t n : {1, 7, 8, 9, 33, 5003}) {
        for (const float scale : {1.0f, 4.0f, 30.0f}) {
          const std::vector<float> x = Scaled(Random(5).Floats(n), scale);
          std::vector<float> expected(n), y(n);
          for (size_t i = 0; i < n; ++i) expected[i] = static_cast<float>(Exact(f, x[i]));
          kernels.activate(exec, f, x.data(), static_cast<int64_t>(n), y.data());
          ASSERT_TRUE(AllClose(y, expected, {3e-7, 3e-7})) << static_cast<int>(f) << " n " << n;
          // Place in the array, and in place.
          std::vector<float> one = {x[n - 1]};
          kernels.activate(exec, f, one.data(), 1, one.data());
          ASSERT_TRUE(SameBits(one, std::span(y).last(1))) << static_cast<int>(f) << " n " << n;
        }
      }
    }
  });
}

TEST_F(RecurrentTest, ActivationsAtTheEdges) {
  const std::vector<float> x = {0, 200, -200, kInfinity, -kInfinity, kNaN, -0.0f, 89, -104};
  ForEachVariant([&](const Kernels& kernels, Exec& exec) {
    for (const Activation f : kActivations) {
      std::vector<float> y(x.size());
      kernels.activate(exec, f, x.data(), static_cast<int64_t>(x.size()), y.data());
      for (size_t i = 0; i < x.size(); ++i) {
        if (std::isnan(x[i])) {
          EXPECT_TRUE(std::isnan(y[i])) << static_cast<int>(f);
          continue;
        }
        const auto exact = static_cast<float>(Exact(f, x[i]));
        EXPECT_TRUE(AllClose({&y[i], 1}, {&exact, 1}, {2e-7, 1e-6}))
            << static_cast<int>(f) << " of " << x[i];
      }
    }
  });
}

TEST_F(RecurrentTest, MulMultiplies) {
  ForEachVariant([&](const Kernels& kernels, Exec& exec) {
    for (const size_t n : {1, 7, 8, 33, 20011}) {
      const std::vector<float> x = Random(6).Floats(n), before = Random(7).Floats(n);
      std::vector<float> y = before;
      kernels.mul(exec, x.data(), static_cast<int64_t>(n), y.data());
      for (size_t i = 0; i < n; ++i) ASSERT_EQ(y[i], before[i] * x[i]);
    }
  });
}

TEST_F(RecurrentTest, TokenShiftIsTheRowBefore) {
  ForEachVariant([&](const Kernels& kernels, Exec& exec) {
    for (const int64_t C : {1, 7, 12, 64, 100, 3001}) {
      const std::vector<float> x = Random(8).Floats(kT * C), state = Random(9).Floats(3 * C);
      std::vector<float> delta(kT * C), previous = state;
      // Three sequences of 3, 1 and 5 tokens.
      const TokenShiftArgs batch[] = {
          {x.data(), previous.data(), delta.data(), 3, C},
          {x.data() + 3 * C, previous.data() + C, delta.data() + 3 * C, 1, C},
          {x.data() + 4 * C, previous.data() + 2 * C, delta.data() + 4 * C, 5, C}};
      kernels.token_shift(exec, std::span(batch));
      for (int64_t t = 0; t < kT; ++t) {
        const float* before = t == 0   ? state.data()
                              : t == 3 ? state.data() + C
                              : t == 4 ? state.data() + 2 * C
                                       : &x[(t - 1) * C];
        for (int64_t c = 0; c < C; ++c) ASSERT_EQ(delta[t * C + c], before[c] - x[t * C + c]);
      }
      ASSERT_TRUE(SameBits(std::span(previous).first(2 * C), std::span(x).subspan(2 * C, 2 * C)));
      ASSERT_TRUE(SameBits(std::span(previous).last(C), std::span(x).last(C)));
    }
  });
}

TEST_F(RecurrentTest, LerpBlendsWithFixedAndDynamicShares) {
  ForEachVariant([&](const Kernels& kernels, Exec& exec) {
    for (const int64_t C : {1, 7, 12, 64, 100, 3001}) {
      for (const bool has_dynamic : {false, true}) {
        const int64_t stride = C + 3;
        const std::vector<float> x = Random(10).Floats(kT * C), delta = Random(11).Floats(kT * C);
        const std::vector<float> mu = Random(12).Floats(C),
                                 dynamic = Random(13).Floats(kT * stride);
        std::vector<float> expected(kT * C), y(kT * C);
        for (int64_t i = 0; i < kT * C; ++i) {
          const double share = static_cast<double>(mu[i % C]) +
                               (has_dynamic ? dynamic[i / C * stride + i % C] : 0.0);
          expected[i] = static_cast<float>(x[i] + delta[i] * share);
        }
        // Beside another one of the same rows.
        const std::vector<float> zeros(C);
        std::vector<float> unchanged(kT * C);
        const LerpArgs blend{.x = x.data(),
                             .delta = delta.data(),
                             .mu = mu.data(),
                             .dynamic = has_dynamic ? dynamic.data() : nullptr,
                             .dynamic_stride = stride,
                             .T = kT,
                             .C = C,
                             .y = y.data()};
        LerpArgs other = blend;
        other.mu = zeros.data();
        other.dynamic = nullptr;
        other.y = unchanged.data();
        kernels.lerp(exec, std::vector{blend, other});
        ASSERT_TRUE(AllClose(y, expected, {3e-7, 0})) << "C " << C;
        ASSERT_EQ(unchanged, x) << "C " << C;
      }
    }
  });
}

// What a scan gives: outputs of all tokens, then the state behind them.
struct Scan {
  std::vector<float> y, state;
};

// `run` scans tokens [begin, end) on a state that it changes. All at once must equal the reference
// within `tolerance`, and token by token must give the same bits.
template <typename Run>
void CheckScan(const Kernels& reference, const std::vector<float>& start, int64_t C,
               Tolerance tolerance, Run run) {
  KernelExec plain(reference, Contract::kF32, 1);
  Scan expected{std::vector<float>(kT * C), start};
  run(reference, plain, 0, kT, expected);
  ForEachVariant([&](const Kernels& kernels, Exec& exec) {
    Scan whole{std::vector<float>(kT * C), start}, pieces = whole;
    run(kernels, exec, 0, kT, whole);
    EXPECT_TRUE(AllClose(whole.y, expected.y, tolerance)) << "C " << C;
    EXPECT_TRUE(AllClose(whole.state, expected.state, tolerance)) << "C " << C;
    for (int64_t t = 0; t < kT; ++t) run(kernels, exec, t, t + 1, pieces);
    EXPECT_TRUE(SameBits(pieces.y, whole.y)) << "C " << C;
    EXPECT_TRUE(SameBits(pieces.state, whole.state)) << "C " << C;
  });
}

TEST_F(RecurrentTest, Wkv4) {
  for (const int64_t C : {1, 7, 8, 12, 63, 64, 65, 200}) {
    for (const bool fresh : {true, false}) {
      const std::vector<float> k = Scaled(Random(20).Floats(kT * C), 20);
      const std::vector<float> v = Random(21).Floats(kT * C);
      const std::vector<float> decay = Scaled(Random(22).Floats(C), 2, -2.01f);
      const std::vector<float> bonus = Scaled(Random(23).Floats(C), 3);
      std::vector<float> start(3 * C);
      for (int64_t c = 0; c < C; ++c) {
        start[c] = fresh ? 0 : v[c];
        start[C + c] = fresh ? 0 : 1;
        start[2 * C + c] = fresh ? -1e30f : k[c];
      }
      CheckScan(reference_, start, C, kClose,
                [&](const Kernels& kernels, Exec& exec, int64_t begin, int64_t end, Scan& scan) {
                  float* state = scan.state.data();
                  const Wkv4Args args{.numerator = state,
                                      .denominator = state + C,
                                      .exponent = state + 2 * C,
                                      .decay = decay.data(),
                                      .bonus = bonus.data(),
                                      .k = k.data() + begin * C,
                                      .v = v.data() + begin * C,
                                      .y = scan.y.data() + begin * C,
                                      .T = end - begin,
                                      .C = C};
                  kernels.wkv4(exec, {&args, 1});
                });
    }
  }
}

// Keys whose exponentials overflow, and a decay that forgets at once.
TEST_F(RecurrentTest, Wkv4AtTheEdges) {
  const int64_t C = 10, T = 4;
  std::vector<float> k(T * C), v = Random(24).Floats(T * C), bonus(C, 0.0f);
  for (int64_t i = 0; i < T * C; ++i) k[i] = i % 2 == 0 ? 1e4f : -1e4f;
  std::vector<float> decay(C, -0.5f);
  decay[3] = decay[4] = -kInfinity;
  ForEachVariant([&](const Kernels& kernels, Exec& exec) {
    std::vector<float> a(C), b(C), p(C, -1e30f), y(T * C);
    const Wkv4Args args{.numerator = a.data(),
                        .denominator = b.data(),
                        .exponent = p.data(),
                        .decay = decay.data(),
                        .bonus = bonus.data(),
                        .k = k.data(),
                        .v = v.data(),
                        .y = y.data(),
                        .T = T,
                        .C = C};
    kernels.wkv4(exec, {&args, 1});
    for (const std::vector<float>* values : {&a, &b, &p, &y}) {
      for (const float x : *values) ASSERT_TRUE(std::isfinite(x)) << x;
    }
    for (int64_t c = 0; c < C; ++c) EXPECT_EQ(y[c], v[c]) << "a mean of one value";
    EXPECT_EQ(a[3], v[(T - 1) * C + 3]);
    EXPECT_EQ(b[3], 1);
  });
}

TEST_F(RecurrentTest, Wkv6WithFixedAndDynamicDecay) {
  for (const Shape& shape : kShapes) {
    const int64_t C = shape.C();
    for (const bool dynamic : {false, true}) {
      const std::vector<float> r = Random(30).Floats(kT * C), k = Random(31).Floats(kT * C);
      const std::vector<float> v = Random(32).Floats(kT * C), bonus = Random(33).Floats(C);
      std::vector<float> decay = Scaled(Random(34).Floats(kT * C), 0.5f, 0.5f);
      decay[0] = 0;
      decay[C - 1] = 1;
      CheckScan(reference_, Random(35).Floats(C * shape.head_size), C, CloseFor(shape),
                [&](const Kernels& kernels, Exec& exec, int64_t begin, int64_t end, Scan& scan) {
                  const int64_t at = begin * C;
                  const Wkv6Args args{.state = scan.state.data(),
                                      .r = r.data() + at,
                                      .k = k.data() + at,
                                      .v = v.data() + at,
                                      .decay = decay.data() + (dynamic ? at : 0),
                                      .decay_stride = dynamic ? C : 0,
                                      .bonus = bonus.data(),
                                      .y = scan.y.data() + at,
                                      .T = end - begin,
                                      .heads = shape.heads,
                                      .head_size = shape.head_size};
                  kernels.wkv6(exec, {&args, 1});
                });
    }
  }
}

TEST_F(RecurrentTest, Wkv7) {
  for (const Shape& shape : kShapes) {
    const int64_t C = shape.C(), N = shape.head_size;
    const std::vector<float> r = Random(40).Floats(kT * C), k = Random(41).Floats(kT * C);
    const std::vector<float> v = Random(42).Floats(kT * C);
    const std::vector<float> decay = Scaled(Random(43).Floats(kT * C), 0.2f, 0.8f);
    std::vector<float> kappa = Random(44).Floats(kT * C), b = kappa;
    for (int64_t head = 0; head < kT * shape.heads; ++head) {
      double squares = 0;
      for (int64_t i = 0; i < N; ++i) squares += std::pow(kappa[head * N + i], 2);
      for (int64_t i = head * N; i < (head + 1) * N; ++i) {
        kappa[i] /= static_cast<float>(std::sqrt(squares));
        b[i] = kappa[i] * (0.5f + 0.5f * v[i]);
      }
    }
    CheckScan(reference_, Random(45).Floats(C * N), C, CloseFor(shape),
              [&](const Kernels& kernels, Exec& exec, int64_t begin, int64_t end, Scan& scan) {
                const int64_t at = begin * C;
                const Wkv7Args args{.state = scan.state.data(),
                                    .r = r.data() + at,
                                    .decay = decay.data() + at,
                                    .k = k.data() + at,
                                    .v = v.data() + at,
                                    .kappa = kappa.data() + at,
                                    .b = b.data() + at,
                                    .y = scan.y.data() + at,
                                    .T = end - begin,
                                    .heads = shape.heads,
                                    .head_size = N};
                kernels.wkv7(exec, {&args, 1});
              });
  }
}

// A call with several sequences gives each the bits it gets alone.
TEST_F(RecurrentTest, SequencesOfACallAreIndependent) {
  const int64_t H = 3, N = 12, C = H * N;
  const std::vector<float> data = Random(50).Floats(4 * kT * C), start = Random(51).Floats(C * N);
  ForEachVariant([&](const Kernels& kernels, Exec& exec) {
    std::vector<Scan> together(3, {std::vector<float>(kT * C), start}), alone = together;
    const auto args = [&](int64_t i, std::vector<Scan>& scans) {
      const float* x = data.data() + i * C;
      return Wkv6Args{.state = scans[i].state.data(),
                      .r = x,
                      .k = x + kT * C,
                      .v = x + 2 * kT * C,
                      .decay = x + kT,
                      .decay_stride = 0,
                      .bonus = x + 7,
                      .y = scans[i].y.data(),
                      .T = i + 1,
                      .heads = H,
                      .head_size = N};
    };
    const Wkv6Args batch[] = {args(0, together), args(1, together), args(2, together)};
    kernels.wkv6(exec, std::span(batch));
    for (int64_t i = 0; i < 3; ++i) {
      const Wkv6Args one = args(i, alone);
      kernels.wkv6(exec, {&one, 1});
      EXPECT_TRUE(SameBits(together[i].y, alone[i].y));
      EXPECT_TRUE(SameBits(together[i].state, alone[i].state));
    }
  });
}

TEST_F(RecurrentTest, Wkv7PrepareAndBonus) {
  for (const Shape& shape : kShapes) {
    const int64_t C = shape.C(), size = kT * C;
    for (const bool mixes : {false, true}) {
      const std::vector<float> w = Scaled(Random(60).Floats(size), 5), a = Random(61).Floats(size);
      const std::vector<float> first = Random(64).Floats(size), mix = Random(65).Floats(size);
      const std::vector<float> k_k = Random(66).Floats(C), k_a = Random(67).Floats(C);
      const std::vector<float> v = Random(63).Floats(size);
      std::vector<float> k = Random(62).Floats(size);
      // A key of zeros has no direction.
      std::fill_n(k.begin(), shape.head_size, 0.0f);
      // In calls of `step` tokens.
      const auto run = [&](const Kernels& kernels, Exec& exec, int64_t step) {
        // w, a, k, v, kappa and the output of the bonus, one behind the other.
        std::vector<float> out;
        for (const auto* in :
             std::initializer_list<const std::vector<float>*>{&w, &a, &k, &v, &v, &first}) {
          out.insert(out.end(), in->begin(), in->end());
        }
        for (int64_t t = 0; t < kT; t += step) {
          float* at = out.data() + t * C;
          kernels.wkv7_prepare(exec, {.w = at,
                                      .a = at + size,
                                      .k = at + 2 * size,
                                      .v = at + 3 * size,
                                      .kappa = at + 4 * size,
                                      .mix = mixes ? mix.data() + t * C : nullptr,
                                      .first = first.data() + t * C,
                                      .k_k = k_k.data(),
                                      .k_a = k_a.data(),
                                      .T = step,
                                      .heads = shape.heads,
                                      .head_size = shape.head_size});
          kernels.wkv7_bonus(exec, {.r = mix.data() + t * C,
                                    .k = at + 2 * size,
                                    .v = at + 3 * size,
                                    .gate = w.data() + t * C,
                                    .r_k = k_a.data(),
                                    .y = at + 5 * size,
                                    .T = step,
                                    .heads = shape.heads,
                                    .head_size = shape.head_size});
        }
        return out;
      };
      KernelExec plain(reference_, Contract::kF32, 1);
      const std::vector<float> expected = run(reference_, plain, kT);
      for (int64_t i = 0; i < shape.head_size; ++i) ASSERT_EQ(expected[4 * size + i], 0);
      ForEachVariant([&](const Kernels& kernels, Exec& exec) {
        const std::vector<float> whole = run(kernels, exec, kT);
        EXPECT_TRUE(AllClose(whole, expected, {4e-6, 4e-6})) << "C " << C;
        EXPECT_TRUE(SameBits(run(kernels, exec, 1), whole)) << "C " << C;
        EXPECT_TRUE(SameBits(run(kernels, exec, 3), whole)) << "C " << C;
      });
    }
  }
}

}  // namespace
}  // namespace mneme::engine
