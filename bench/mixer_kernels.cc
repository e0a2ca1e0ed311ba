#include "bench/mixer_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "bench/aligned_floats.h"
#include "bench/best_seconds.h"
#include "engine/core/half.h"
#include "engine/kernels/host.h"
#include "engine/kernels/kernels.h"

namespace mneme::engine {
namespace {

using bench::AlignedFloats;

AlignedFloats Floats(int64_t n, uint32_t seed) {
  std::mt19937 random(seed);
  AlignedFloats values(n);
  for (float& v : values) v = static_cast<float>(random()) * 0x1p-31f - 1;
  return values;
}

// One kernel and shape: `run` computes `out` on the backend it is given.
struct Row {
  std::string name;
  double flops;  // 0: not counted
  std::function<void(Exec&, AlignedFloats* out)> run;
};

bool Run(const Row& row, double budget) {
  HostExec reference(*FindBackend("reference"), Contract::kF32, 1);
  HostExec cpu(*FindBackend("cpu"), Contract::kF32, 1);
  AlignedFloats expected, actual;
  row.run(reference, &expected);
  row.run(cpu, &actual);
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::abs(actual[i] - expected[i]) <= 1e-4 * std::abs(expected[i]) + 1e-4) continue;
    std::fprintf(stderr, "%s: wrong result at %zu: %g, reference %g\n", row.name.c_str(), i,
                 actual[i], expected[i]);
    return false;
  }
  const auto [slow, fast] = bench::BestSecondsOfEach(
      budget, [&] { row.run(reference, &expected); }, [&] { row.run(cpu, &actual); });
  std::printf("%-46s %10.2f us %8.2f us %6.1fx", row.name.c_str(), slow * 1e6, fast * 1e6,
              slow / fast);
  if (row.flops > 0) std::printf(" %7.1f GFLOP/s", row.flops / fast / 1e9);
  std::printf("\n");
  std::fflush(stdout);
  return true;
}

// `T` queries of heads of 32 over `keys` stored keys in f16.
Row BlockAttention(const std::string& what, int64_t heads, int64_t kv_heads, int64_t T,
                   int64_t keys, bool causal) {
  constexpr int64_t kDim = 32;
  const AlignedFloats rows = Floats(keys * kv_heads * kDim, 1);
  auto stored = std::make_shared<std::vector<uint16_t>>();
  for (const float x : rows) stored->push_back(FloatToHalf(x));
  auto q = std::make_shared<AlignedFloats>(Floats(T * heads * kDim, 2));
  const auto run = [=](Exec& exec, AlignedFloats* out) {
    out->resize(T * heads * kDim);
    const auto* data = reinterpret_cast<const std::byte*>(stored->data());
    const BlockAttentionArgs args = {.runs = {KeyRun{data, data, keys}},
                                     .dtype = DType::kF16,
                                     .causal = causal,
                                     .T = T,
                                     .query_heads = heads,
                                     .kv_heads = kv_heads,
                                     .key_dim = kDim,
                                     .value_dim = kDim,
                                     .scale = 0.177f,
                                     .q = q->data(),
                                     .q_stride = heads * kDim,
                                     .out = out->data(),
                                     .out_stride = heads * kDim};
    exec.kernels().block_attention(exec, {&args, 1});
  };
  const double seen = static_cast<double>(keys) - (causal ? (T - 1) / 2.0 : 0.0);
  return {what + ", H " + std::to_string(heads) + " on " + std::to_string(kv_heads) + ", T " +
              std::to_string(T),
          4.0 * static_cast<double>(T * heads * kDim) * seen, run};
}

// A series of two activations over T rows of 512 channels.
Row Series(int64_t T) {
  constexpr int64_t kC = 512;
  auto x = std::make_shared<AlignedFloats>(Floats(T * kC, 3));
  auto parameters = std::make_shared<AlignedFloats>(Floats(4 * kC, 4));
  const auto run = [=](Exec& exec, AlignedFloats* out) {
    static constexpr Activation kSeries[] = {Activation::kSilu, Activation::kGeluErf};
    out->resize(T * kC);
    exec.kernels().series_activate(exec, {.x = x->data(),
                                          .scale = parameters->data(),
                                          .bias = parameters->data() + 2 * kC,
                                          .series = kSeries,
                                          .T = T,
                                          .C = kC,
                                          .y = out->data()});
  };
  return {"series activation, silu + gelu, T " + std::to_string(T), 0, run};
}

// One head of an Infini-attention memory, dk = dv = `dim`, `T` rows.
std::vector<Row> InfiniMemory(int64_t dim, int64_t T) {
  struct Operands {
    AlignedFloats raw, s, v, memory, normalizer;
  };
  auto in = std::make_shared<Operands>();
  in->raw = Floats(T * dim, 5);
  in->s = Floats(T * dim, 6);
  in->v = Floats(T * dim, 7);
  in->memory = Floats(dim * dim, 8);
  in->normalizer = Floats(dim, 9);
  for (float& x : in->s) x = std::abs(x) + 0.1f;
  for (float& x : in->normalizer) x = std::abs(x) + 1;
  // Mixed rows and pending sums onto zeros, as a segment begins; later calls go on from there.
  const auto mix = [=](bool delta) {
    return [=](Exec& exec, AlignedFloats* out) {
      out->resize(T * dim + dim * dim + dim);
      float* pending = out->data() + T * dim;
      const float share = 0.5f;
      const InfiniMixArgs args{.memory = in->memory.data(),
                               .normalizer = in->normalizer.data(),
                               .pending_memory = pending,
                               .pending_normalizer = pending + dim * dim,
                               .rows = T,
                               .sq = in->s.data(),
                               .sk = in->s.data(),
                               .v = in->v.data(),
                               .local = in->v.data(),
                               .mixed = out->data()};
      exec.kernels().infini_mix(exec,
                                {.heads = 1,
                                 .kv_heads = 1,
                                 .key_dim = dim,
                                 .value_dim = dim,
                                 .eps = 1e-6f,
                                 .delta = delta,
                                 .memory_share = &share,
                                 .local_share = &share},
                                {&args, 1});
    };
  };
  const std::string shape =
      ", " + std::to_string(dim) + " x " + std::to_string(dim) + ", T " + std::to_string(T);
  const double product = 2.0 * static_cast<double>(T * dim * dim);
  return {{"memory feature map" + shape, 0,
           [=](Exec& exec, AlignedFloats* out) {
             out->resize(T * dim);
             exec.kernels().infini_feature_map(exec, in->raw.data(), T * dim, out->data());
           }},
          {"memory read and update" + shape, 2 * product, mix(false)},
          {"memory read and delta update" + shape, 3 * product, mix(true)}};
}

}  // namespace

bool BenchMixerKernels(double budget, const std::string& filter) {
  // A block of 64 tokens, one block before it, 8 rows of memory.
  std::vector<Row> rows = {BlockAttention("FAM token", 4, 4, 1, 136, true),
                           BlockAttention("FAM token", 6, 2, 1, 136, true),
                           BlockAttention("FAM block", 4, 4, 64, 136, true),
                           BlockAttention("FAM block", 6, 2, 64, 136, true),
                           BlockAttention("FAM memory rows", 4, 4, 8, 72, false),
                           BlockAttention("Infini segment's last rows", 4, 4, 64, 512, true),
                           Series(1),
                           Series(64)};
  for (const int64_t dim : {32, 64}) {
    for (const int64_t T : {1, 64}) {
      for (Row& row : InfiniMemory(dim, T)) rows.push_back(std::move(row));
    }
  }
  std::printf("%-46s %13s %11s %7s\n", "kernel, one thread, in cache", "reference", "cpu", "ratio");
  for (const Row& row : rows) {
    if (row.name.find(filter) == std::string::npos) continue;
    if (!Run(row, budget)) return false;
  }
  return true;
}

}  // namespace mneme::engine
