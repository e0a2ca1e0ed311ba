// Decoding and reading on a device at real models' sizes, beside what the device copies and
// multiplies in the same run. Numbers of a run of the real device only: with --dry-run every step
// is done at toy sizes and nothing is printed that could be taken for one.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "bench/made_checkpoint.h"
#include "bench/model_run.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/cuda/cost.h"
#include "engine/kernels/kernels.h"
#include "nlohmann/json.hpp"

namespace mneme::bench {
namespace {

using engine::Device;
using engine::DType;
using engine::cuda::Cost;
using engine::cuda::CostDevice;

constexpr int kNoDevice = 77;
constexpr int64_t kPassTokens = 512;  // as the engine cuts long inputs
constexpr int64_t kPosition = 512;    // where decoding begins

struct Flags {
  std::string backend = "cuda";
  std::string plugin;
  std::vector<std::string> types = {"F16", "Q4_K", "BF16", "Q8_0"};
  std::vector<int64_t> batches = {1, 8, 64, 256};
  std::vector<int64_t> prefills = {512, 4096};
  double seconds = 180;  // for all
  double bf16_peak = 0;  // TFLOP/s, measured beside this program; 0: unknown
  std::string json;
  bool dry_run = false;
};

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// One kind of work on one model.
struct Figure {
  std::string what;  // "decode 8"
  double tokens_s = 0;
  double gb_s = 0;
  double tflop_s = 0;
  int64_t launches = 0;  // of a pass
  int64_t copies = 0;
};

struct Row {
  std::string model, type;
  std::vector<Figure> figures;
  std::string problem;
  double state_mb = 0, state_copy_gb_s = 0;
};

class Bench {
 public:
  Bench(const Flags& flags, Device& device) : flags_(flags), device_(device) {
    deadline_ = Now() + flags.seconds;
  }

  absl::Status MeasureCopies() {
    const size_t size_bytes = flags_.dry_run ? 1 << 16 : size_t{1} << 30;
    engine::Memory& memory = device_.memory();
    const engine::Block from = memory.Allocate(size_bytes);
    engine::Block to = memory.Allocate(size_bytes);
    MNEME_ASSIGN_OR_RETURN(const double seconds, SecondsOf([&] {
                             memory.Copy(from, 0, size_bytes, to);
                             return absl::OkStatus();
                           }));
    copy_gb_s_ = 2 * size_bytes / seconds / 1e9;  // read and written
    return absl::OkStatus();
  }

  void Measure(const ModelShape& shape, DType dtype) {
    Row& row = rows_.emplace_back();
    row.model = shape.name;
    row.type = engine::Traits(dtype).name;
    if (Late()) {
      row.problem = "not reached in time";
      return;
    }
    const absl::Status status = MeasureModel(flags_.dry_run ? Toy(shape) : shape, dtype, &row);
    if (!status.ok()) row.problem = std::string(status.message());
    std::fprintf(stderr, "%s %s: %s\n", row.model.c_str(), row.type.c_str(),
                 row.problem.empty() ? "done" : row.problem.c_str());
  }

  void Print() const {
    std::printf("measured on %s\n", device_.description().c_str());
    std::printf("device memory copies %.0f GB/s (read and written)", copy_gb_s_);
    if (flags_.bf16_peak > 0) std::printf(", bf16 by mma.sync %.0f TFLOP/s", flags_.bf16_peak);
    std::printf("\n\n%-16s %-5s |", "tokens/s", "");
    for (const int64_t batch : flags_.batches) {
      std::printf(" %9s", ("decode " + std::to_string(batch)).c_str());
    }
    for (const int64_t tokens : flags_.prefills) {
      std::printf(" %9s", ("read " + std::to_string(tokens)).c_str());
    }
    std::printf(" | %7s %5s | %8s %5s | %8s %6s | %8s %7s\n", "GB/s", "%copy", "TFLOP/s", "%bf16",
                "launches", "copies", "state MB", "GB/s");
    for (const Row& row : rows_) {
      std::printf("%-16s %-5s |", row.model.c_str(), row.type.c_str());
      const size_t expected = flags_.batches.size() + flags_.prefills.size();
      for (size_t i = 0; i < expected; ++i) {
        if (i < row.figures.size()) {
          std::printf(" %9.1f", row.figures[i].tokens_s);
        } else {
          std::printf(" %9s", "-");
        }
      }
      if (row.figures.size() == expected) {
        // Decoding one by one is bytes, reading long inputs is arithmetic.
        const Figure& one = row.figures.front();
        const Figure& long_read = row.figures.back();
        std::printf(" | %7.1f %5.1f | %8.2f ", one.gb_s, 100 * one.gb_s / copy_gb_s_,
                    long_read.tflop_s);
        if (flags_.bf16_peak > 0) {
          std::printf("%5.1f", 100 * long_read.tflop_s / flags_.bf16_peak);
        } else {
          std::printf("%5s", "-");
        }
        std::printf(" | %8lld %6lld | %8.2f %7.1f", static_cast<long long>(one.launches),
                    static_cast<long long>(one.copies), row.state_mb, row.state_copy_gb_s);
      }
      std::printf("%s%s\n", row.problem.empty() ? "" : "  ", row.problem.c_str());
    }
    std::printf(
        "\nGB/s and launches: of a token that one sequence decodes; TFLOP/s: of the longest read.\n"
        "Bytes and operations are what the ops need (engine/kernels/cuda/cost.h), times "
        "measured.\n");
  }

  // True if every step of every model was done.
  bool PrintDryRun() const {
    bool all = true;
    std::printf("dry run on %s: sizes are toys, no figure is one of a device\n",
                device_.description().c_str());
    for (const Row& row : rows_) {
      std::string done;
      for (const Figure& figure : row.figures) done += (done.empty() ? "" : ", ") + figure.what;
      all = all && row.problem.empty();
      std::printf("%-16s %-5s ran %s; %s\n", row.model.c_str(), row.type.c_str(), done.c_str(),
                  row.problem.empty() ? "states were copied" : row.problem.c_str());
    }
    return all;
  }

  bool WriteJson() const {
    nlohmann::json json = {{"device", device_.description()},
                           {"copy_gb_s", copy_gb_s_},
                           {"bf16_mma_sync_tflop_s", flags_.bf16_peak},
                           {"rows", nlohmann::json::array()}};
    for (const Row& row : rows_) {
      nlohmann::json entry = {{"model", row.model},
                              {"type", row.type},
                              {"problem", row.problem},
                              {"state_mb", row.state_mb},
                              {"state_copy_gb_s", row.state_copy_gb_s},
                              {"figures", nlohmann::json::array()}};
      for (const Figure& figure : row.figures) {
        entry["figures"].push_back({{"what", figure.what},
                                    {"tokens_s", figure.tokens_s},
                                    {"gb_s", figure.gb_s},
                                    {"tflop_s", figure.tflop_s},
                                    {"launches", figure.launches},
                                    {"copies", figure.copies}});
      }
      json["rows"].push_back(std::move(entry));
    }
    std::ofstream file(flags_.json);
    file << json.dump(1) << "\n";
    return file.good();
  }

 private:
  bool Late() const { return !flags_.dry_run && Now() > deadline_; }

  // Of one call, which the device is waited for after, as decoding does. Calls until there have
  // been enough of them; what takes long is measured once.
  template <typename Call>
  absl::StatusOr<double> SecondsOf(Call call) {
    const auto timed = [&]() -> absl::StatusOr<double> {
      const double begin = Now();
      MNEME_RETURN_IF_ERROR(call());
      MNEME_RETURN_IF_ERROR(device_.Wait());
      return Now() - begin;
    };
    MNEME_ASSIGN_OR_RETURN(double first, timed());
    if (flags_.dry_run) return first;
    if (first > 1) return first;
    MNEME_RETURN_IF_ERROR(timed().status());  // scratch has grown, code is loaded
    std::vector<double> seconds;
    for (const double begin = Now(); seconds.size() < 100 && Now() - begin < 0.3;) {
      MNEME_ASSIGN_OR_RETURN(seconds.emplace_back(), timed());
    }
    std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
    return seconds[seconds.size() / 2];
  }

  absl::Status MeasureModel(const ModelShape& shape, DType dtype, Row* row) {
    MNEME_ASSIGN_OR_RETURN(
        const std::unique_ptr<ModelRun> run,
        ModelRun::Create(MakeCheckpoint(shape, dtype, Values::kRandom), device_));
    MNEME_RETURN_IF_ERROR(device_.Wait());
    for (const int64_t batch : flags_.batches) {
      const auto step = [&](Device& by) { return run->Pass(by, 1, /*wanted=*/true); };
      MNEME_RETURN_IF_ERROR(run->Begin(batch, flags_.dry_run ? 20 : kPosition));
      MNEME_RETURN_IF_ERROR(Add("decode " + std::to_string(batch), batch, step, row));
      if (batch < 2 || row->state_copy_gb_s > 0) continue;
      int64_t bytes = 0;
      MNEME_ASSIGN_OR_RETURN(const double seconds, SecondsOf([&] {
                               bytes = run->CopyState();
                               return absl::OkStatus();
                             }));
      row->state_mb = bytes / 2e6;
      row->state_copy_gb_s = 2 * bytes / seconds / 1e9;  // read and written
    }
    for (const int64_t tokens : flags_.prefills) {
      const auto read = [&](Device& by) -> absl::Status {
        MNEME_RETURN_IF_ERROR(run->Begin(1, 0));
        for (int64_t at = 0; at < tokens; at += kPassTokens) {
          const int64_t count = std::min(kPassTokens, tokens - at);
          MNEME_RETURN_IF_ERROR(run->Pass(by, count, at + count == tokens));
        }
        return absl::OkStatus();
      };
      MNEME_RETURN_IF_ERROR(Add("read " + std::to_string(tokens), tokens, read, row));
    }
    return absl::OkStatus();
  }

  template <typename Work>
  absl::Status Add(std::string what, int64_t tokens, Work work, Row* row) {
    if (Late()) return absl::DeadlineExceededError("the rest was not reached in time");
    Cost cost;
    CostDevice counter({.after = [&](std::string_view, const Cost& op) { cost += op; }}, device_);
    MNEME_RETURN_IF_ERROR(work(counter));
    MNEME_ASSIGN_OR_RETURN(const double seconds, SecondsOf([&] { return work(device_); }));
    row->figures.push_back(
        {.what = std::move(what),
         .tokens_s = tokens / seconds,
         .gb_s = cost.bytes() / seconds / 1e9,
         .tflop_s = (cost.f32_flops + cost.tensor_flops + cost.int8_ops) / seconds / 1e12,
         .launches = cost.launches,
         .copies = cost.copies});
    return absl::OkStatus();
  }

  const Flags& flags_;
  Device& device_;
  double deadline_;
  double copy_gb_s_ = 0;
  std::vector<Row> rows_;
};

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app{
      "Decode and prefill speed of models with random weights on a device.\n\n"
      "Ends with 77 and the reason where there is no such device."};
  app.add_option("--backend", flags.backend)->capture_default_str();
  app.add_option("--plugin", flags.plugin, "the backend's library; default: beside this program");
  app.add_option("--type", flags.types)->delimiter(',')->capture_default_str();
  app.add_option("--batch", flags.batches)->delimiter(',')->capture_default_str();
  app.add_option("--prefill", flags.prefills)->delimiter(',')->capture_default_str();
  app.add_option("--seconds", flags.seconds, "what is not begun by then is left out")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--bf16-peak", flags.bf16_peak, "TFLOP/s, as bench/cuda_peak.cu measured them");
  app.add_option("--json", flags.json, "a file for every figure");
  app.add_flag("--dry-run", flags.dry_run, "toy sizes, and no figures");
  CLI11_PARSE(app, argc, argv);
  if (flags.dry_run) {
    flags.batches = {1, 2};
    flags.prefills = {3, 20};
  }

  if (!flags.plugin.empty()) {
    if (const absl::Status opened = engine::OpenBackend(flags.plugin); !opened.ok()) {
      std::cerr << opened.message() << "\n";
      return 1;
    }
  }
  absl::StatusOr<std::unique_ptr<Device>> device = engine::CreateDevice(flags.backend, 0);
  if (!device.ok()) {
    std::cerr << device.status().message() << "\n";
    return kNoDevice;
  }
  Bench bench(flags, **device);
  if (const absl::Status status = bench.MeasureCopies(); !status.ok()) {
    std::cerr << status.message() << "\n";
    return 1;
  }
  for (const std::string& type : flags.types) {
    const std::optional<DType> dtype = engine::DTypeFromName(type);
    if (!dtype.has_value()) {
      std::cerr << "no weight type '" << type << "'\n";
      return 1;
    }
    for (const ModelShape& shape : ModelShapes()) bench.Measure(shape, *dtype);
  }
  if (flags.dry_run) return bench.PrintDryRun() ? 0 : 1;
  bench.Print();
  return flags.json.empty() || bench.WriteJson() ? 0 : 1;
}

}  // namespace
}  // namespace mneme::bench

int main(int argc, char** argv) { return mneme::bench::Main(argc, argv); }
