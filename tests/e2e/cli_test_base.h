// The real `mneme` against a real mneme-server with the tiny checkpoint and a RocksDB store. One
// server serves all tests of a suite; each test uses sessions of its own.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/server_process.h"

namespace mneme::test {

using Json = nlohmann::json;

class CliE2eTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TemporaryFolder;
    StartServer();
  }
  static void TearDownTestSuite() {
    server_.reset();
    delete folder_;
    folder_ = nullptr;
  }

  // Again, on the same store and, if one ran before, on its address.
  static void StartServer() {
    ServerProcess::Options options{.binary = MNEME_SERVER_BINARY,
                                   .model = absl::StrCat("tiny=", MNEME_TINY_MODEL),
                                   .folder = folder_->path()};
    if (server_ != nullptr) options.address = server_->address();
    auto server = ServerProcess::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  void SetUp() override { ASSERT_NE(server_, nullptr); }

  static std::vector<std::pair<std::string, std::string>> Environment() {
    return {{"MNEME_SERVER", server_->address()},
            {"HOME", folder_->path()},
            {"XDG_STATE_HOME", ""},
            {"XDG_CONFIG_HOME", ""},
            {"TERM", "xterm"}};
  }
  ChildProcess::Options Command(std::vector<std::string> args, std::string input = "") {
    args.insert(args.begin(), MNEME_CLI_BINARY);
    return {.command = std::move(args),
            .environment = Environment(),
            .input = std::move(input),
            .folder = folder_->path(),
            .name = absl::StrCat("cli", ++commands_)};
  }
  std::unique_ptr<ChildProcess> Spawn(std::vector<std::string> args, std::string input = "") {
    auto child = ChildProcess::Start(Command(std::move(args), std::move(input)));
    EXPECT_TRUE(child.ok()) << child.status();
    return child.ok() ? *std::move(child) : nullptr;
  }
  ChildProcess::Result Run(std::vector<std::string> args, std::string input = "") {
    return ChildProcess::Run(Command(std::move(args), std::move(input)));
  }
  // Must succeed.
  std::string Out(std::vector<std::string> args, std::string input = "") {
    const std::string shown = ::testing::PrintToString(args);
    const ChildProcess::Result result = Run(std::move(args), std::move(input));
    EXPECT_EQ(result.code, 0) << shown << "\n" << result.err;
    return result.out;
  }
  // Must succeed and print JSON: one value, or one a line.
  Json OutJson(std::vector<std::string> args, std::string input = "") {
    args.push_back("--json");
    return Parse(Out(std::move(args), std::move(input)));
  }
  std::vector<Json> OutLines(std::vector<std::string> args, std::string input = "") {
    args.push_back("--json");
    return ParseLines(Out(std::move(args), std::move(input)));
  }
  // Must fail with `code` and say why, for people and with --json; the error object.
  Json Error(std::vector<std::string> args, int code, std::string input = "") {
    const std::string shown = ::testing::PrintToString(args);
    const ChildProcess::Result plain = Run(args, input);
    EXPECT_EQ(plain.code, code) << shown << "\n" << plain.err;
    EXPECT_NE(plain.err, "") << shown;
    args.push_back("--json");
    const ChildProcess::Result result = Run(std::move(args), std::move(input));
    EXPECT_EQ(result.code, code) << shown << "\n" << result.err;
    Json error = Parse(result.err)["error"];
    EXPECT_TRUE(error.is_object() && error["message"].is_string() && error["message"] != "")
        << shown << "\n"
        << result.err;
    return error;
  }

  static Json Parse(const std::string& text) {
    Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    EXPECT_FALSE(value.is_discarded()) << "no JSON: " << text;
    return value.is_discarded() ? Json::object() : value;
  }
  static std::vector<Json> ParseLines(const std::string& text) {
    std::vector<Json> lines;
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) lines.push_back(Parse(line));
    return lines;
  }
  // The token ids of a turn that was printed with --json.
  static std::vector<int> TokensOf(const std::vector<Json>& events) {
    std::vector<int> tokens;
    for (const Json& event : events) {
      if (!event.contains("delta")) continue;
      for (const Json& id : event["delta"]["token_ids"]) tokens.push_back(id.get<int>());
    }
    return tokens;
  }
  static std::string Name(const std::string& id) {
    return absl::StrCat("tenants/default/sessions/", id);
  }
  static std::filesystem::path WriteFile(const std::string& name, const std::string& text) {
    const std::filesystem::path path = folder_->path() / name;
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }

  static inline TemporaryFolder* folder_ = nullptr;
  static inline std::unique_ptr<ServerProcess> server_;
  static inline int commands_ = 0;
};

}  // namespace mneme::test
