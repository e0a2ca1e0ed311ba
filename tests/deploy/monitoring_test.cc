// The alerts and the dashboard of deploy/, asked of a real Prometheus that reads a real server:
// each query is one that Prometheus accepts, names only what the server exports, and has an answer.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "nlohmann/json.hpp"
#include "tests/support/free_address.h"
#include "tests/support/http_get.h"
#include "tests/support/server_process.h"

namespace mneme::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr char kPrometheus[] = MNEME_SOURCE_DIR "/deploy/prometheus";
constexpr char kDashboard[] = MNEME_SOURCE_DIR "/deploy/grafana/dashboards/mneme.json";

std::string Escaped(const std::string& text) {
  std::string escaped;
  for (const unsigned char c : text) {
    if (absl::ascii_isalnum(c)) {
      escaped += static_cast<char>(c);
    } else {
      absl::StrAppend(&escaped, "%", absl::Hex(c, absl::kZeroPad2));
    }
  }
  return escaped;
}

struct Query {
  std::string where, text;
};

// Of every panel, with its variables as Grafana fills them in when everything is chosen.
std::vector<Query> QueriesOfTheDashboard() {
  std::vector<Query> queries;
  const json dashboard = json::parse(ReadFile(kDashboard));
  for (const json& panel : dashboard.at("panels")) {
    if (panel.at("type") == "row") continue;
    EXPECT_FALSE(panel.at("targets").empty()) << panel.at("title");
    for (const json& target : panel.at("targets")) {
      queries.push_back({panel.at("title"),
                         absl::StrReplaceAll(
                             target.at("expr").get<std::string>(),
                             {{"$__rate_interval", "1m"}, {"$instance", ".*"}, {"$model", ".*"}})});
    }
  }
  return queries;
}

class MonitoringTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(system("command -v prometheus promtool >/dev/null"), 0)
        << "prometheus is missing: deploy/install_packages.sh test";
  }

  ChildProcess::Result Shell(const std::string& command, const fs::path& folder) {
    return ChildProcess::Run({.command = {"/bin/sh", "-c", command},
                              .environment = {{"MNEME_SERVER", server_ ? server_->address() : ""}},
                              .folder = folder,
                              .name = "shell"});
  }

  void StartServer() {
    auto server = ServerProcess::Start({.binary = MNEME_SERVER_BINARY,
                                        .model = absl::StrCat("tiny=", MNEME_TINY_MODEL),
                                        .folder = folder_.path()});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  // deploy/prometheus as it is, but for the target and how often it is asked.
  void StartPrometheus() {
    std::string config = ReadFile(absl::StrCat(kPrometheus, "/prometheus.yaml"));
    ASSERT_EQ(absl::StrReplaceAll({{"127.0.0.1:7448", server_->metrics_address()},
                                   {"scrape_interval: 5s", "scrape_interval: 1s"},
                                   {"evaluation_interval: 15s", "evaluation_interval: 1s"}},
                                  &config),
              3);
    const fs::path folder = folder_.path() / "prometheus";
    fs::create_directory(folder);
    std::ofstream(folder / "prometheus.yaml") << config;
    fs::copy_file(absl::StrCat(kPrometheus, "/alerts.yaml"), folder / "alerts.yaml");
    address_ = FreeAddress();
    auto prometheus = ChildProcess::Start(
        {.command = {"/usr/bin/prometheus",
                     absl::StrCat("--storage.tsdb.path=", (folder / "data").string()),
                     absl::StrCat("--config.file=", (folder / "prometheus.yaml").string()),
                     absl::StrCat("--web.listen-address=", address_)},
         .folder = folder,
         .name = "prometheus"});
    ASSERT_TRUE(prometheus.ok()) << prometheus.status();
    prometheus_ = *std::move(prometheus);
  }

  json Ask(const std::string& query) {
    const HttpReply reply = HttpGet(address_, absl::StrCat("/api/v1/query?query=", Escaped(query)));
    return json::parse(reply.body, nullptr, /*allow_exceptions=*/false);
  }
  int Samples(const std::string& query) {
    const json answer = Ask(query);
    if (!answer.is_object() || answer.value("status", "") != "success") return -1;
    return static_cast<int>(answer.at("data").at("result").size());
  }

  TemporaryFolder folder_;
  std::unique_ptr<ServerProcess> server_;
  std::string address_;
  std::unique_ptr<ChildProcess> prometheus_;
};

TEST_F(MonitoringTest, EveryAlertFiresWhenItShould) {
  const auto tested =
      Shell("promtool check rules " MNEME_SOURCE_DIR
            "/deploy/prometheus/alerts.yaml && promtool test rules " MNEME_SOURCE_DIR
            "/tests/deploy/alerts_test.yaml",
            folder_.path());
  EXPECT_EQ(tested.code, 0) << tested.out << tested.err;

  // None is left out there.
  static const std::regex kName("(?:alert: |alertname=\")(Mneme\\w+)");
  const auto names = [](const std::string& file) {
    const std::string text = ReadFile(file);
    return std::set<std::string>(std::sregex_token_iterator(text.begin(), text.end(), kName, 1),
                                 {});
  };
  EXPECT_EQ(names(absl::StrCat(kPrometheus, "/alerts.yaml")),
            names(MNEME_SOURCE_DIR "/tests/deploy/alerts_test.yaml"));
}

TEST_F(MonitoringTest, TheDashboardShowsWhatTheServerExports) {
  StartServer();
  if (HasFatalFailure()) return;
  StartPrometheus();
  if (HasFatalFailure()) return;
  // Something to see: turns with a session and without, and an error.
  const auto load = [&] {
    const auto turns =
        Shell(MNEME_CLI_BINARY " sessions create s; " MNEME_CLI_BINARY
                               " generate -s s The && " MNEME_CLI_BINARY
                               " generate The && ! " MNEME_CLI_BINARY " sessions get nobody",
              folder_.path());
    EXPECT_EQ(turns.code, 0) << turns.out << turns.err;
  };
  load();
  // A rate needs two readings, with a change between them.
  const auto wait_for_readings = [&](int count) {
    for (int i = 0; i < 300; ++i) {
      const json answer = Ask("count_over_time(up{job=\"mneme\"}[1m])");
      if (answer.is_object() && answer.value("status", "") == "success" &&
          !answer["data"]["result"].empty() &&
          std::stoi(answer["data"]["result"][0]["value"][1].get<std::string>()) >= count) {
        return true;
      }
      absl::SleepFor(absl::Milliseconds(100));
    }
    return false;
  };
  ASSERT_TRUE(wait_for_readings(2)) << prometheus_->Err();
  load();
  ASSERT_TRUE(wait_for_readings(5));

  std::set<std::string> exported;
  const std::string page = HttpGet(server_->metrics_address(), "/metrics").body;
  static const std::regex kSeries("(?:^|\\n)(\\w+)[{ ]");
  exported.insert(std::sregex_token_iterator(page.begin(), page.end(), kSeries, 1), {});
  const auto names_are_exported = [&](const Query& query) {
    static const std::regex kName("\\b(?:mneme|process)_\\w+");
    for (std::sregex_iterator it(query.text.begin(), query.text.end(), kName), end; it != end;
         ++it) {
      EXPECT_TRUE(exported.contains(it->str())) << query.where << " asks for " << it->str();
    }
  };

  const std::vector<Query> queries = QueriesOfTheDashboard();
  EXPECT_GT(queries.size(), 30u);
  for (const Query& query : queries) {
    names_are_exported(query);
    EXPECT_GT(Samples(query.text), 0) << query.where << ": " << query.text << "\n"
                                      << Ask(query.text);
  }

  // The alerts are loaded, healthy, and quiet beside a server that does well.
  const json rules = json::parse(HttpGet(address_, "/api/v1/rules").body);
  int alerts = 0;
  for (const json& rule : rules.at("data").at("groups").at(0).at("rules")) {
    ++alerts;
    EXPECT_EQ(rule.at("health"), "ok") << rule;
    EXPECT_EQ(rule.at("state"), "inactive") << rule;
    names_are_exported({rule.at("name"), rule.at("query")});
  }
  EXPECT_GT(alerts, 10);
}

TEST_F(MonitoringTest, PanelsHaveNumbersAndPlaces) {
  const json dashboard = json::parse(ReadFile(kDashboard));
  std::set<int> ids;
  for (const json& panel : dashboard.at("panels")) {
    EXPECT_TRUE(ids.insert(panel.at("id").get<int>()).second) << panel.at("title");
    const json& place = panel.at("gridPos");
    EXPECT_LE(place.at("x").get<int>() + place.at("w").get<int>(), 24) << panel.at("title");
  }
  EXPECT_EQ(dashboard.at("uid"), "mneme");
}

}  // namespace
}  // namespace mneme::test
