#include "server/config/settings.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/kernels/kernels.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::server {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// The server's code without the table of settings, comments and texts.
std::string ServerCode() {
  static const std::regex kNoCode(R"re(//[^\n]*|"(\\.|[^"\\\n])*")re");
  std::string code;
  for (const auto& entry :
       fs::recursive_directory_iterator(fs::path(MNEME_SOURCE_DIR) / "server")) {
    const fs::path& path = entry.path();
    if (path.filename() == "settings.cc" || path.filename() == "config.h") continue;
    if (path.extension() != ".cc" && path.extension() != ".h") continue;
    std::ifstream file(path);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    code += std::regex_replace(text, kNoCode, "");
  }
  return code;
}

// A setting that is accepted and then forgotten promises what does not happen.
TEST(SettingsTest, EverySettingIsRead) {
  const std::string code = ServerCode();
  for (const Setting& setting : Settings()) {
    // Of listen.tls.cert: tls and cert.
    std::string section = "config";
    std::string field = setting.key;
    if (const size_t dot = field.rfind('.'); dot != std::string::npos) {
      section = field.substr(0, dot);
      section = section.substr(section.rfind('.') + 1);
      field = field.substr(dot + 1);
    }
    if (setting.kind == Setting::Kind::kDuration) field += "_ms";
    const std::regex read(absl::StrCat("\\b", section, "_?\\.", field, "\\b"));
    EXPECT_TRUE(std::regex_search(code, read)) << setting.key << " changes nothing";
  }
}

TEST(SettingsTest, SamplingIsForEveryModelOrForSome) {
  Config config;
  const Setting* temperature = FindSetting("sampling.temperature");
  ASSERT_TRUE(temperature->set(config, "0.7,small=0.25").ok());
  EXPECT_EQ(config.sampling["temperature"],
            (std::map<std::string, double>{{"", 0.7}, {"small", 0.25}}));
  EXPECT_EQ(temperature->get(config), "0.7,small=0.25");
  ASSERT_TRUE(temperature->set(config, "").ok());
  EXPECT_EQ(temperature->get(config), "");
  for (const auto& [bad, message] :
       {std::pair("warm", "a number, or MODEL=NUMBER"),
        std::pair("=1", "a number, or MODEL=NUMBER"), std::pair("a=", "a number, or MODEL=NUMBER"),
        std::pair("11", "must be in [0, 10]"), std::pair("a=nan", "must be in [0, 10]"),
        std::pair("1,2", "one number for each model")}) {
    EXPECT_THAT(std::string(temperature->set(config, bad).message()), HasSubstr(message)) << bad;
  }
  EXPECT_THAT(std::string(FindSetting("sampling.top_k")->set(config, "1.5").message()),
              HasSubstr("a whole number"));
}

TEST(SettingsTest, NamesOfTheEngineComeFromTheEngine) {
  Config config;
  const Setting* backend = FindSetting("engine.backend");
  for (const std::string& name : engine::BackendNames()) {
    EXPECT_TRUE(backend->set(config, name).ok()) << name;
    EXPECT_THAT(backend->help, HasSubstr(name));
  }
  EXPECT_TRUE(backend->set(config, "auto").ok());
  EXPECT_FALSE(backend->set(config, "").ok());

  const Setting* target = FindSetting("engine.simd_target");
  EXPECT_TRUE(target->set(config, "").ok());
  const absl::Status unknown = target->set(config, "avx9");
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
  for (const std::string& name : engine::AvailableSimdTargets()) {
    EXPECT_TRUE(target->set(config, name).ok()) << name;
    EXPECT_THAT(std::string(unknown.message()), HasSubstr(name));
  }
}

}  // namespace
}  // namespace mneme::server
