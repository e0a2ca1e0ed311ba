// TLS, keys and tenants with the real programs: who gets in, what a reload takes away while streams
// run, and that nobody's text or key is ever in a log.
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/stat.h>

#include <thread>

#include "tests/e2e/cli_test_base.h"
#include "tests/support/certificates.h"
#include "tests/support/http_get.h"

namespace mneme::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kSecretText[] = "The quick brown password jumps";

class SecurityTest : public ::testing::Test {
 protected:
  fs::path In(const std::string& name) const { return folder_.path() / name; }
  fs::path KeysFile() const { return In("keys.yaml"); }

  ChildProcess::Options Command(std::vector<std::string> args, const std::string& key_file) {
    args.insert(args.begin(), MNEME_CLI_BINARY);
    std::vector<std::pair<std::string, std::string>> environment = {
        {"HOME", folder_.path()}, {"XDG_CONFIG_HOME", ""}, {"XDG_STATE_HOME", ""}};
    if (server_ != nullptr) {
      environment.emplace_back("MNEME_SERVER", "https://" + server_->address());
    }
    environment.emplace_back("MNEME_TLS_CA", ca_);
    environment.emplace_back("MNEME_TENANT", "acme");
    if (!key_file.empty()) args.insert(args.end(), {"--key-file", In(key_file + ".key")});
    return {.command = std::move(args),
            .environment = std::move(environment),
            .input = {},
            .folder = folder_.path(),
            .name = absl::StrCat("cli", ++commands_)};
  }
  ChildProcess::Result Run(std::vector<std::string> args, const std::string& key_file = "") {
    return ChildProcess::Run(Command(std::move(args), key_file));
  }
  // Makes a key; its file is <id>.key.
  std::string CreateKey(const std::string& id, std::vector<std::string> more = {}) {
    std::vector<std::string> args = {"keys", "create", "-f", KeysFile(), "--id", id};
    args.insert(args.end(), more.begin(), more.end());
    const ChildProcess::Result result = Run(args);
    EXPECT_EQ(result.code, 0) << result.err;
    std::ofstream(In(id + ".key")) << result.out;
    std::string key = result.out.substr(0, result.out.find('\n'));
    EXPECT_THAT(key, ::testing::MatchesRegex("mneme_[A-Za-z0-9_-]{43}"));
    keys_.push_back(key);
    return key;
  }
  void StartServer() {
    auto server = ServerProcess::Start(
        {.binary = MNEME_SERVER_BINARY,
         .model = absl::StrCat("tiny=", MNEME_TINY_MODEL),
         .folder = folder_.path(),
         .flags = {"--listen.tls.cert", server_files_.certificate, "--listen.tls.key",
                   server_files_.key, "--auth.keys_file", KeysFile()}});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  // Until the log has `text` more than `before` times.
  int InLog(const std::string& text) const {
    const std::string log = server_->Log();
    int count = 0;
    for (size_t at = log.find(text); at != log.npos; at = log.find(text, at + 1)) ++count;
    return count;
  }
  void Reload(const std::string& outcome) {
    const int before = InLog(outcome);
    kill(server_->pid(), SIGHUP);
    for (int i = 0; i < 2000 && InLog(outcome) == before; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    EXPECT_EQ(InLog(outcome), before + 1) << server_->Log();
  }
  void ExpectRefused(const ChildProcess::Result& result, int code, const std::string& reason) {
    EXPECT_EQ(result.code, code) << result.err;
    EXPECT_THAT(result.err, HasSubstr(reason));
  }
  // No log, metric or message has a key or what somebody wrote.
  void ExpectNothingLeaked() {
    for (const auto& entry : fs::directory_iterator(folder_.path())) {
      const std::string name = entry.path().filename();
      if (!name.ends_with(".err") && name != "server.out" && name != "metrics") continue;
      const std::string text = ReadFile(entry.path());
      EXPECT_EQ(text.find("password"), text.npos) << name;
      for (const std::string& key : keys_) EXPECT_EQ(text.find(key), text.npos) << name;
    }
  }

  TemporaryFolder folder_;
  CertificateAuthority authority_{folder_.path()};
  CertificateFiles server_files_ = authority_.Issue("server");
  std::string ca_ = authority_.certificate();
  std::unique_ptr<ServerProcess> server_;
  std::vector<std::string> keys_;
  int commands_ = 0;
};

TEST_F(SecurityTest, AKeyOpensItsTenantAndNothingElse) {
  CreateKey("acme-1");
  CreateKey("look", {"--role", "reader"});
  CreateKey("other-1", {"--tenant", "other"});
  CreateKey("scrape", {"--role", "metrics"});
  std::ofstream(In("wrong.key")) << "mneme_" << std::string(43, 'x') << "\n";
  StartServer();
  EXPECT_EQ(Run({"sessions", "create", "s"}, "acme-1").code, 0);
  const auto turn = Run({"generate", kSecretText, "-s", "s", "-n", "4", "--ignore-eos"}, "acme-1");
  EXPECT_EQ(turn.code, 0) << turn.err;
  EXPECT_EQ(Run({"sessions", "get", "s"}, "look").code, 0);
  EXPECT_EQ(Run({"status"}).code, 0);  // health needs no key

  ExpectRefused(Run({"sessions", "get", "s"}), 6, "CREDENTIALS_INVALID");
  ExpectRefused(Run({"sessions", "get", "s"}, "wrong"), 6, "CREDENTIALS_INVALID");
  ExpectRefused(Run({"sessions", "delete", "s"}, "look"), 6, "ACCESS_DENIED");
  ExpectRefused(Run({"sessions", "get", "s"}, "other-1"), 6, "ACCESS_DENIED");
  ExpectRefused(Run({"sessions", "get", "absent"}, "other-1"), 6, "ACCESS_DENIED");
  ExpectRefused(Run({"sessions", "get", "s", "--tenant", "other"}, "other-1"), 3,
                "SESSION_NOT_FOUND");

  const HttpReply page = HttpGet(server_->metrics_address(), "/metrics", "GET",
                                 absl::StrCat("Authorization: Bearer ", keys_.back(), "\r\n"));
  EXPECT_EQ(page.code, 200);
  EXPECT_THAT(page.body, HasSubstr("reason=\"CREDENTIALS_INVALID\""));
  std::ofstream(In("metrics")) << page.body;
  EXPECT_EQ(HttpGet(server_->metrics_address(), "/metrics").code, 401);
  EXPECT_THAT(server_->Log(), HasSubstr("\"key\":\"acme-1\""));
  ExpectNothingLeaked();
}

TEST_F(SecurityTest, WhatAReloadChangesIsForNewCalls) {
  CreateKey("acme-1");
  CreateKey("acme-2");
  StartServer();
  ASSERT_EQ(Run({"sessions", "create", "s"}, "acme-1").code, 0);
  auto stream = ChildProcess::Start(Command(
      {"generate", kSecretText, "-s", "s", "-n", "60000", "--ignore-eos", "--json"}, "acme-1"));
  ASSERT_TRUE(stream.ok()) << stream.status();
  const auto grows = [&] {
    const size_t before = (*stream)->Out().size();
    for (int i = 0; i < 2000 && (*stream)->Out().size() <= before + 1000; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return (*stream)->Out().size() > before + 1000;
  };
  ASSERT_TRUE(grows()) << (*stream)->Err();

  EXPECT_EQ(Run({"keys", "revoke", "-f", KeysFile(), "acme-1"}).code, 0);
  const CertificateAuthority renewed(folder_.path(), "renewed");
  renewed.Issue("server");  // the files that the server was started with
  Reload("reloaded: ");
  const std::string old_ca = ca_;
  ExpectRefused(Run({"models"}, "acme-2"), 5, "TLS_SERVER_UNKNOWN");
  ca_ = renewed.certificate();
  ExpectRefused(Run({"models"}, "acme-1"), 6, "CREDENTIALS_INVALID");
  EXPECT_EQ(Run({"models"}, "acme-2").code, 0);
  EXPECT_TRUE(grows()) << "the stream that ran was ended\n" << (*stream)->Err();

  // Nothing of a reload that is broken holds.
  const std::string good = ReadFile(KeysFile());
  std::ofstream(KeysFile()) << "keys: [broken\n";
  Reload("reload refused");
  EXPECT_EQ(Run({"models"}, "acme-2").code, 0);
  std::ofstream(KeysFile()) << good;
  (*stream)->Signal(SIGINT);
  (*stream)->Wait();
  ExpectNothingLeaked();
}

TEST_F(SecurityTest, AFileThatCannotBeUsedStopsTheStart) {
  std::ofstream(KeysFile()) << "keys:\n  - {id: a}\n";
  const auto start = [&](std::vector<std::string> flags) {
    return ChildProcess::Run(
        {.command = ServerProcess::Command({.binary = MNEME_SERVER_BINARY,
                                            .model = absl::StrCat("tiny=", MNEME_TINY_MODEL),
                                            .folder = folder_.path(),
                                            .flags = std::move(flags)}),
         .environment = {},
         .input = {},
         .folder = folder_.path(),
         .name = "start"});
  };
  ChildProcess::Result result = start({"--auth.keys_file", KeysFile()});
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, HasSubstr("keys.yaml:2: "));
  result = start({"--listen.tls.cert", "/nonexistent.pem", "--listen.tls.key", server_files_.key});
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, HasSubstr("/nonexistent.pem"));
}

TEST_F(SecurityTest, KeysAreEditedLineByLine) {
  std::ofstream(KeysFile()) << "# ours\n"
                               "certificates:\n"
                               "  - {id: ci, dns: ci.example.org, tenant: acme, role: user}\n"
                               "keys:\n"
                               "  # the first\n"
                               "  - id: first\n"
                               "    sha256: "
                            << std::string(64, '0')
                            << "\n"
                               "    tenant: acme\n"
                               "    role: user   # for now\n"
                               "\n"
                               "  # the second\n"
                               "  - id: second\n"
                               "    sha256: "
                            << std::string(64, '1') << "\n    tenant: acme\n    role: user\n";
  const std::string before = ReadFile(KeysFile());
  CreateKey("third", {"--models", "tiny,models/small", "--expires", "90d"});
  const std::string with_third = ReadFile(KeysFile());
  EXPECT_THAT(with_third, HasSubstr("    models: [tiny, small]\n    not_after: 20"));
  EXPECT_EQ(with_third.find(keys_[0]), with_third.npos);
  ExpectRefused(Run({"keys", "create", "-f", KeysFile(), "--id", "third"}), 4, "already");
  ExpectRefused(Run({"keys", "create", "-f", KeysFile(), "--id", "ci"}), 4, "already");
  EXPECT_EQ(Run({"keys", "list", "-f", KeysFile(), "-o", "name"}).out,
            "third\nfirst\nsecond\nci\n");
  EXPECT_EQ(Run({"keys", "revoke", "-f", KeysFile(), "third"}).code, 0);
  EXPECT_EQ(ReadFile(KeysFile()), before);
  EXPECT_EQ(Run({"keys", "revoke", "-f", KeysFile(), "first"}).code, 0);
  EXPECT_THAT(ReadFile(KeysFile()), HasSubstr("keys:\n  # the first\n\n  # the second\n"));
  EXPECT_EQ(Run({"keys", "revoke", "-f", KeysFile(), "ci"}).code, 0);
  ExpectRefused(Run({"keys", "revoke", "-f", KeysFile(), "ci"}), 3, "has no key ci");
  EXPECT_EQ(Run({"keys", "revoke", "-f", KeysFile(), "second"}).code, 0);
  EXPECT_EQ(Run({"keys", "list", "-f", KeysFile(), "-o", "name"}).out, "");
  CreateKey("again");
  EXPECT_EQ(Run({"keys", "list", "-f", KeysFile(), "-o", "name"}).out, "again\n");

  std::ofstream(KeysFile()) << "keys: [{id: a, tenant: t}]\n";
  ExpectRefused(Run({"keys", "create", "-f", KeysFile()}), 6, "edit it by hand");
  ExpectRefused(Run({"keys", "revoke", "-f", KeysFile(), "a"}), 6, "edit it by hand");
  EXPECT_EQ(ReadFile(KeysFile()), "keys: [{id: a, tenant: t}]\n");
  ExpectRefused(Run({"keys", "list", "-f", In("absent.yaml")}), 3, "absent.yaml");
  for (const std::vector<std::string>& bad : {std::vector<std::string>{"--id", "Bad"},
                                              {"--role", "root"},
                                              {"--tenant", "T"},
                                              {"--expires", "soon"},
                                              {"--models", "A"}}) {
    std::vector<std::string> args = {"keys", "create", "-f", In("none.yaml")};
    args.insert(args.end(), bad.begin(), bad.end());
    EXPECT_EQ(Run(args).code, 2) << bad[0];
    EXPECT_FALSE(fs::exists(In("none.yaml")));
  }
}

TEST_F(SecurityTest, ANewFileIsForItsOwnerAlone) {
  CreateKey("acme-1");
  struct stat found = {};
  ASSERT_EQ(stat(KeysFile().c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0777, 0600u);
  fs::permissions(KeysFile(), fs::perms(0644));
  CreateKey("acme-2");  // a group may go on reading it, others not
  ASSERT_EQ(stat(KeysFile().c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0777, 0640u);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path()), fs::directory_iterator()),
            std::count_if(
                fs::directory_iterator(folder_.path()), fs::directory_iterator(),
                [](const auto& e) { return e.path().filename().string().find("keys.yaml.") != 0; }))
      << "a temporary file is left";
}

TEST_F(SecurityTest, AKeyIsNotSentAsPlainTextElsewhere) {
  CreateKey("acme-1");
  ca_.clear();
  const auto result = Run({"models", "--server", "192.0.2.1:7447"}, "acme-1");
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, HasSubstr("plain text"));
  EXPECT_THAT(result.err, Not(HasSubstr(keys_[0])));
}

}  // namespace
}  // namespace mneme::test
