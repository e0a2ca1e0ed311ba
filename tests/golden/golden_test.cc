// Every backend under contract f32 with f32 keys and values against the committed outputs of the
// independent references (train/make_golden.py), architecture by architecture: logits after every
// token and, where the manifest has it, the state after the last one.
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/compare.h"
#include "tests/support/tested_backends.h"

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
      for (const Kernels* backend : test::TestedBackends()) {
        cases.push_back(
            {std::string(arch.name), std::string(backend->name), entry["name"], manifest, entry});
      }
    }
  }
  return cases;
}

// A file of `count` f32, exactly.
void ReadFloats(const fs::path& path, size_t count, std::vector<float>* values) {
  values->resize(count);
  std::ifstream file(path, std::ios::binary);
  const auto bytes = static_cast<std::streamsize>(count * sizeof(float));
  file.read(reinterpret_cast<char*>(values->data()), bytes);
  ASSERT_EQ(file.gcount(), bytes) << path;
  ASSERT_EQ(file.peek(), std::ifstream::traits_type::eof()) << path;
}

test::Tolerance ToleranceOf(const nlohmann::json& json) {
  return {.absolute = json["absolute"], .relative = json["relative"]};
}

// Every tensor of the schema in its order, against manifest and file.
void CheckState(const GoldenCase& c, const StateSchema& schema, const State& state,
                test::Tolerance tolerance) {
  const nlohmann::json& listed = c.entry["state"];
  ASSERT_EQ(schema.tensors().size(), listed.size());
  size_t total = 0;
  for (size_t i = 0; i < listed.size(); ++i) {
    const StateTensor& tensor = schema.tensors()[i];
    EXPECT_EQ(tensor.name, listed[i]["name"].get<std::string>()) << "tensor " << i;
    EXPECT_EQ(tensor.layer, listed[i]["layer"].get<int32_t>()) << "tensor " << i;
    EXPECT_EQ(tensor.shape, listed[i]["shape"].get<std::vector<int64_t>>()) << "tensor " << i;
    ASSERT_EQ(tensor.dtype, DType::kF32) << tensor.name;
    total += tensor.size_bytes / sizeof(float);
  }
  std::vector<float> expected;
  ASSERT_NO_FATAL_FAILURE(ReadFloats(
      fs::path(MNEME_GOLDEN_DIR) / c.architecture / c.entry["state_values"].get<std::string>(),
      total, &expected));
  size_t begin = 0;
  for (const StateTensor& tensor : schema.tensors()) {
    std::vector<float> actual(tensor.size_bytes / sizeof(float));
    const absl::Status read = state.block.memory()->Read(state.block, tensor.offset_bytes,
                                                         std::as_writable_bytes(std::span(actual)));
    EXPECT_TRUE(read.ok()) << read;
    EXPECT_TRUE(
        test::AllClose(actual, std::span(expected).subspan(begin, actual.size()), tolerance))
        << "state tensor '" << tensor.name << "' of layer " << tensor.layer;
    begin += actual.size();
  }
}

class GoldenTest : public testing::TestWithParam<GoldenCase> {};

// Two thirds of the text, a snapshot, and the rest from what was restored.
TEST_P(GoldenTest, LogitsAfterEveryTokenAndState) {
  const GoldenCase& c = GetParam();
  const EngineOptions options{
      .checkpoint_path =
          (fs::path(MNEME_SOURCE_DIR) / c.entry["checkpoint"].get<std::string>()).string(),
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

  std::vector<float> expected;
  ASSERT_NO_FATAL_FAILURE(
      ReadFloats(fs::path(MNEME_GOLDEN_DIR) / c.architecture / c.entry["logits"].get<std::string>(),
                 tokens.size() * vocab_size, &expected));

  State state = (*engine)->CreateState();
  std::vector<float> logits(expected.size());
  const auto feed = [&](size_t begin, size_t end) {
    const EngineSlice slice{.state = &state,
                            .tokens = std::span(tokens).subspan(begin, end - begin),
                            .num_logits = static_cast<int64_t>(end - begin),
                            .logits = logits.data() + begin * vocab_size};
    return (*engine)->Step({&slice, 1});
  };
  const size_t middle = tokens.size() * 2 / 3 + 1;
  absl::Status status = feed(0, middle);
  ASSERT_TRUE(status.ok()) << status;
  auto encoded =
      EncodeSnapshot((*engine)->schema(), state, (*engine)->snapshot_identity(), nullptr);
  ASSERT_TRUE(encoded.ok()) << encoded.status();
  std::map<ChunkHash, std::string> store;
  for (auto& chunk : encoded->new_chunks) store[chunk.hash] = std::move(chunk.bytes);
  auto decoded = DecodeSnapshot(
      (*engine)->states(), (*engine)->snapshot_identity(), encoded->manifest,
      [&](const ChunkHash& hash) -> absl::StatusOr<std::string> { return store.at(hash); });
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  state = *std::move(decoded);
  status = feed(middle, tokens.size());
  ASSERT_TRUE(status.ok()) << status;

  const nlohmann::json& tolerance = c.manifest["tolerance"];
  EXPECT_TRUE(test::AllClose(logits, expected, ToleranceOf(tolerance)));
  if (c.entry.contains("state_values")) {
    CheckState(c, (*engine)->schema(), state,
               ToleranceOf(c.entry.value("state_tolerance", tolerance)));
  }
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
  std::set<std::string> registered;
  for (const ArchEntry& arch : AllArchs()) {
    registered.emplace(arch.name);
    EXPECT_TRUE(fs::exists(fs::path(MNEME_GOLDEN_DIR) / arch.name / "manifest.json"))
        << arch.name << ": run train/make_golden.py";
  }
  EXPECT_FALSE(AllCases().empty());
  std::cout << "architecture x backend x case:\n";
  for (const GoldenCase& c : AllCases()) {
    std::cout << "  " << c.architecture << " x " << c.backend << " x " << c.name
              << (c.entry.contains("state_values") ? " (logits, state)\n" : " (logits)\n");
  }
  // Folders that nothing above has run. Those without logits are other tests' (quants, tokenizer).
  for (const fs::directory_entry& folder : fs::directory_iterator(MNEME_GOLDEN_DIR)) {
    std::ifstream file(folder.path() / "manifest.json");
    if (!file || registered.contains(folder.path().filename().string())) continue;
    const nlohmann::json manifest = nlohmann::json::parse(file);
    if (!manifest.contains("cases") || manifest["cases"].empty() ||
        !manifest["cases"][0].contains("logits")) {
      continue;
    }
    std::cout << "  not registered: " << folder.path().filename().string() << ", "
              << manifest["cases"].size() << " cases\n";
  }
}

}  // namespace
}  // namespace mneme::engine
