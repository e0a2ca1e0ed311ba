// Speed of the kernels of Titans' neural memory on one thread, state in the cache: cpu against
// reference, both checked against each other first.
//
//   titans_bench [seconds per case]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "bench/best_seconds.h"
#include "engine/arch/titans/kernels.h"
#include "engine/kernels/kernels.h"

namespace mneme::engine::titans {
namespace {

std::vector<float> Random(int64_t n, float scale) {
  static std::mt19937 engine(1);
  std::uniform_real_distribution<float> uniform(-scale, scale);
  std::vector<float> values(n);
  for (float& x : values) x = uniform(engine);
  return values;
}

// One head with its rows; each case writes into `out`.
struct Head {
  Head(int64_t e, int64_t h, int64_t rows)
      : shape{.depth = 2, .width = e, .hidden = h, .eps = 1e-6f}, rows(rows) {
    for (int64_t l = 0; l < 2; ++l) {
      weights.push_back(Random(e * h, 1 / std::sqrt(static_cast<float>(shape.Inputs(l)))));
      pointers.push_back(weights.back().data());
    }
    k = Random(rows * e, 1 / std::sqrt(static_cast<float>(e)));
    v = Random(rows * e, 1);
    theta = Random(rows, 0.01f);
    eta = std::vector<float>(rows, 0.5f);
    alpha = std::vector<float>(rows, 0.01f);
    block.resize(Gradients::Elements(shape, rows));
    scratch.resize(2 * rows * h);
    y.resize(rows * h);
    momentum = Random(e * h, 0.01f);
    running = weights[0];
    wide = Random(rows * h, 0.1f);
  }
  MemoryView View() const { return {&shape, pointers.data(), nullptr}; }

  MemoryShape shape;
  int64_t rows;
  std::vector<std::vector<float>> weights;
  std::vector<const float*> pointers;
  std::vector<float> k, v, theta, eta, alpha, block, scratch, y, momentum, running, wide;
};

struct Case {
  const char* name;
  double flops;
  std::function<void(const TitansKernels&, Head&)> run;
  std::function<std::vector<float>&(Head&)> result;
};

int Main(int argc, char** argv) {
  const double budget = argc > 1 ? std::atof(argv[1]) : 0.2;
  std::printf("simd target %s\n", FindBackend("cpu")->simd_target().c_str());
  std::printf("%-10s %5s %5s %5s %12s %12s %9s %7s\n", "kernel", "e", "h", "rows", "reference us",
              "cpu us", "GFLOP/s", "ratio");
  bool agree = true;
  for (const auto& [e, h] :
       {std::pair<int64_t, int64_t>{32, 64}, {64, 128}, {128, 256}, {36, 70}}) {
    for (const int64_t rows : {1, 16}) {
      const double matrix = 2.0 * static_cast<double>(e * h * rows);
      const Case cases[] = {
          {"read", 2 * matrix,
           [](const TitansKernels& kernels, Head& head) {
             kernels.read(head.View(), {head.k.data(), head.shape.width}, head.rows, head.y.data(),
                          head.shape.width, head.scratch.data());
           },
           [](Head& head) -> std::vector<float>& { return head.y; }},
          {"gradient", 3 * matrix,
           [](const TitansKernels& kernels, Head& head) {
             kernels.gradient(head.View(), {head.k.data(), head.shape.width},
                              {head.v.data(), head.shape.width}, 0, head.rows, 1,
                              {head.block.data(), head.rows});
           },
           [](Head& head) -> std::vector<float>& { return head.block; }},
          {"commit", 2 * matrix,
           [](const TitansKernels& kernels, Head& head) {
             kernels.commit({.inputs = head.shape.width,
                             .outputs = head.shape.hidden,
                             .rows = head.rows,
                             .input = head.k.data(),
                             .delta = head.wide.data(),
                             .weight_rates = head.theta.data(),
                             .momentum_rates = head.theta.data(),
                             .keep = 0.99f,
                             .carry = 0.5f,
                             .momentum_keep = 0.5f,
                             .weights = head.running.data(),
                             .momentum = head.momentum.data(),
                             .scratch = head.scratch.data()});
           },
           [](Head& head) -> std::vector<float>& { return head.running; }},
          {"step", 4 * matrix,
           [](const TitansKernels& kernels, Head& head) {
             kernels.step({.inputs = head.shape.width,
                           .outputs = head.shape.hidden,
                           .rows = head.rows,
                           .input = head.k.data(),
                           .delta = head.wide.data(),
                           .theta = head.theta.data(),
                           .eta = head.eta.data(),
                           .alpha = head.alpha.data(),
                           .weights = head.running.data(),
                           .momentum = head.momentum.data(),
                           .x = {head.k.data(), head.shape.width},
                           .y = head.y.data()});
           },
           [](Head& head) -> std::vector<float>& { return head.y; }},
      };
      for (const Case& c : cases) {
        Head reference(e, h, rows), cpu = reference;
        for (int64_t l = 0; l < 2; ++l) cpu.pointers[l] = cpu.weights[l].data();
        c.run(ReferenceTitansKernels(), reference);
        c.run(CpuTitansKernels(), cpu);
        for (size_t i = 0; i < c.result(cpu).size(); ++i) {
          const float a = c.result(cpu)[i], b = c.result(reference)[i];
          if (!(std::abs(a - b) <= 1e-4 * (1 + std::abs(b)))) agree = false;
        }
        const auto [slow, fast] = bench::BestSecondsOfEach(
            budget, [&] { c.run(ReferenceTitansKernels(), reference); },
            [&] { c.run(CpuTitansKernels(), cpu); });
        std::printf("%-10s %5d %5d %5d %12.2f %12.2f %9.2f %6.1fx\n", c.name, int(e), int(h),
                    int(rows), slow * 1e6, fast * 1e6, c.flops / fast / 1e9, slow / fast);
      }
    }
  }
  if (!agree) std::printf("cpu and reference differ\n");
  return agree ? 0 : 1;
}

}  // namespace
}  // namespace mneme::engine::titans

int main(int argc, char** argv) { return mneme::engine::titans::Main(argc, argv); }
