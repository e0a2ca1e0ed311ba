// Every backend under contract f32 with f32 keys and values against the committed outputs of the
// independent references (train/make_golden.py), architecture by architecture.
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/kernels/kernels.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/compare.h"

namespace mneme::engine {
namespace {

namespace fs = std::filesystem;

struct GoldenCase {
  std::string architecture;  // folder of tests/golden
  std::string backend;
  std::string name;
  nlohmann::json manifest;
  nlohmann::json entry;
};

void PrintTo(const GoldenCase& c, std::ostream* out) {
  *out << c.architecture << " " << c.name << " on " << c.backend;
}

// Every tests/golden/<architecture>/manifest.json, every case in it, every backend.
std::vector<GoldenCase> AllCases() {
  std::vector<GoldenCase> cases;
  for (const ArchEntry& arch : AllArchs()) {
    std::ifstream file(fs::path(MNEME_GOLDEN_DIR) / arch.name / "manifest.json");
    if (!file) continue;  // EveryArchitectureHasGoldens reports it
    const nlohmann::json manifest = nlohmann::json::parse(file);
    for (const nlohmann::json& entry : manifest["cases"]) {
      for (const Kernels* backend : AllBackends()) {
        cases.push_back(
            {std::string(arch.name), std::string(backend->name), entry["name"], manifest, entry});
      }
    }
  }
  return cases;
}

class GoldenTest : public testing::TestWithParam<GoldenCase> {};

TEST_P(GoldenTest, LogitsAfterEveryToken) {
  const GoldenCase& c = GetParam();
  const EngineOptions options{
      .checkpoint_path =
          (fs::path(MNEME_GOLDEN_DIR) / "tiny" / c.entry["checkpoint"].get<std::string>()).string(),
      .backend = c.backend,
      .contract = Contract::kF32,
      .arch = {.window_tokens = c.entry["window_tokens"],
               .sink_tokens = c.entry["sink_tokens"],
               .kv_dtype = DType::kF32},
      .num_threads = 2};
  auto engine = Engine::Load(options);
  ASSERT_TRUE(engine.ok()) << engine.status();
  const std::vector<TokenId> tokens = c.entry["tokens"];
  const int64_t vocab_size = (*engine)->info().vocab_size;
  ASSERT_EQ(vocab_size, c.entry["vocab_size"].get<int64_t>());

  std::vector<float> expected(tokens.size() * vocab_size);
  std::ifstream file(
      fs::path(MNEME_GOLDEN_DIR) / c.architecture / c.entry["logits"].get<std::string>(),
      std::ios::binary);
  const auto bytes = static_cast<std::streamsize>(expected.size() * sizeof(float));
  file.read(reinterpret_cast<char*>(expected.data()), bytes);
  ASSERT_EQ(file.gcount(), bytes);
  ASSERT_EQ(file.peek(), std::ifstream::traits_type::eof());

  State state = (*engine)->CreateState();
  std::vector<float> logits(expected.size());
  const EngineSlice slice{.state = &state,
                          .tokens = tokens,
                          .num_logits = static_cast<int64_t>(tokens.size()),
                          .logits = logits.data()};
  const absl::Status status = (*engine)->Step({&slice, 1});
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(test::AllClose(logits, expected,
                             {.absolute = c.manifest["tolerance"]["absolute"],
                              .relative = c.manifest["tolerance"]["relative"]}));
}

std::string CaseName(const testing::TestParamInfo<GoldenCase>& info) {
  std::string name = info.param.architecture + "_" + info.param.backend + "_" + info.param.name;
  for (char& ch : name) {
    if (!isalnum(static_cast<unsigned char>(ch))) ch = '_';
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTest, testing::ValuesIn(AllCases()), CaseName);

TEST(GoldenListTest, EveryArchitectureHasGoldens) {
  for (const ArchEntry& arch : AllArchs()) {
    EXPECT_TRUE(fs::exists(fs::path(MNEME_GOLDEN_DIR) / arch.name / "manifest.json"))
        << arch.name << ": run train/make_golden.py";
  }
  EXPECT_FALSE(AllCases().empty());
}

}  // namespace
}  // namespace mneme::engine
