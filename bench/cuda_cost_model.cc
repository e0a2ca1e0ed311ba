// What decoding and reading would take on an H100 or H200 if the CUDA backend reached the peaks of
// their data sheets: engine/kernels/cuda/cost.h, on models of real sizes, with no GPU. Every line
// says that it is modelled.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "bench/made_checkpoint.h"
#include "bench/model_run.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/cuda/cost.h"

namespace mneme::bench {
namespace {

using engine::DType;
using engine::cuda::Cost;
using engine::cuda::CostDevice;
using engine::cuda::Peaks;

constexpr const char* kModelled = "modelled (paper peaks)";
constexpr int64_t kPassTokens = 512;  // as the engine cuts long inputs

struct Flags {
  std::vector<std::string> shapes;
  std::vector<std::string> types = {"F16", "BF16", "Q8_0", "Q4_K"};
  std::vector<int64_t> batches = {1, 8, 64, 256};
  std::vector<int64_t> prefills = {512, 4096};
  int64_t position = 1024;
  std::string machine = "h100";
  bool ops = false;
};

struct OpUse {
  int64_t calls = 0;
  Cost cost;
  double seconds = 0;
};

class Model {
 public:
  Model(const ModelShape& shape, DType dtype, const Peaks& peaks)
      : shape_(shape), dtype_(dtype), peaks_(peaks) {}

  absl::Status Print(const Flags& flags) {
    MNEME_ASSIGN_OR_RETURN(
        const std::unique_ptr<ModelRun> run,
        ModelRun::Create(MakeCheckpoint(shape_, dtype_, Values::kNone), device_));
    for (const int64_t batch : flags.batches) {
      MNEME_RETURN_IF_ERROR(run->Begin(batch, flags.position));
      ops_.clear();
      MNEME_RETURN_IF_ERROR(run->Pass(device_, 1, /*wanted=*/true));
      Report("decode", batch, batch, flags);
    }
    for (const int64_t tokens : flags.prefills) {
      MNEME_RETURN_IF_ERROR(run->Begin(1, 0));
      ops_.clear();
      for (int64_t read = 0; read < tokens; read += kPassTokens) {
        const int64_t count = std::min(kPassTokens, tokens - read);
        MNEME_RETURN_IF_ERROR(run->Pass(device_, count, read + count == tokens));
      }
      Report("prefill", tokens, tokens, flags);
    }
    return absl::OkStatus();
  }

 private:
  void Report(const char* what, int64_t size, int64_t tokens, const Flags& flags) const {
    OpUse all;
    for (const auto& [op, use] : ops_) {
      all.cost += use.cost;
      all.seconds += use.seconds;
    }
    std::printf("%-16s %-5s %-7s %5lld %10.3f %11.1f %8lld %6lld %8.1f %6.1f  %s\n",
                std::string(shape_.name).c_str(), std::string(engine::Traits(dtype_).name).c_str(),
                what, static_cast<long long>(size), 1e3 * all.seconds, tokens / all.seconds,
                static_cast<long long>(all.cost.launches), static_cast<long long>(all.cost.copies),
                all.cost.bytes() / all.seconds / 1e9,
                100 * all.cost.bytes() / all.seconds / peaks_.bytes_per_second, kModelled);
    if (!flags.ops) return;
    for (const auto& [op, use] : ops_) {
      std::printf("  %-20s %5lld calls %5lld launches %10.3f MB %10.3f Gop %9.3f ms %5.1f %%  %s\n",
                  op.c_str(), static_cast<long long>(use.calls),
                  static_cast<long long>(use.cost.launches), use.cost.bytes() / 1e6,
                  (use.cost.f32_flops + use.cost.int8_ops + use.cost.tensor_flops) / 1e9,
                  1e3 * use.seconds, 100 * use.seconds / all.seconds, kModelled);
    }
  }

  const ModelShape& shape_;
  const DType dtype_;
  const Peaks& peaks_;
  std::map<std::string, OpUse> ops_;
  CostDevice device_{{.after = [this](std::string_view op, const Cost& cost) {
    OpUse& use = ops_[std::string(op)];
    ++use.calls;
    use.cost += cost;
    use.seconds += engine::cuda::ModelledSeconds(cost, peaks_);
  }}};
};

int Main(int argc, char** argv) {
  Flags flags;
  for (const ModelShape& shape : ModelShapes()) flags.shapes.emplace_back(shape.name);
  CLI::App app{
      "What the CUDA backend's launches would take at the peaks of data sheets: per pass the\n"
      "longest of bytes, arithmetic and steps of each op, and 3 us for each launch or copy.\n"
      "Bounds that say what to change, no promise: nothing here was measured.\n\n"
      "Example: cuda_cost_model --shape rwkv7-1.5b --type Q4_K --batch 1 --prefill 512 --ops"};
  app.add_option("--shape", flags.shapes)->delimiter(',');
  app.add_option("--type", flags.types)->delimiter(',')->capture_default_str();
  app.add_option("--batch", flags.batches, "sequences that decode")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--prefill", flags.prefills, "tokens that one sequence reads")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--position", flags.position, "tokens before those that are decoded")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--machine", flags.machine)
      ->check(CLI::IsMember({"h100", "h200"}))
      ->capture_default_str();
  app.add_flag("--ops", flags.ops, "each op of a pass, too");
  CLI11_PARSE(app, argc, argv);

  const Peaks& peaks = flags.machine == "h100" ? engine::cuda::kH100 : engine::cuda::kH200;
  std::printf(
      "%s: %s, %.2f TB/s, %.0f TFLOP/s bf16, %.0f f32, %.0f int8 by dp4a; %.0f us a launch\n\n",
      kModelled, std::string(peaks.name).c_str(), peaks.bytes_per_second / 1e12,
      peaks.tensor_flops / 1e12, peaks.f32_flops / 1e12, peaks.int8_ops / 1e12,
      1e6 * engine::cuda::kLaunchSeconds);
  std::printf("%-16s %-5s %-7s %5s %10s %11s %8s %6s %8s %6s\n", "model", "type", "", "size", "ms",
              "tokens/s", "launches", "copies", "GB/s", "% peak");
  for (const std::string& name : flags.shapes) {
    const auto shapes = ModelShapes();
    const auto shape = std::find_if(shapes.begin(), shapes.end(),
                                    [&](const ModelShape& s) { return s.name == name; });
    if (shape == shapes.end()) {
      std::cerr << "no shape '" << name << "'\n";
      return 1;
    }
    for (const std::string& type : flags.types) {
      const std::optional<DType> dtype = engine::DTypeFromName(type);
      if (!dtype.has_value()) {
        std::cerr << "no weight type '" << type << "'\n";
        return 1;
      }
      if (const absl::Status status = Model(*shape, *dtype, peaks).Print(flags); !status.ok()) {
        std::cerr << name << " " << type << ": " << status << "\n";
        return 1;
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace mneme::bench

int main(int argc, char** argv) { return mneme::bench::Main(argc, argv); }
