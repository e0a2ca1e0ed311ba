// Speed of the matrix products, of attention and of the recurrent kernels, per shape, type and
// number of tokens, beside what the machine can do and what the reference backend does. Every
// result is first checked against the reference.
//
//   kernel_bench [threads] [seconds per case] [type's name | "attention" | "recurrent" | "mixers"]
//
// Weights of one shape are repeated until they exceed most last caches, as a model's layers are: a
// product of one token then reads from memory. The share of bandwidth is of a buffer as large. Time
// is the best of several passes.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "bench/best_seconds.h"
#include "bench/mixer_kernels.h"
#include "bench/recurrent_kernels.h"
#include "bench/roofline.h"
#include "engine/kernels/host.h"
#include "engine/kernels/kernels.h"
#include "tests/engine/kernels/random_operands.h"

namespace mneme::engine {
namespace {

// What one pass over the repeated weights reads, and what the bandwidth is measured on.
constexpr size_t kWorkingSetBytes = size_t{96} << 20;

// Memory for `copies` tensors of random, valid values, each with the same bytes: what a product
// costs depends on values only where they are denormal or not finite.
AlignedBuffer RandomWeights(DType dtype, int64_t rows, int64_t columns, size_t copies) {
  const TestWeight weight(dtype, rows, columns, /*seed=*/1);
  const size_t size = weight.view().size_bytes();
  AlignedBuffer storage(copies * size);
  for (size_t i = 0; i < copies; ++i) {
    std::memcpy(storage.data() + i * size, weight.view().data, size);
  }
  return storage;
}

struct MatMulCase {
  DType dtype;
  Contract contract;
  int64_t N, K, T;
};

double TimeMatMul(const Kernels& kernels, int threads, double budget, const MatMulCase& c,
                  const std::vector<Weight>& weights, const std::vector<float>& x,
                  std::vector<float>* y) {
  HostExec exec(kernels, c.contract, threads);
  const double seconds = bench::BestSeconds(budget, [&] {
    for (const Weight& weight : weights) {
      const MatMulTask task = {weight, y->data(), c.N, false};
      kernels.matmul(exec, {&task, 1}, x.data(), c.K, c.T);
    }
  });
  return seconds / static_cast<double>(weights.size());
}

void RunMatMul(const MatMulCase& c, int threads, double budget, const bench::Roofline& roofline) {
  const Weight shape = {c.dtype, c.N, c.K, nullptr};
  const size_t copies = std::max<size_t>(1, kWorkingSetBytes / shape.size_bytes());
  const AlignedBuffer storage = RandomWeights(c.dtype, c.N, c.K, copies);
  std::vector<Weight> weights;
  for (size_t i = 0; i < copies; ++i) {
    weights.push_back({c.dtype, c.N, c.K, storage.data() + i * shape.size_bytes()});
  }
  std::mt19937 random(2);
  std::vector<float> x(c.T * c.K), y(c.T * c.N), expected(c.T * c.N);
  for (float& v : x) v = static_cast<float>(random()) * 0x1p-31f - 1;

  // The reference on as few rows as show its speed.
  const Kernels& reference = *FindBackend("reference");
  const MatMulCase small = {c.dtype, c.contract, std::min<int64_t>(c.N, 64), c.K,
                            std::min<int64_t>(c.T, 4)};
  const std::vector<Weight> few = {{c.dtype, small.N, c.K, weights.back().data}};
  const double reference_seconds = TimeMatMul(reference, 1, 0.02, small, few, x, &expected);

  const Kernels& cpu = *FindBackend("cpu");
  const double seconds = TimeMatMul(cpu, threads, budget, c, weights, x, &y);
  for (int64_t t = 0; t < small.T; ++t) {
    for (int64_t n = 0; n < small.N; ++n) {
      const float a = y[t * c.N + n], b = expected[t * small.N + n];
      if (!(std::abs(a - b) <= 1e-4 * std::abs(b) + 1e-3)) {
        std::fprintf(stderr, "wrong result at [%d, %d]: %g, reference %g\n", static_cast<int>(t),
                     static_cast<int>(n), a, b);
        std::exit(1);
      }
    }
  }
  const double gbps = static_cast<double>(shape.size_bytes()) / seconds / 1e9;
  const double gops = 2.0 * c.N * c.K * c.T / seconds / 1e9;
  const double reference_gops = 2.0 * small.N * small.K * small.T / reference_seconds / 1e9;
  const bool int8 = c.contract == Contract::kInt8 && IsQuantized(c.dtype);
  const double peak = int8 ? roofline.int8_gops : roofline.f32_gflops;
  std::printf("%-5s %-4s %6ld %5ld %4ld %9.1f %7.1f %4.0f%% %8.1f %4.0f%% %6.1fx\n",
              std::string(Traits(c.dtype).name).c_str(), int8 ? "int8" : "f32",
              static_cast<long>(c.N), static_cast<long>(c.K), static_cast<long>(c.T), seconds * 1e6,
              gbps, 100 * gbps / roofline.read_gbps, gops, 100 * gops / peak,
              gops / reference_gops);
  std::fflush(stdout);
}

// One layer of SmolLM2: 9 query heads on 3 kv heads of width 64, f16 ring of `depth` rows, full.
void RunAttention(int64_t depth, int64_t T, int threads, double budget,
                  const bench::Roofline& roofline) {
  constexpr int64_t kH = 9, kHk = 3, kDh = 64, kSinks = 4;
  const size_t ring = (kSinks + depth) * kHk * kDh * 2;
  const size_t layers = std::max<size_t>(1, kWorkingSetBytes / (2 * ring));
  AlignedBuffer k_ring = RandomWeights(DType::kF16, kSinks + depth, kHk * kDh, layers);
  AlignedBuffer v_ring = RandomWeights(DType::kF16, kSinks + depth, kHk * kDh, layers);
  std::mt19937 random(3);
  std::vector<float> q(T * kH * kDh), k(T * kHk * kDh), out(T * kH * kDh);
  for (float& v : q) v = static_cast<float>(random()) * 0x1p-33f - 0.25f;
  for (float& v : k) v = static_cast<float>(random()) * 0x1p-33f - 0.25f;
  const Kernels& cpu = *FindBackend("cpu");
  HostExec exec(cpu, Contract::kInt8, threads);
  size_t layer = 0;
  const double seconds = bench::BestSeconds(budget, [&] {
    AttentionArgs args;
    args.k_ring = k_ring.data() + layer * ring;
    args.v_ring = v_ring.data() + layer * ring;
    layer = (layer + 1) % layers;
    args.sinks = kSinks;
    args.window = depth;
    args.position = 1'000'000 / depth * depth;
    args.T = T;
    args.query_heads = kH;
    args.kv_heads = kHk;
    args.head_dim = kDh;
    args.scale = 0.125f;
    args.q = args.q_sink = q.data();
    args.k = args.v = k.data();
    args.q_stride = args.out_stride = kH * kDh;
    args.kv_stride = kHk * kDh;
    args.out = out.data();
    cpu.attention(exec, {&args, 1});
  });
  const double gbps = 2.0 * static_cast<double>(ring) / seconds / 1e9;
  const double gops = 4.0 * kH * kDh * static_cast<double>(depth) * T / seconds / 1e9;
  std::printf("attention depth %6ld T %4ld %11.1f us %7.1f GB/s %4.0f%% %8.1f GFLOP/s %4.0f%%\n",
              static_cast<long>(depth), static_cast<long>(T), seconds * 1e6, gbps,
              100 * gbps / roofline.read_gbps, gops, 100 * gops / roofline.f32_gflops);
}

int Main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const double budget = argc > 2 ? std::atof(argv[2]) : 0.3;
  const std::string filter = argc > 3 ? argv[3] : "";
  const bench::Roofline roofline = bench::MeasureRoofline(threads, kWorkingSetBytes, 3);
  std::printf("%d threads, simd %s; reads %.1f GB/s, f32 %.0f GFLOP/s, int8 %.0f GOP/s (%s)\n",
              threads, FindBackend("cpu")->simd_target().c_str(), roofline.read_gbps,
              roofline.f32_gflops, roofline.int8_gops, roofline.int8_method.c_str());
  std::printf("type          N     K    T        us    GB/s  read    GOP/s  peak  vs reference\n");
  const int64_t shapes[][2] = {{576, 576}, {1536, 576}, {576, 1536}, {49152, 576}};
  for (const DType dtype : {DType::kQ4_1, DType::kQ8_0, DType::kQ4_0, DType::kF16, DType::kBF16,
                            DType::kQ5_0, DType::kQ6_K}) {
    if (!filter.empty() && filter != Traits(dtype).name) continue;
    for (const auto& [N, K] : shapes) {
      if (K % Traits(dtype).block_elements != 0) continue;
      for (const int64_t T : {1, 4, 512}) {
        if (N == 49152 && T > 4) continue;  // a head sees few tokens
        RunMatMul({dtype, Contract::kInt8, N, K, T}, threads, budget, roofline);
        if (IsQuantized(dtype) && N == 1536) {
          RunMatMul({dtype, Contract::kF32, N, K, T}, threads, budget, roofline);
        }
      }
    }
  }
  if (filter.empty() || filter == "attention") {
    for (const int64_t depth : {512, 4096, 32768}) {
      for (const int64_t T : {1, 64, 512}) {
        if (depth * T > (1 << 22)) continue;
        RunAttention(depth, T, threads, budget, roofline);
      }
    }
  }
  if (filter.empty() || filter == "recurrent") {
    if (!BenchRecurrentKernels(threads, budget, "")) return 1;
  }
  if (filter.empty() || filter == "mixers") {
    if (!BenchMixerKernels(budget, "")) return 1;
  }
  return 0;
}

}  // namespace
}  // namespace mneme::engine

int main(int argc, char** argv) { return mneme::engine::Main(argc, argv); }
