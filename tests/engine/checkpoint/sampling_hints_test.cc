// What checkpoints say about sampling, as GGUF keys and as generation_config.json.
#include "engine/checkpoint/sampling_hints.h"

#include <filesystem>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/gguf_builder.h"

namespace mneme::engine {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

class SamplingHintsTest : public ::testing::Test {
 protected:
  SamplingHintsTest() {
    std::string folder = (fs::temp_directory_path() / "mneme-hints-XXXXXX").string();
    EXPECT_NE(mkdtemp(folder.data()), nullptr);
    folder_ = folder;
  }
  ~SamplingHintsTest() override { fs::remove_all(folder_); }

  absl::StatusOr<SamplingHints> OfGguf(test::GgufBuilder builder) {
    const fs::path path = folder_ / "x.gguf";
    std::ofstream(path, std::ios::binary) << builder.F32Tensor("norm", {3}, {1, 2, 3}).Build();
    const auto checkpoint = Checkpoint::Open(path.string());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return ReadSamplingHints(**checkpoint);
  }
  // "": without the file.
  absl::StatusOr<SamplingHints> OfConfig(const std::string& json) {
    fs::copy(MNEME_TINY_FOLDER "/tiny-llama-hf", folder_,
             fs::copy_options::recursive | fs::copy_options::overwrite_existing);
    fs::remove(folder_ / "generation_config.json");
    if (!json.empty()) std::ofstream(folder_ / "generation_config.json") << json;
    const auto checkpoint = Checkpoint::Open(folder_.string());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return ReadSamplingHints(**checkpoint);
  }

  fs::path folder_;
};

TEST_F(SamplingHintsTest, Gguf) {
  EXPECT_THAT(*OfGguf(test::GgufBuilder().Str("general.architecture", "llama")), IsEmpty());
  test::GgufBuilder all;
  all.F32("general.sampling.temp", 0.5f).F32("general.sampling.top_p", 0.75f);
  all.Raw("general.sampling.top_k", 5, test::Bytes(int32_t{20}));
  all.F32("general.sampling.min_p", 0.25f).F32("general.sampling.penalty_repeat", 1.125f);
  all.Raw("general.sampling.penalty_last_n", 5, test::Bytes(int32_t{128}));
  EXPECT_THAT(*OfGguf(all),
              UnorderedElementsAre(Pair("temperature", 0.5), Pair("top_p", 0.75), Pair("top_k", 20),
                                   Pair("min_p", 0.25), Pair("repetition_penalty", 1.125),
                                   Pair("penalty_window_tokens", 128)));
  test::GgufBuilder off;
  off.Raw("general.sampling.top_k", 5, test::Bytes(int32_t{-1}));
  off.Raw("general.sampling.penalty_last_n", 5, test::Bytes(int32_t{-1}));
  EXPECT_THAT(*OfGguf(off),
              UnorderedElementsAre(Pair("top_k", 0), Pair("penalty_window_tokens", 8192)));
  EXPECT_THAT(
      std::string(
          OfGguf(test::GgufBuilder().Str("general.sampling.temp", "hot")).status().message()),
      HasSubstr("general.sampling.temp must be a number"));
}

TEST_F(SamplingHintsTest, GenerationConfig) {
  EXPECT_THAT(*OfConfig(""), IsEmpty());
  EXPECT_THAT(*OfConfig(R"({"bos_token_id": 1, "top_k": null})"), IsEmpty());
  EXPECT_THAT(*OfConfig(R"({"do_sample": true, "temperature": 0.5, "top_p": 0.75, "top_k": 20,
                    "min_p": 0, "repetition_penalty": 1.125})"),
              UnorderedElementsAre(Pair("temperature", 0.5), Pair("top_p", 0.75), Pair("top_k", 20),
                                   Pair("min_p", 0), Pair("repetition_penalty", 1.125)));
  EXPECT_THAT(*OfConfig(R"({"do_sample": false, "temperature": 0.5})"),
              UnorderedElementsAre(Pair("temperature", 0)));
  for (const char* bad : {R"({"temperature": "hot"})", "[]", "{"}) {
    const auto hints = OfConfig(bad);
    EXPECT_EQ(hints.status().code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(hints.status().message()), HasSubstr("generation_config.json")) << bad;
  }
}

}  // namespace
}  // namespace mneme::engine
