// What choosing a token costs on one thread, by options and vocabulary.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "bench/best_seconds.h"
#include "engine/sampler/counter_rng.h"
#include "engine/sampler/sampler.h"

namespace mneme::bench {
namespace {

// Roughly as a model's: most tokens far below the few that may follow.
std::vector<float> Logits(int64_t vocab_size) {
  std::vector<float> logits(vocab_size);
  for (int64_t i = 0; i < vocab_size; ++i) {
    const double u = engine::CounterUniform(7, i);
    logits[i] =
        static_cast<float>(-4 + 8 * u + (u > 0.999 ? 12 * engine::CounterUniform(8, i) : 0));
  }
  return logits;
}

struct Row {
  const char* name;
  engine::SamplingOptions options;
};

int Main() {
  const Row rows[] = {
      {"greedy", {.temperature = 0}},   {"default", {}},
      {"min_p 0.05", {.min_p = 0.05f}}, {"top_k 40", {.top_k = 40}},
      {"top_p 0.9", {.top_p = 0.9f}},   {"penalties", {.repetition_penalty = 1.1f}}};
  std::printf("microseconds a token\n%-12s", "vocabulary");
  for (const Row& row : rows) std::printf(" %11s", row.name);
  std::printf("\n");
  for (const int64_t vocab_size : {32'000, 49'152, 65'536, 151'936}) {
    const std::vector<float> logits = Logits(vocab_size);
    const std::vector<engine::TokenId> history(64, 5);
    std::printf("%-12lld", static_cast<long long>(vocab_size));
    for (const Row& row : rows) {
      engine::Sampler sampler(row.options);
      int64_t index = 0;
      const double seconds = BestSeconds(0.2, [&] { sampler.Sample(logits, history, index++); });
      std::printf(" %11.1f", seconds * 1e6);
    }
    std::printf("\n");
  }
  return 0;
}

}  // namespace
}  // namespace mneme::bench

int main() { return mneme::bench::Main(); }
