// Which sampling a request gets: its own, the server's setting, the checkpoint's, the API's; field
// by field.
#include "server/core/sampling_defaults.h"

#include <filesystem>
#include <fstream>
#include <regex>

#include "tests/server/core/core_test_base.h"

namespace mneme::server {
namespace {

namespace fs = std::filesystem;
using ::testing::FloatEq;
using ::testing::HasSubstr;

class SamplingDefaultsTest : public CoreTest {
 protected:
  SamplingDefaultsTest() {
    std::string folder = (fs::temp_directory_path() / "mneme-sampling-XXXXXX").string();
    EXPECT_NE(mkdtemp(folder.data()), nullptr);
    folder_ = folder;
  }
  ~SamplingDefaultsTest() override {
    core.reset();
    fs::remove_all(folder_);
  }

  // The tiny folder with this generation_config.json.
  std::string Checkpoint(const std::string& generation_config) {
    fs::copy(MNEME_TINY_DIR "/tiny-llama-hf", folder_,
             fs::copy_options::recursive | fs::copy_options::overwrite_existing);
    std::ofstream(folder_ / "generation_config.json") << generation_config;
    return folder_.string();
  }
  v1::Sampling Reported(const std::string& model = "tiny") {
    CallContext context;
    v1::GetModelRequest request;
    request.set_name(model);
    const auto found = core->GetModel(context, request);
    EXPECT_TRUE(found.ok()) << found.status();
    return found.ok() ? found->default_sampling() : v1::Sampling();
  }
  // Chosen with a fixed seed and `sampling` beside it.
  std::vector<int32_t> Tokens(v1::Sampling sampling) {
    auto request = Request("", "Once upon", 24);
    sampling.set_seed(5);
    *request.mutable_sampling() = sampling;
    return MustGenerate(request).tokens;
  }
  static v1::Sampling Temperature(float temperature) {
    v1::Sampling sampling;
    sampling.set_temperature(temperature);
    return sampling;
  }

  fs::path folder_;
};

TEST_F(SamplingDefaultsTest, WithoutAnybodysWordTheApisOwn) {
  Start();
  const v1::Sampling defaults = Reported();
  for (const SamplingField& field : kSamplingFields) {
    EXPECT_TRUE(HasSampling(defaults, field)) << field.name;
    EXPECT_FLOAT_EQ(GetSampling(defaults, field), field.fallback) << field.name;
    EXPECT_TRUE(field.Accepts(field.fallback)) << field.name;
  }
  EXPECT_FALSE(defaults.has_seed());
  EXPECT_EQ(Tokens({}), Tokens(defaults));
  EXPECT_NE(Tokens({}), Tokens(Temperature(10)));
}

TEST_F(SamplingDefaultsTest, TheProtoSaysWhatHolds) {
  std::ifstream file(MNEME_SOURCE_DIR "/proto/mneme/v1/generation.proto");
  const std::string proto{std::istreambuf_iterator<char>(file), {}};
  for (const SamplingField& field : kSamplingFields) {
    // Behind the field, or on the line above it.
    const std::regex said(absl::StrCat("(?:  // Default ([0-9.]*[0-9])[^\n]*\n)?  optional \\w+ ",
                                       field.name, " = \\d+;(?: +// default ([0-9.]*[0-9]))?"));
    std::smatch match;
    ASSERT_TRUE(std::regex_search(proto, match, said)) << field.name;
    const std::string value = match[1].matched ? match[1].str() : match[2].str();
    EXPECT_EQ(value, absl::StrCat(field.fallback)) << field.name;
  }
}

TEST_F(SamplingDefaultsTest, TheCheckpointsRecommendationWinsOverTheApis) {
  config.models = {{"tiny", Checkpoint(R"({"temperature": 0.25, "top_k": 7})")}};
  Start();
  const v1::Sampling defaults = Reported();
  EXPECT_FLOAT_EQ(defaults.temperature(), 0.25);
  EXPECT_EQ(defaults.top_k(), 7);
  EXPECT_FLOAT_EQ(defaults.top_p(), 0.95);
  config.models = {{"tiny", Checkpoint(R"({"do_sample": false})")}};
  Start();
  EXPECT_EQ(Reported().temperature(), 0);
  EXPECT_EQ(Tokens({}), Tokens(Temperature(0)));
}

TEST_F(SamplingDefaultsTest, TheSettingWinsOverTheCheckpoint) {
  const std::string checkpoint = Checkpoint(R"({"temperature": 0.25, "top_k": 7})");
  config.models = {{"tiny", checkpoint}, {"other", checkpoint}};
  config.sampling = {{"temperature", {{"", 0.5}, {"other", 0.75}}}, {"min_p", {{"other", 0}}}};
  Start();
  EXPECT_FLOAT_EQ(Reported("tiny").temperature(), 0.5);
  EXPECT_FLOAT_EQ(Reported("other").temperature(), 0.75);
  EXPECT_EQ(Reported("tiny").top_k(), 7);
  EXPECT_FLOAT_EQ(Reported("tiny").min_p(), 0.05);
  EXPECT_EQ(Reported("other").min_p(), 0);
}

TEST_F(SamplingDefaultsTest, TheRequestWinsOverAllFieldByField) {
  config.sampling = {{"top_k", {{"", 1}}}};
  Start();
  const auto greedy = Tokens(Temperature(0));
  EXPECT_EQ(Tokens(Temperature(10)), greedy);  // one candidate is left to choose from
  v1::Sampling open = Temperature(10);
  open.set_top_k(0);  // off is not the same as absent
  open.set_min_p(0);
  EXPECT_NE(Tokens(open), greedy);
}

TEST_F(SamplingDefaultsTest, ARecommendationOutOfRangeIsAnErrorThatASettingMends) {
  config.models = {{"tiny", Checkpoint(R"({"top_p": 1.5})")}};
  const auto made = ServerCore::Create(config, std::make_unique<TestStore>(store));
  ASSERT_FALSE(made.ok());
  for (const char* part : {"model tiny", "top_p of 1.5", "(0, 1]", "sampling.top_p"}) {
    EXPECT_THAT(std::string(made.status().message()), HasSubstr(part));
  }
  config.sampling = {{"top_p", {{"tiny", 0.5}}}};
  Start();
  EXPECT_THAT(Reported().top_p(), FloatEq(0.5));
}

}  // namespace
}  // namespace mneme::server
