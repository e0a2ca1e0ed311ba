// Speed of Titans' neural memory on one thread, state in the cache: cpu against reference, both
// checked against each other first. A row is one call for one head.
//
//   titans_bench [seconds per case]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "bench/best_seconds.h"
#include "engine/kernels/host.h"
#include "engine/kernels/kernels.h"

namespace mneme::engine {
namespace {

std::vector<float> Random(int64_t n, float scale) {
  static std::mt19937 engine(1);
  std::uniform_real_distribution<float> uniform(-scale, scale);
  std::vector<float> values(n);
  for (float& x : values) x = uniform(engine);
  return values;
}

enum class Use { kRead, kChunk, kTokens };

// One head with its rows.
struct Head {
  Head(int64_t e, int64_t h, int64_t rows)
      : shape{.depth = 2, .width = e, .hidden = h, .eps = 1e-6f}, rows(rows) {
    for (int64_t l = 0; l < 2; ++l) {
      committed.push_back(Random(e * h, 1 / std::sqrt(static_cast<float>(shape.Inputs(l)))));
      momentum.push_back(Random(e * h, 0.01f));
    }
    running = committed;
    k = Random(rows * e, 1 / std::sqrt(static_cast<float>(e)));
    v = Random(rows * e, 1);
    for (int64_t t = 0; t < rows; ++t) rates.insert(rates.end(), {0.01f, 0.5f, 0.01f});
    pending = std::vector<float>(rows * (2 * e + 3));
    y.resize(rows * e);
  }

  void Run(Exec& exec, Use use) {
    const int64_t kept = (rows - 1) * shape.width;
    const TitansMemoryLayer layer{.memory = shape,
                                  .heads = 1,
                                  .chunk_tokens = rows,
                                  .token_mode = use == Use::kTokens,
                                  .gradient_clip = 1,
                                  .target = {}};
    TitansMemoryArgs args{.committed = {committed[0].data(), committed[1].data()},
                          .momentum = {momentum[0].data(), momentum[1].data()},
                          .running = {running[0].data(), running[1].data()},
                          .pending_k = pending.data(),
                          .pending_v = pending.data() + kept,
                          .pending_rates = pending.data() + 2 * kept,
                          .rows = rows,
                          .q = k.data(),
                          .y = y.data()};
    if (use != Use::kRead) {
      args.k = k.data();
      args.v = v.data();
      args.rates = rates.data();
    }
    exec.kernels().titans_memory(exec, layer, {&args, 1});
  }

  TitansMemoryShape shape;
  int64_t rows;
  std::vector<std::vector<float>> committed, momentum, running;
  std::vector<float> k, v, rates, pending, y;
};

struct Case {
  const char* name;
  Use use;
  double products;  // of a row and a matrix; a read has two
};
// A gradient takes 3, an update of both matrices from a chunk 2 of weights and 2 of momentum, one
// token by token 2 with its reads.
constexpr Case kCases[] = {{"read", Use::kRead, 2},
                           {"chunk", Use::kChunk, 2 + 3 + 4},
                           {"tokens", Use::kTokens, 3 + 4 + 2}};

bool Agree(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!(std::abs(a[i] - b[i]) <= 1e-4 * (1 + std::abs(b[i])))) return false;
  }
  return true;
}

int Main(int argc, char** argv) {
  const double budget = argc > 1 ? std::atof(argv[1]) : 0.2;
  HostExec slow_exec(*FindBackend("reference"), Contract::kF32, 1);
  HostExec fast_exec(*FindBackend("cpu"), Contract::kF32, 1);
  std::printf("simd target %s\n", fast_exec.kernels().simd_target().c_str());
  std::printf("%-10s %5s %5s %5s %12s %12s %9s %7s\n", "use", "e", "h", "rows", "reference us",
              "cpu us", "GFLOP/s", "ratio");
  bool agree = true;
  for (const auto& [e, h] :
       {std::pair<int64_t, int64_t>{32, 64}, {64, 128}, {128, 256}, {36, 70}}) {
    for (const int64_t rows : {1, 16}) {
      for (const Case& c : kCases) {
        Head reference(e, h, rows), cpu = reference;
        reference.Run(slow_exec, c.use);
        cpu.Run(fast_exec, c.use);
        agree &= Agree(cpu.y, reference.y) && Agree(cpu.committed[0], reference.committed[0]) &&
                 Agree(cpu.momentum[1], reference.momentum[1]);
        const auto [slow, fast] = bench::BestSecondsOfEach(
            budget, [&] { reference.Run(slow_exec, c.use); }, [&] { cpu.Run(fast_exec, c.use); });
        const double flops = 2.0 * c.products * static_cast<double>(e * h * rows);
        std::printf("%-10s %5d %5d %5d %12.2f %12.2f %9.2f %6.1fx\n", c.name, int(e), int(h),
                    int(rows), slow * 1e6, fast * 1e6, flops / fast / 1e9, slow / fast);
      }
    }
  }
  if (!agree) std::printf("cpu and reference differ\n");
  return agree ? 0 : 1;
}

}  // namespace
}  // namespace mneme::engine

int main(int argc, char** argv) { return mneme::engine::Main(argc, argv); }
