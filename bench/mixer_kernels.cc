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
#include "engine/arch/infini/memory_kernels.h"
#include "engine/core/half.h"
#include "engine/kernels/exec.h"
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
  Exec reference(*FindBackend("reference"), Contract::kF32, 1);
  Exec cpu(*FindBackend("cpu"), Contract::kF32, 1);
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
  const auto kernels = [](Exec& exec) -> const infini::MemoryKernels& {
    return *infini::FindMemoryKernels(exec.kernels().name);
  };
  const std::string shape =
      ", " + std::to_string(dim) + " x " + std::to_string(dim) + ", T " + std::to_string(T);
  const double product = 2.0 * static_cast<double>(T * dim * dim);
  const auto view = [=] {
    return infini::MemoryView{in->memory.data(), in->normalizer.data(), dim, dim, 1e-6f};
  };
  return {{"memory feature map" + shape, 0,
           [=](Exec& exec, AlignedFloats* out) {
             out->resize(T * dim);
             kernels(exec).feature_map(in->raw.data(), T * dim, out->data());
           }},
          {"memory retrieve" + shape, product,
           [=](Exec& exec, AlignedFloats* out) {
             out->resize(T * dim);
             kernels(exec).retrieve(view(), {in->s.data(), dim}, T, out->data(), dim);
           }},
          {"memory update" + shape, product,
           [=](Exec& exec, AlignedFloats* out) {
             // Onto zeros, as a pending sum begins; later calls go on from there.
             out->resize(dim * dim + dim);
             kernels(exec).accumulate({in->s.data(), dim}, {in->v.data(), dim}, T, dim, dim,
                                      out->data(), out->data() + dim * dim);
           }},
          {"memory delta update" + shape, 2 * product, [=](Exec& exec, AlignedFloats* out) {
             out->resize(dim * dim + dim + T * dim);
             float* u = out->data() + dim * dim + dim;
             kernels(exec).retrieve(view(), {in->s.data(), dim}, T, u, dim);
             kernels(exec).subtract_from({in->v.data(), dim}, T, dim, u, dim);
             kernels(exec).accumulate({in->s.data(), dim}, {u, dim}, T, dim, dim, out->data(),
                                      out->data() + dim * dim);
           }}};
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
