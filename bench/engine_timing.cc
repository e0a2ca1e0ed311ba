#include "bench/engine_timing.h"

#include <algorithm>
#include <chrono>

#include "engine/sampler/sampler.h"

namespace mneme::bench {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

absl::StatusOr<double> DecodeSeconds(engine::Engine& engine, int64_t tokens) {
  engine::State state = engine.CreateState();
  std::vector<float> logits(engine.info().vocab_size);
  engine::TokenId token = 1;
  engine::Sampler sampler({.temperature = 0});
  Clock::time_point start;
  for (int64_t i = 0; i <= tokens; ++i) {
    const engine::EngineSlice slice{
        .state = &state, .tokens = {&token, 1}, .num_logits = 1, .logits = logits.data()};
    if (absl::Status status = engine.Step({&slice, 1}); !status.ok()) return status;
    token = sampler.Sample(logits, {}, i);
    if (i == 0) start = Clock::now();  // the prompt token is not counted
  }
  return SecondsSince(start);
}

absl::StatusOr<double> PrefillSeconds(engine::Engine& engine, int64_t tokens) {
  engine::State state = engine.CreateState();
  std::vector<float> logits(engine.info().vocab_size);
  std::vector<engine::TokenId> input(tokens);
  for (int64_t i = 0; i < tokens; ++i) {
    input[i] = static_cast<engine::TokenId>((i * 7919) % engine.info().vocab_size);
  }
  const engine::EngineSlice slice{
      .state = &state, .tokens = input, .num_logits = 1, .logits = logits.data()};
  const auto start = Clock::now();
  if (absl::Status status = engine.Step({&slice, 1}); !status.ok()) return status;
  return SecondsSince(start);
}

}  // namespace mneme::bench
