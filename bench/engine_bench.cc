// Engine speed on one checkpoint beside the machine's limits: decode against the read bandwidth
// of as many bytes, prefill against the int8 peak, for each number of threads.
#include <cstdio>
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
  EngineOptions engine;
  std::string contract = "int8";
  std::string kv = "f16";
  std::vector<int> threads = {1, 2};
  int64_t decode_tokens = 64;
  int64_t prefill_tokens = 512;
  int repeats = 5;
  bool json = false;
};

struct Row {
  int threads = 0;
  double decode_tokens_s = 0, decode_gb_s = 0, read_gb_s = 0;
  double prefill_tokens_s = 0, prefill_gop_s = 0, int8_gop_s = 0;
};

absl::StatusOr<Row> Measure(const Flags& flags, int threads, ArchInfo* info, std::string* id) {
  EngineOptions options = flags.engine;
  options.num_threads = threads;
  absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Load(options);
  if (!engine.ok()) return engine.status();
  *info = (*engine)->info();
  *id = (*engine)->numerics_id();

  Row row{.threads = threads};
  // Limits and work in turns, so that a machine that changes speed changes both.
  std::vector<double> decode, prefill, read, int8;
  for (int i = 0; i <= flags.repeats; ++i) {
    const bool warm_up = i == 0;
    absl::StatusOr<double> decode_s = bench::DecodeSeconds(**engine, flags.decode_tokens);
    if (!decode_s.ok()) return decode_s.status();
    absl::StatusOr<double> prefill_s = bench::PrefillSeconds(**engine, flags.prefill_tokens);
    if (!prefill_s.ok()) return prefill_s.status();
    if (warm_up) continue;
    decode.push_back(flags.decode_tokens / *decode_s);
    prefill.push_back(flags.prefill_tokens / *prefill_s);
    const bench::Roofline limits = bench::MeasureRoofline(threads, info->decode_weight_bytes);
    read.push_back(limits.read_gbps);
    int8.push_back(limits.int8_gops);
  }
  row.decode_tokens_s = bench::Median(decode);
  row.decode_gb_s = row.decode_tokens_s * info->decode_weight_bytes / 1e9;
  row.read_gb_s = bench::Median(read);
  row.prefill_tokens_s = bench::Median(prefill);
  row.prefill_gop_s = row.prefill_tokens_s * 2 * info->layer_matrix_parameters / 1e9;
  row.int8_gop_s = bench::Median(int8);
  return row;
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app{
      "Decode and prefill speed of a checkpoint beside the machine's measured limits.\n\n"
      "decode   tokens/s one by one from an empty context; GB/s = tokens/s x bytes of weights\n"
      "         read per token (counted from the file); share of the read bandwidth of a buffer\n"
      "         of as many bytes, from whichever cache or memory holds them\n"
      "prefill  tokens/s; GOP/s = tokens/s x 2 x matrix parameters that every token passes\n"
      "         (embedding and head excluded); share of the measured int8 peak\n\n"
      "Medians over --repeats; limits are measured in turns with the work, same threads."};
  app.add_option("checkpoint", flags.engine.checkpoint_path, "GGUF file or safetensors folder")
      ->required();
  app.add_option("--threads", flags.threads, "numbers of threads")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--backend", flags.engine.backend)->capture_default_str();
  app.add_option("--contract", flags.contract)
      ->check(CLI::IsMember({"f32", "int8"}))
      ->capture_default_str();
  app.add_option("--kv", flags.kv)->check(CLI::IsMember({"f32", "f16"}))->capture_default_str();
  app.add_option("--window", flags.engine.arch.window_tokens, "0: the trained context");
  app.add_option("--decode", flags.decode_tokens, "tokens to decode")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--prefill", flags.prefill_tokens, "tokens to prefill")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--repeats", flags.repeats)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_flag("--json", flags.json, "one JSON object instead of a table");
  CLI11_PARSE(app, argc, argv);
  flags.engine.contract = flags.contract == "f32" ? Contract::kF32 : Contract::kInt8;
  flags.engine.arch.kv_dtype = flags.kv == "f32" ? DType::kF32 : DType::kF16;

  ArchInfo info;
  std::string id;
  std::vector<Row> rows;
  for (const int threads : flags.threads) {
    absl::StatusOr<Row> row = Measure(flags, threads, &info, &id);
    if (!row.ok()) {
      std::cerr << row.status() << "\n";
      return 1;
    }
    rows.push_back(*row);
  }

  if (flags.json) {
    nlohmann::json json = {{"checkpoint", flags.engine.checkpoint_path},
                           {"numerics_id", id},
                           {"machine", DescribeMachine()},
                           {"decode_weight_bytes", info.decode_weight_bytes},
                           {"layer_matrix_parameters", info.layer_matrix_parameters},
                           {"rows", nlohmann::json::array()}};
    for (const Row& row : rows) {
      json["rows"].push_back({{"threads", row.threads},
                              {"decode_tokens_s", row.decode_tokens_s},
                              {"decode_gb_s", row.decode_gb_s},
                              {"read_gb_s", row.read_gb_s},
                              {"decode_share", row.decode_gb_s / row.read_gb_s},
                              {"prefill_tokens_s", row.prefill_tokens_s},
                              {"prefill_gop_s", row.prefill_gop_s},
                              {"int8_gop_s", row.int8_gop_s},
                              {"prefill_share", row.prefill_gop_s / row.int8_gop_s}});
    }
    std::cout << json.dump(2) << "\n";
    return 0;
  }
  std::printf("%s\n%s\n%s: %.1f MB of weights per decoded token, %.1f M matrix parameters\n\n",
              DescribeMachine().c_str(), id.c_str(), flags.engine.checkpoint_path.c_str(),
              info.decode_weight_bytes / 1e6, info.layer_matrix_parameters / 1e6);
  std::printf("          decode %-4lld                            prefill %lld\n",
              static_cast<long long>(flags.decode_tokens),
              static_cast<long long>(flags.prefill_tokens));
  std::printf(
      "threads   tokens/s    GB/s  of read GB/s  share   tokens/s   GOP/s  of int8 GOP/s  share\n");
  for (const Row& row : rows) {
    std::printf("%7d   %8.1f  %6.2f  %12.2f  %4.0f %%   %8.1f  %6.1f  %13.1f  %4.0f %%\n",
                row.threads, row.decode_tokens_s, row.decode_gb_s, row.read_gb_s,
                100 * row.decode_gb_s / row.read_gb_s, row.prefill_tokens_s, row.prefill_gop_s,
                row.int8_gop_s, 100 * row.prefill_gop_s / row.int8_gop_s);
  }
  return 0;
}

}  // namespace
}  // namespace mneme::engine

int main(int argc, char** argv) { return mneme::engine::Main(argc, argv); }
