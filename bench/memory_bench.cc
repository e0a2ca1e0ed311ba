// Reads random text for as long as you like and shows that memory stays where it was: state bytes,
// resident memory of the process, the largest number in the state. Fails if any of them says
// otherwise.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "engine/core/half.h"
#include "engine/engine.h"

namespace mneme::engine {
namespace {

struct Flags {
  std::vector<std::string> checkpoints;
  EngineOptions engine;
  int64_t tokens = 1'000'000;
  uint64_t seed = 1;
  double resident_slack_mib = 1;
};

// Resident set of this process.
double ResidentMib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmRSS:", 0) == 0) return std::stod(line.substr(6)) / 1024;
  }
  return 0;
}

// The largest magnitude in the state; infinity if any element is not finite.
double LargestInState(const StateSchema& schema, const State& state) {
  double largest = 0;
  for (const StateTensor& tensor : schema.tensors()) {
    const std::byte* data = state.block.data() + tensor.offset_bytes;
    const size_t width = tensor.dtype == DType::kF16 ? 2 : 4;
    for (size_t at = 0; at < tensor.size_bytes; at += width) {
      float value;
      if (width == 2) {
        uint16_t bits;
        std::memcpy(&bits, data + at, 2);
        value = HalfToFloat(bits);
      } else {
        std::memcpy(&value, data + at, 4);
      }
      if (!std::isfinite(value)) return INFINITY;
      largest = std::max<double>(largest, std::fabs(value));
    }
  }
  return largest;
}

absl::Status Run(const Flags& flags, const std::string& checkpoint) {
  EngineOptions options = flags.engine;
  options.checkpoint_path = checkpoint;
  absl::StatusOr<std::unique_ptr<Engine>> loaded = Engine::Load(options);
  if (!loaded.ok()) return loaded.status();
  Engine& engine = **loaded;
  State state = engine.CreateState();
  const size_t state_bytes = engine.schema().size_bytes();
  std::printf("\n%s: %s, state %zu bytes\n", checkpoint.c_str(), engine.info().architecture.c_str(),
              state_bytes);
  std::printf("%12s %12s %14s %14s %14s %10s\n", "tokens", "tokens/s", "state bytes",
              "resident MiB", "largest state", "seconds");

  std::mt19937_64 random(flags.seed);
  std::vector<float> logits(engine.info().vocab_size);
  std::vector<TokenId> piece;
  double resident_at_start = 0;
  int64_t reported = 0;
  double reported_s = 0;
  const auto start = std::chrono::steady_clock::now();
  // Powers of ten and their halves, then the end.
  for (int64_t next = 1000; state.position < flags.tokens; next *= next % 3 == 1 ? 5 : 2) {
    const int64_t target = std::min(next, flags.tokens);
    while (state.position < target) {
      piece.resize(std::min<int64_t>(512, target - state.position));
      for (TokenId& token : piece) token = random() % engine.info().vocab_size;
      const EngineSlice slice{
          .state = &state, .tokens = piece, .num_logits = 1, .logits = logits.data()};
      if (absl::Status status = engine.Step({&slice, 1}); !status.ok()) return status;
    }
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const double resident = ResidentMib(), largest = LargestInState(engine.schema(), state);
    std::printf("%12lld %12.0f %14zu %14.1f %14.4g %10.1f\n",
                static_cast<long long>(state.position),
                (state.position - reported) / (seconds - reported_s), state.block.size(), resident,
                largest, seconds);
    std::fflush(stdout);
    reported = state.position;
    reported_s = seconds;
    if (!std::isfinite(largest)) {
      return absl::InternalError("the state holds a number that is not finite");
    }
    if (state.block.size() != state_bytes) return absl::InternalError("the state changed its size");
    if (resident_at_start == 0) resident_at_start = resident;
    if (resident > resident_at_start + flags.resident_slack_mib) {
      return absl::InternalError("resident memory grew");
    }
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app{
      "Reads random tokens into one state and prints speed, state size and resident memory on the\n"
      "way. Exit 1 if memory grows, a number stops being finite or a step fails.\n\n"
      "Examples:\n"
      "  memory_bench tests/golden/tiny/tiny-rwkv7-a\n"
      "  memory_bench --tokens 10000000 tests/golden/tiny/tiny-*-a   # the long soak"};
  app.add_option("checkpoints", flags.checkpoints, "GGUF files or safetensors folders")->required();
  app.add_option("--tokens", flags.tokens)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--seed", flags.seed, "of the random tokens")->capture_default_str();
  app.add_option("--backend", flags.engine.backend)->capture_default_str();
  app.add_option("--threads", flags.engine.num_threads, "0: all processors");
  app.add_option("--window", flags.engine.arch.window_tokens, "of llama; 0: the trained context");
  app.add_option("--resident-slack-mib", flags.resident_slack_mib, "growth that is not a failure")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  std::printf("%s\n", DescribeMachine().c_str());
  int failures = 0;
  for (const std::string& checkpoint : flags.checkpoints) {
    if (absl::Status status = Run(flags, checkpoint); !status.ok()) {
      std::cerr << checkpoint << ": " << status << "\n";
      ++failures;
    }
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace mneme::engine

int main(int argc, char** argv) { return mneme::engine::Main(argc, argv); }
