#include "bench/recurrent_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>

#include "bench/aligned_floats.h"
#include "bench/best_seconds.h"
#include "bench/stream_roofline.h"
#include "engine/kernels/host.h"
#include "engine/kernels/kernels.h"

namespace mneme::engine {
namespace {

using bench::AlignedFloats;

// Arrays of a layer of an RWKV model of 12 heads of 64 channels; its states stay in the cache.
struct RecurrentOperands {
  static constexpr int64_t kH = 12, kN = 64, kC = kH * kN;

  RecurrentOperands(int64_t tokens, uint32_t seed) : T(tokens), random(seed) {
    for (AlignedFloats* array : {&r, &k, &v, &w, &y}) *array = Unit(T * kC);
    for (AlignedFloats* array : {&mu, &weight, &bias}) *array = Unit(kC);
    state = Unit(kC * kN);
    vectors = Unit(3 * kC);
    previous = Unit(kC);
    decay = Unit(T * kC);
    kappa = Unit(T * kC);
    for (float& d : decay) d = 0.75f + 0.25f * d;  // in (0.5, 1)
    for (float& x : kappa) x /= 8;                 // about a unit vector a head
    out.resize(T * kC);
  }
  AlignedFloats Unit(int64_t n) {
    AlignedFloats values(n);
    for (float& x : values) x = static_cast<float>(random()) * 0x1p-31f - 1;
    return values;
  }

  int64_t T;
  std::mt19937 random;
  AlignedFloats r, k, v, w, y, mu, weight, bias, state, vectors, previous, decay, kappa, out;
};

struct RecurrentCase {
  const char* name;
  void (*run)(const Kernels& kernels, Exec& exec, RecurrentOperands& o);
  // What it moves, of one row for T = 1 and of a row in the middle for T > 1; null for kernels that
  // compute more than they move.
  bench::Streams (*streams)(int64_t T) = nullptr;
};

using Operands = RecurrentOperands;
template <Activation f>
void RunActivation(const Kernels& kernels, Exec& exec, Operands& o) {
  kernels.activate(exec, f, o.r.data(), o.T * Operands::kC, o.out.data());
}

template <int64_t groups>
void RunNorm(const Kernels& kernels, Exec& exec, Operands& o) {
  kernels.layer_norm(exec, {.x = o.r.data(),
                            .w = o.weight.data(),
                            .b = o.bias.data(),
                            .eps = 1e-5f,
                            .T = o.T,
                            .D = Operands::kC,
                            .groups = groups,
                            .y = o.out.data()});
}

template <bool dynamic>
void RunLerp(const Kernels& kernels, Exec& exec, Operands& o) {
  const LerpArgs blend{.x = o.r.data(),
                       .delta = o.k.data(),
                       .mu = o.mu.data(),
                       .dynamic = dynamic ? o.v.data() : nullptr,
                       .dynamic_stride = Operands::kC,
                       .T = o.T,
                       .C = Operands::kC,
                       .y = o.out.data()};
  kernels.lerp(exec, {&blend, 1});
}

template <bool dynamic>
bench::Streams LerpStreams(int64_t T) {
  return {.rows = T, .width = Operands::kC, .read = dynamic ? 3 : 2, .read_again = 1, .written = 1};
}

template <bool dynamic>
void RunWkv6(const Kernels& kernels, Exec& exec, Operands& o) {
  const Wkv6Args args{.state = o.state.data(),
                      .r = o.r.data(),
                      .k = o.k.data(),
                      .v = o.v.data(),
                      .decay = o.decay.data(),
                      .decay_stride = dynamic ? Operands::kC : 0,
                      .bonus = o.mu.data(),
                      .y = o.out.data(),
                      .T = o.T,
                      .heads = Operands::kH,
                      .head_size = Operands::kN};
  kernels.wkv6(exec, {&args, 1});
}

constexpr RecurrentCase kRecurrentCases[] = {
    {"layer_norm", &RunNorm<1>},
    {"group_norm", &RunNorm<Operands::kH>},
    {"sigmoid", &RunActivation<Activation::kSigmoid>},
    {"tanh", &RunActivation<Activation::kTanh>},
    {"relu_squared", &RunActivation<Activation::kReluSquared>},
    {"decay", &RunActivation<Activation::kDecay>},
    {"token_shift",
     [](const Kernels& kernels, Exec& exec, Operands& o) {
       const TokenShiftArgs args{o.r.data(), o.previous.data(), o.out.data(), o.T, Operands::kC};
       kernels.token_shift(exec, {&args, 1});
     },
     // One row leaves itself in `previous`; a row in the middle reads the row before it.
     [](int64_t T) {
       return T == 1
                  ? bench::Streams{.rows = T,
                                   .width = Operands::kC,
                                   .read = 2,
                                   .written = 2,
                                   .in_place = 1}
                  : bench::Streams{
                        .rows = T, .width = Operands::kC, .read = 1, .read_again = 1, .written = 1};
     }},
    {"lerp", &RunLerp<false>, &LerpStreams<false>},
    {"lerp_dynamic", &RunLerp<true>, &LerpStreams<true>},
    {"wkv4",
     [](const Kernels& kernels, Exec& exec, Operands& o) {
       float* const state = o.vectors.data();
       const Wkv4Args args{.numerator = state,
                           .denominator = state + Operands::kC,
                           .exponent = state + 2 * Operands::kC,
                           .decay = o.mu.data(),
                           .bonus = o.bias.data(),
                           .k = o.k.data(),
                           .v = o.v.data(),
                           .y = o.out.data(),
                           .T = o.T,
                           .C = Operands::kC};
       kernels.wkv4(exec, {&args, 1});
     }},
    {"wkv6_fixed", &RunWkv6<false>},
    {"wkv6", &RunWkv6<true>},
    {"wkv7",
     [](const Kernels& kernels, Exec& exec, Operands& o) {
       const Wkv7Args args{.state = o.state.data(),
                           .r = o.r.data(),
                           .decay = o.decay.data(),
                           .k = o.k.data(),
                           .v = o.v.data(),
                           .kappa = o.kappa.data(),
                           .b = o.kappa.data(),
                           .y = o.out.data(),
                           .T = o.T,
                           .heads = Operands::kH,
                           .head_size = Operands::kN};
       kernels.wkv7(exec, {&args, 1});
     }},
    {"wkv7_prepare",
     [](const Kernels& kernels, Exec& exec, Operands& o) {
       kernels.wkv7_prepare(exec, {.w = o.w.data(),
                                   .a = o.y.data(),
                                   .k = o.k.data(),
                                   .v = o.v.data(),
                                   .kappa = o.out.data(),
                                   .mix = o.r.data(),
                                   .first = o.decay.data(),
                                   .k_k = o.mu.data(),
                                   .k_a = o.previous.data(),
                                   .T = o.T,
                                   .heads = Operands::kH,
                                   .head_size = Operands::kN});
     }},
    {"wkv7_bonus",
     [](const Kernels& kernels, Exec& exec, Operands& o) {
       kernels.wkv7_bonus(exec, {.r = o.r.data(),
                                 .k = o.k.data(),
                                 .v = o.v.data(),
                                 .gate = o.w.data(),
                                 .r_k = o.mu.data(),
                                 .y = o.out.data(),
                                 .T = o.T,
                                 .heads = Operands::kH,
                                 .head_size = Operands::kN});
     },
     [](int64_t T) {
       return bench::Streams{.rows = T,
                             .width = Operands::kC,
                             .read = 5,
                             .read_again = 1,
                             .written = 1,
                             .in_place = 1};
     }},
};

bool RunRecurrent(const RecurrentCase& c, int64_t T, int threads, double budget) {
  const Kernels& reference = *FindBackend("reference");
  const Kernels& cpu = *FindBackend("cpu");
  HostExec plain(reference, Contract::kF32, 1), exec(cpu, Contract::kF32, threads);
  Operands expected(T, 4), actual(T, 4);
  // Decays of wkv4 are negative; the keys of wkv7_prepare stay as they are however often it runs.
  for (Operands* o : {&expected, &actual}) {
    for (float& x : o->mu) x = -0.1f - std::abs(x);
    std::fill(o->previous.begin(), o->previous.end(), 0.0f);
  }
  c.run(reference, plain, expected);
  c.run(cpu, exec, actual);
  const AlignedFloats Operands::*const written[] = {
      &Operands::out, &Operands::state, &Operands::vectors, &Operands::w, &Operands::previous};
  for (const auto array : written) {
    for (size_t i = 0; i < (actual.*array).size(); ++i) {
      const float a = (actual.*array)[i], b = (expected.*array)[i];
      if (std::abs(a - b) <= 1e-4 * std::abs(b) + 1e-4) continue;
      std::fprintf(stderr, "%s: wrong result at %zu: %g, reference %g\n", c.name, i, a, b);
      return false;
    }
  }
  const auto run_reference = [&] { c.run(reference, plain, expected); };
  const auto run_cpu = [&] { c.run(cpu, exec, actual); };
  const auto print = [&](double reference_seconds, double seconds) {
    std::printf("%-13s T %4ld %10.2f us, reference %10.2f us %6.1fx", c.name, static_cast<long>(T),
                seconds * 1e6, reference_seconds * 1e6, reference_seconds / seconds);
  };
  if (c.streams == nullptr || threads > 1) {
    const auto [reference_seconds, seconds] =
        bench::BestSecondsOfEach(budget, run_reference, run_cpu);
    print(reference_seconds, seconds);
  } else {
    const bench::Streams streams = c.streams(T);
    bench::StreamRoofline roofline(streams);
    const auto [reference_seconds, seconds, least] =
        bench::BestSecondsOfEach(budget, run_reference, run_cpu, [&] { roofline.Run(); });
    print(reference_seconds, seconds);
    std::printf(" %7.1f GB/s %4.0f%% of the cache's %.1f", streams.bytes() / seconds / 1e9,
                100 * least / seconds, streams.bytes() / least / 1e9);
  }
  std::printf("\n");
  std::fflush(stdout);
  return true;
}

}  // namespace

bool BenchRecurrentKernels(int threads, double budget, const std::string& filter) {
  for (const RecurrentCase& c : kRecurrentCases) {
    if (std::string(c.name).find(filter) == std::string::npos) continue;
    for (const int64_t T : {1, 16}) {
      if (!RunRecurrent(c, T, threads, budget)) return false;
    }
  }
  return true;
}

}  // namespace mneme::engine
