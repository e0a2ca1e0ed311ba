// A decode step of every tiny checkpoint on the emulated CUDA backend: each op takes the launches
// and copies that engine/kernels/cuda/cost.cc says, and all together those of
// tests/gates/launch_budget.txt, so that they can only fall. LAUNCH_BUDGET=write makes that file
// anew, from the checkpoints' goals.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/kernels/cuda/cost.h"
#include "tests/support/emulated_cuda.h"

namespace mneme::engine::cuda {
namespace {

namespace fs = std::filesystem;

// What lies outside the layers: embedding, its norm, the wanted rows, their norm, the head, whether
// logits are finite.
constexpr int64_t kOutsideLayers = 6;

// Launches of a layer that are aimed at; 0: no aim yet.
int64_t GoalOfLayer(const std::string& architecture) {
  if (architecture == "rwkv7") return 12;
  if (architecture == "llama") return 8;
  return 0;
}

struct Use {
  std::string architecture;
  int64_t layers = 0;
  int64_t launches = 0;
  int64_t copies = 0;

  bool operator==(const Use&) const = default;
};
// For gtest.
void PrintTo(const Use& use, std::ostream* out) {
  *out << use.launches << " launches and " << use.copies << " copies in " << use.layers
       << " layers of " << use.architecture;
}

std::vector<std::string> TinyCheckpoints() {
  std::vector<std::string> paths;
  for (const fs::directory_entry& entry : fs::directory_iterator(MNEME_TINY_DIR)) {
    if (entry.path().filename() != "manifest.json") paths.push_back(entry.path().string());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

// Of ops alone. What the engine itself reads back is not a backend's.
Use MeasureDecodeStep(const std::string& checkpoint) {
  const std::unique_ptr<Device> under = test::EmulatedCudaDevice();
  Use measured;
  CuemuCounts before;
  const auto device = std::make_shared<CostDevice>(
      CostDevice::Observer{.after =
                               [&](std::string_view op, const Cost& cost) {
                                 const CuemuCounts& now = test::EmulatedCudaCounts();
                                 const int64_t launches = now.launches - before.launches;
                                 const int64_t copies = now.copies - before.copies;
                                 EXPECT_EQ(launches, cost.launches) << op;
                                 EXPECT_EQ(copies, cost.copies) << op;
                                 measured.launches += launches;
                                 measured.copies += copies;
                               },
                           .before = [&] { before = test::EmulatedCudaCounts(); }},
      *under);
  auto engine = Engine::Load({.checkpoint_path = checkpoint, .device = device});
  if (!engine.ok()) {
    ADD_FAILURE() << engine.status();
    return measured;
  }
  std::vector<float> logits((*engine)->info().vocab_size);
  State state = (*engine)->CreateState();
  // A prompt, some tokens, and the one that counts.
  for (const size_t count : {5, 1, 1}) {
    const std::vector<TokenId> tokens(count, 3);
    const EngineSlice slice{
        .state = &state, .tokens = tokens, .num_logits = 1, .logits = logits.data()};
    measured = {.architecture = (*engine)->info().architecture,
                .layers = (*engine)->info().num_layers};
    const absl::Status status = (*engine)->Step({&slice, 1});
    EXPECT_TRUE(status.ok()) << status;
  }
  return measured;
}

constexpr const char* kHeader =
    "# Launches and copies that one token of one sequence takes on CUDA: measured on the emulator "
    "and\n"
    "# held by launch_budget_test; LAUNCH_BUDGET=write makes it anew when they have fallen. Goal: "
    "12\n"
    "# launches a layer of RWKV-7, 8 of Llama, and 6 outside the layers.\n"
    "# checkpoint: architecture layers launches copies goal\n";

std::map<std::string, Use> ReadBudget() {
  std::map<std::string, Use> budget;
  std::ifstream file(MNEME_LAUNCH_BUDGET);
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("#")) continue;
    std::istringstream words(line);
    std::string name;
    Use use;
    words >> name >> use.architecture >> use.layers >> use.launches >> use.copies;
    EXPECT_TRUE(words && name.ends_with(":")) << line;
    budget[name.substr(0, name.size() - 1)] = use;
  }
  return budget;
}

TEST(LaunchBudgetTest, DecodeStepsKeepTo) {
  std::map<std::string, Use> measured;
  for (const std::string& path : TinyCheckpoints()) {
    SCOPED_TRACE(path);
    measured[fs::path(path).filename().string()] = MeasureDecodeStep(path);
  }
  if (const char* mode = std::getenv("LAUNCH_BUDGET"); mode != nullptr) {
    ASSERT_STREQ(mode, "write");
    std::ofstream file(MNEME_LAUNCH_BUDGET);
    file << kHeader;
    for (const auto& [name, use] : measured) {
      const int64_t goal = GoalOfLayer(use.architecture);
      file << name << ": " << use.architecture << " " << use.layers << " " << use.launches << " "
           << use.copies << " "
           << (goal == 0 ? "-" : std::to_string(goal * use.layers + kOutsideLayers)) << "\n";
    }
  }
  // Fewer are good news that the file must tell, or they could come back.
  EXPECT_EQ(measured, ReadBudget());
}

}  // namespace
}  // namespace mneme::engine::cuda
