// Every architecture at one small size: decode and prefill speed beside the machine's limits.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "bench/engine_timing.h"
#include "bench/roofline.h"
#include "engine/engine.h"
#include "nlohmann/json.hpp"

namespace mneme::engine {
namespace {

struct Flags {
  std::string folder;
  std::vector<std::string> backends = {"reference", "cpu"};
  int threads = 1;
  int64_t decode_tokens = 256;
  int64_t prefill_tokens = 1024;
  int repeats = 3;
  bool json = false;
};

struct Row {
  std::string checkpoint, architecture, backend;
  int64_t parameters = 0;
  size_t state_bytes = 0;
  double decode_tokens_s = 0, decode_mb = 0, decode_gb_s = 0, read_gb_s = 0;
  double prefill_tokens_s = 0, prefill_gflop_s = 0, f32_gflop_s = 0;
};

absl::StatusOr<Row> Measure(const Flags& flags, const std::filesystem::path& checkpoint,
                            const std::string& backend) {
  absl::StatusOr<std::unique_ptr<Engine>> engine =
      Engine::Load({.checkpoint_path = checkpoint.string(),
                    .backend = backend,
                    .contract = Contract::kF32,
                    .num_threads = flags.threads});
  if (!engine.ok()) return engine.status();
  const ArchInfo& info = (*engine)->info();
  Row row{.checkpoint = checkpoint.filename().string(),
          .architecture = info.architecture,
          .backend = backend,
          .parameters = info.parameters,
          .state_bytes = (*engine)->schema().size_bytes()};
  const size_t moved = info.decode_weight_bytes + row.state_bytes;

  // Limits and work in turns, so that a machine that changes speed changes both.
  std::vector<double> decode, prefill, read, f32;
  for (int i = 0; i <= flags.repeats; ++i) {
    const absl::StatusOr<double> decode_s = bench::DecodeSeconds(**engine, flags.decode_tokens);
    if (!decode_s.ok()) return decode_s.status();
    const absl::StatusOr<double> prefill_s = bench::PrefillSeconds(**engine, flags.prefill_tokens);
    if (!prefill_s.ok()) return prefill_s.status();
    if (i == 0) continue;  // warm-up
    decode.push_back(flags.decode_tokens / *decode_s);
    prefill.push_back(flags.prefill_tokens / *prefill_s);
    read.push_back(bench::MeasureReadGbps(flags.threads, moved, 1));
    f32.push_back(bench::MeasureF32Gflops(flags.threads));
  }
  row.decode_tokens_s = bench::Median(decode);
  row.decode_mb = moved / 1e6;
  row.decode_gb_s = row.decode_tokens_s * moved / 1e9;
  row.read_gb_s = bench::Median(read);
  row.prefill_tokens_s = bench::Median(prefill);
  row.prefill_gflop_s = row.prefill_tokens_s * 2 * info.layer_matrix_parameters / 1e9;
  row.f32_gflop_s = bench::Median(f32);
  return row;
}

void Print(const std::vector<Row>& rows, const Flags& flags) {
  std::printf("%s\n%d thread%s, contract f32, decode %lld, prefill %lld\n\n",
              DescribeMachine().c_str(), flags.threads, flags.threads == 1 ? "" : "s",
              static_cast<long long>(flags.decode_tokens),
              static_cast<long long>(flags.prefill_tokens));
  std::printf("%-18s %-10s %6s %9s | %9s %8s %6s %6s %6s | %9s %8s %6s %6s\n", "checkpoint",
              "backend", "param", "state", "decode", "moved", "GB/s", "of", "share", "prefill",
              "GFLOP/s", "of", "share");
  std::printf("%-18s %-10s %6s %9s | %9s %8s %6s %6s %6s | %9s %8s %6s %6s\n", "", "", "M", "KiB",
              "tokens/s", "MB/token", "", "GB/s", "%", "tokens/s", "", "", "%");
  for (const Row& row : rows) {
    std::printf(
        "%-18s %-10s %6.2f %9.1f | %9.1f %8.2f %6.2f %6.1f %6.0f | %9.1f %8.2f %6.1f %6.0f\n",
        row.checkpoint.c_str(), row.backend.c_str(), row.parameters / 1e6, row.state_bytes / 1024.0,
        row.decode_tokens_s, row.decode_mb, row.decode_gb_s, row.read_gb_s,
        100 * row.decode_gb_s / row.read_gb_s, row.prefill_tokens_s, row.prefill_gflop_s,
        row.f32_gflop_s, 100 * row.prefill_gflop_s / row.f32_gflop_s);
  }
}

void PrintJson(const std::vector<Row>& rows, const Flags& flags) {
  nlohmann::json json = {{"machine", DescribeMachine()},
                         {"threads", flags.threads},
                         {"rows", nlohmann::json::array()}};
  for (const Row& row : rows) {
    json["rows"].push_back({{"checkpoint", row.checkpoint},
                            {"architecture", row.architecture},
                            {"backend", row.backend},
                            {"parameters", row.parameters},
                            {"state_bytes", row.state_bytes},
                            {"decode_tokens_s", row.decode_tokens_s},
                            {"decode_moved_mb", row.decode_mb},
                            {"decode_gb_s", row.decode_gb_s},
                            {"read_gb_s", row.read_gb_s},
                            {"prefill_tokens_s", row.prefill_tokens_s},
                            {"prefill_gflop_s", row.prefill_gflop_s},
                            {"f32_gflop_s", row.f32_gflop_s}});
  }
  std::cout << json.dump(2) << "\n";
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app{
      "Speed of every architecture at one small size (python3 train/make_bench.py FOLDER).\n\n"
      "decode   tokens/s one by one from an empty context. Moved: all weights and the whole state\n"
      "         once per token, an upper bound where a window is not full yet. Share: of the read\n"
      "         bandwidth of a buffer of as many bytes, measured in turns with the work\n"
      "prefill  tokens/s; GFLOP/s = tokens/s x 2 x matrix parameters that every token passes, so\n"
      "         attention and memory count as time without work; share of the f32 FMA peak\n\n"
      "Example: arch_bench /tmp/bench-checkpoints --threads 2 --backend cpu"};
  app.add_option("folder", flags.folder, "a folder of checkpoint folders")
      ->required()
      ->check(CLI::ExistingDirectory);
  app.add_option("--backend", flags.backends)->delimiter(',')->capture_default_str();
  app.add_option("--threads", flags.threads)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--decode", flags.decode_tokens)
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--prefill", flags.prefill_tokens)
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--repeats", flags.repeats)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_flag("--json", flags.json, "one JSON object instead of a table");
  CLI11_PARSE(app, argc, argv);

  std::vector<std::filesystem::path> checkpoints;
  for (const auto& entry : std::filesystem::directory_iterator(flags.folder)) {
    checkpoints.push_back(entry.path());
  }
  std::sort(checkpoints.begin(), checkpoints.end());
  std::vector<Row> rows;
  bool failed = false;
  for (const std::filesystem::path& checkpoint : checkpoints) {
    for (const std::string& backend : flags.backends) {
      const absl::StatusOr<Row> row = Measure(flags, checkpoint, backend);
      if (row.ok()) {
        rows.push_back(*row);
      } else {
        std::cerr << checkpoint.string() << ": " << row.status() << "\n";
        failed = true;
      }
    }
  }
  flags.json ? PrintJson(rows, flags) : Print(rows, flags);
  return failed || rows.empty() ? 1 : 0;
}

}  // namespace
}  // namespace mneme::engine

int main(int argc, char** argv) { return mneme::engine::Main(argc, argv); }
