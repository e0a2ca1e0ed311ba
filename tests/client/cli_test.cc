// The real `mneme` as a child process against a scripted server: exit codes, stdout, stderr, JSON.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "google/rpc/error_details.pb.h"
#include "tests/client/fake_server.h"

extern char** environ;

namespace mneme::client {
namespace {

using nlohmann::json;

struct Result {
  int code;
  std::string out, err;
};

std::string Slurp(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<json> Lines(const std::string& text) {
  std::vector<json> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(json::parse(line));
  return lines;
}

class CliTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char folder[] = "/tmp/mneme-cli-XXXXXX";
    ASSERT_NE(mkdtemp(folder), nullptr);
    folder_ = folder;
    server_.Start();
    environment_ = {"MNEME_SERVER=" + server_.address()};
    server_.models.on_GetModel = [](auto&, const auto& request, auto& model) {
      model.set_name(request.name());
      model.set_has_chat_template(true);
      return grpc::Status::OK;
    };
    server_.sessions.on_GetSession = [this](auto&, const auto& request, auto& session) {
      asked_name_.Set(request.name());
      if (!exists_) {
        return FakeError(grpc::StatusCode::NOT_FOUND, "SESSION_NOT_FOUND", "no such session");
      }
      session.set_name(request.name());
      session.set_model("models/m");
      session.set_position_tokens(position_);
      return grpc::Status::OK;
    };
    server_.sessions.on_CreateSession = [this](auto&, const auto& request, auto& session) {
      exists_ = true;
      asked_model_.Set(request.session().model());
      session = request.session();
      session.set_name(request.parent() + "/sessions/" + request.session_id());
      session.set_model("models/m");
      return grpc::Status::OK;
    };
    server_.generation.on_Generate = [this](auto&, const auto& request, auto& writer) {
      requests_.Update([&](auto& requests) { requests.push_back(request); });
      WriteTurn(writer, {"Hel", "lo\x1b[31m"});
      return grpc::Status::OK;
    };
  }
  void TearDown() override {
    server_.Stop();
    std::filesystem::remove_all(folder_);
  }

  pid_t Spawn(std::vector<std::string> args, const std::string& input = "") {
    std::ofstream(folder_ / "in", std::ios::binary) << input;
    args.insert(args.begin(), MNEME_CLI);
    std::vector<char*> argv;
    for (auto& a : args) argv.push_back(a.data());
    argv.push_back(nullptr);
    std::vector<std::string> env = environment_;
    env.push_back("HOME=" + folder_.string());
    for (char** e = environ; *e != nullptr; ++e) {
      const std::string variable = *e;
      if (variable.rfind("MNEME_", 0) != 0 && variable.rfind("HOME=", 0) != 0 &&
          variable.rfind("XDG_", 0) != 0) {
        env.push_back(variable);
      }
    }
    std::vector<char*> envp;
    for (auto& e : env) envp.push_back(e.data());
    envp.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    const int create = O_WRONLY | O_CREAT | O_TRUNC;
    const std::string in = folder_ / "in", out = folder_ / "out", err = folder_ / "err";
    posix_spawn_file_actions_addopen(&actions, 0, in.c_str(), O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, out.c_str(), create, 0600);
    posix_spawn_file_actions_addopen(&actions, 2, err.c_str(), create, 0600);
    pid_t pid = -1;
    EXPECT_EQ(posix_spawn(&pid, MNEME_CLI, &actions, nullptr, argv.data(), envp.data()), 0);
    posix_spawn_file_actions_destroy(&actions);
    return pid;
  }
  Result Wait(pid_t pid) {
    int status = 0;
    waitpid(pid, &status, 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
            Slurp(folder_ / "out"), Slurp(folder_ / "err")};
  }
  Result Run(std::vector<std::string> args, const std::string& input = "") {
    return Wait(Spawn(std::move(args), input));
  }

  void WriteDefaults(const std::string& text) {
    std::filesystem::create_directories(folder_ / ".config/mneme");
    std::ofstream(folder_ / ".config/mneme/config.yaml") << text;
  }

  FakeServer server_;
  std::filesystem::path folder_;
  std::vector<std::string> environment_;    // added to this program's own
  test::Guarded<std::string> asked_model_;  // of the last CreateSession
  std::atomic<bool> exists_{true};
  std::atomic<int64_t> position_{0};
  test::Guarded<std::string> asked_name_;
  test::Guarded<std::vector<v1::GenerateRequest>> requests_;
};

TEST_F(CliTest, UsageErrorsExitWith2) {
  const std::vector<std::vector<std::string>> wrong = {
      {},
      {"nonsense"},
      {"models", "--bogus"},
      {"sessions"},
      {"sessions", "get"},
      {"sessions", "list", "-o", "yaml"},
      {"generate", "x", "--max-tokens", "many"},
      {"generate", "x", "--logprobs", "2"},
      {"generate", "x", "--max-duration", "soon"},
      {"sessions", "rewind", "s"},
      {"sessions", "create", "s", "--label", "novalue"},
      {"bench", "--concurrency", "0"}};
  for (const auto& args : wrong) {
    Result r = Run(args);
    EXPECT_EQ(r.code, 2) << ::testing::PrintToString(args) << r.err;
    EXPECT_NE(r.err, "");
    EXPECT_EQ(r.out, "");
  }
}

TEST_F(CliTest, SlipsAreNamedWithWhatWasMeant) {
  const std::pair<std::vector<std::string>, const char*> cases[] = {
      {{"sesions", "list"}, "unknown command sesions; did you mean sessions?"},
      {{"sessions", "lst"}, "unknown command sessions lst; did you mean list?"},
      {{"status-quo"}, "unknown command status-quo; there are chat, generate"},
      {{"generate", "x", "--temp", "0.5"}, "unknown flag --temp; did you mean --temperature?"},
      {{"generate", "x", "--temprature=1"},
       "unknown flag --temprature; did you mean --temperature?"},
      {{"chat", "--modle", "m"}, "unknown flag --modle; did you mean --model?"},
      {{"models", "---v"}, "unknown flag ---v; did you mean -v?"},
      {{"---v"}, "unknown flag ---v; did you mean -v?"},
      {{"--serve", "x", "models"}, "unknown flag --serve; did you mean --server?"},
      {{"sessions", "list", "all"}, "unexpected argument 'all'"},
      {{"sessions"}, "a command is missing; there are list, get"},
      {{"help", "sesions"}, "unknown command sesions; did you mean sessions?"}};
  for (const auto& [args, message] : cases) {
    const Result r = Run(args);
    EXPECT_EQ(r.code, 2) << r.err;
    EXPECT_NE(r.err.find(message), std::string::npos) << "not said: " << message << "\n" << r.err;
    EXPECT_EQ(r.out, "");
  }
  EXPECT_NE(Run({"chat", "--modle", "m"}).err.find("See `mneme chat --help`"), std::string::npos);
  const json error = json::parse(Run({"sesions", "--json"}).err)["error"];
  EXPECT_EQ(error["code"], "USAGE");
  EXPECT_NE(error["message"].get<std::string>().find("sessions?"), std::string::npos);
}

TEST_F(CliTest, HelpIsForCommandsThatExist) {
  for (const std::vector<std::string>& args :
       {std::vector<std::string>{"statuss", "--help"}, {"sessions", "lst", "--help"}}) {
    const Result r = Run(args);
    EXPECT_EQ(r.code, 2) << r.out;
    EXPECT_EQ(r.out, "");
    EXPECT_NE(r.err.find("unknown command"), std::string::npos) << r.err;
  }
  EXPECT_EQ(Run({"help"}).out, Run({"--help"}).out);
  EXPECT_EQ(Run({"help", "chat"}).out, Run({"chat", "--help"}).out);
  EXPECT_EQ(Run({"help", "session", "rewind"}).out, Run({"sessions", "rewind", "--help"}).out);
  EXPECT_NE(Run({"help", "chat"}).out.find("Usage: mneme chat "), std::string::npos);
}

TEST_F(CliTest, AServerIsNamedAsPeopleDo) {
  const std::string url = "http://" + server_.address() + "/";
  EXPECT_EQ(Run({"sessions", "get", "s", "--server", url}).code, 0);
  EXPECT_EQ(Run({"sessions", "get", "s", "--server", "127.0.0.1:1", "--server", url}).code, 0);
  Result r = Run({"models", "--server", url, "--tls-ca", "ca.pem"});
  EXPECT_EQ(r.code, 2);
  EXPECT_NE(r.err.find("https://"), std::string::npos) << r.err;
  r = Run({"models", "--server", "https://" + server_.address()});
  EXPECT_EQ(r.code, 5);
  EXPECT_NE(r.err.find("does not speak TLS"), std::string::npos) << r.err;
  r = Run({"models", "--server", "127.0.0.1:port"});
  EXPECT_EQ(r.code, 2);
  EXPECT_NE(r.err.find("expected HOST:PORT"), std::string::npos) << r.err;
}

TEST_F(CliTest, DefaultsComeFromTheFlagElseTheVariableElseTheFile) {
  exists_ = false;
  const auto created_on = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"sessions", "create", "s"});
    const Result r = Run(more);
    EXPECT_EQ(r.code, 0) << r.err;
    return asked_model_.Get();
  };
  EXPECT_EQ(created_on({}), "");
  environment_.clear();
  WriteDefaults("# mine\nserver: " + server_.address() + "\ntenant: acme\nmodel: of-file\n");
  EXPECT_EQ(created_on({}), "models/of-file");
  environment_ = {"MNEME_MODEL=of-variable", "MNEME_TENANT=other"};
  EXPECT_EQ(created_on({}), "models/of-variable");
  EXPECT_EQ(created_on({"--model", "of-flag"}), "models/of-flag");
  EXPECT_EQ(Run({"sessions", "get", "s"}).code, 0);
  EXPECT_EQ(asked_name_.Get(), "tenants/other/sessions/s");
  environment_.clear();
  EXPECT_EQ(Run({"sessions", "get", "s"}).code, 0);
  EXPECT_EQ(asked_name_.Get(), "tenants/acme/sessions/s");
  // A session has its model: the default is for those that are made.
  EXPECT_EQ(Run({"generate", "x"}).code, 0);
  EXPECT_EQ(Run({"generate", "-s", "s", "x"}).code, 0);
  EXPECT_EQ(requests_.Get().at(0).model(), "models/of-file");
  EXPECT_EQ(requests_.Get().at(1).model(), "");
  environment_ = {"MNEME_SERVER=127.0.0.1:1"};
  EXPECT_EQ(Run({"models", "--connect-timeout", "0.1"}).code, 5);
}

TEST_F(CliTest, AFileOfDefaultsThatIsWrongIsRefusedAndHelpStillWorks) {
  const std::pair<const char*, const char*> cases[] = {
      {"\nmodle: x\n", "config.yaml:2: unknown key 'modle'; did you mean model?"},
      {"model: [a, b]\n", "config.yaml:1: model must be one value"},
      {"just text", "must be lines such as"},
      {"a: b: c\n", "config.yaml:1: "}};
  for (const auto& [text, message] : cases) {
    WriteDefaults(text);
    const Result r = Run({"sessions", "get", "s"});
    EXPECT_EQ(r.code, 2) << r.err;
    EXPECT_NE(r.err.find(message), std::string::npos) << r.err;
    EXPECT_EQ(Run({"--help"}).code, 0);
  }
}

TEST_F(CliTest, AMissingModelIsSaidOnceWithWhatNamesIt) {
  server_.generation.on_Generate = [](auto&, const auto&, auto&) {
    const std::string expected = "is required: this server has several models, a, b";
    google::rpc::BadRequest bad;
    bad.add_field_violations()->set_field("model");
    bad.mutable_field_violations(0)->set_description(expected);
    return WithDetail(
        FakeError(grpc::StatusCode::INVALID_ARGUMENT, "FIELD_REQUIRED", "model " + expected), bad);
  };
  const Result r = Run({"generate", "x"});
  EXPECT_EQ(r.code, 6);
  const size_t said = r.err.find("is required");
  EXPECT_NE(said, std::string::npos) << r.err;
  EXPECT_EQ(r.err.find("is required", said + 1), std::string::npos) << r.err;
  for (const char* way : {"--model NAME", "MNEME_MODEL", ".config/mneme/config.yaml"}) {
    EXPECT_NE(r.err.find(way), std::string::npos) << r.err;
  }
}

TEST_F(CliTest, WhatIsNotFoundIsNamed) {
  server_.sessions.on_GetSession = [](auto&, const auto& request, auto&) {
    google::rpc::ResourceInfo resource;
    resource.set_resource_name(request.name());
    return WithDetail(
        FakeError(grpc::StatusCode::NOT_FOUND, "SESSION_NOT_FOUND", "no such session"), resource);
  };
  const Result r = Run({"sessions", "get", "nobody"});
  EXPECT_EQ(r.code, 3);
  EXPECT_NE(r.err.find("mneme: nobody: "), std::string::npos) << r.err;
  EXPECT_NE(r.err.find("`mneme sessions create nobody`"), std::string::npos) << r.err;
  EXPECT_NE(
      Run({"sessions", "get", "tenants/t/sessions/x"}).err.find("mneme: tenants/t/sessions/x:"),
      std::string::npos);
}

TEST_F(CliTest, HelpAndVersionNeedNoServer) {
  server_.Stop();
  const std::vector<std::vector<std::string>> commands = {{},           {"chat"},     {"generate"},
                                                          {"ingest"},   {"sessions"}, {"models"},
                                                          {"tokenize"}, {"score"},    {"bench"}};
  for (auto args : commands) {
    args.push_back("--help");
    Result r = Run(args);
    EXPECT_EQ(r.code, 0) << r.err;
    EXPECT_NE(r.out.find("\n  mneme "), std::string::npos) << "no example:\n" << r.out;
  }
  EXPECT_NE(Run({"--help"}).out.find("Exit codes"), std::string::npos);
  EXPECT_EQ(Run({"--version"}).out.substr(0, 6), "mneme ");
}

TEST_F(CliTest, ExitCodesFollowTheStatus) {
  const std::pair<grpc::StatusCode, int> cases[] = {{grpc::StatusCode::NOT_FOUND, 3},
                                                    {grpc::StatusCode::ABORTED, 4},
                                                    {grpc::StatusCode::ALREADY_EXISTS, 4},
                                                    {grpc::StatusCode::UNAVAILABLE, 5},
                                                    {grpc::StatusCode::DEADLINE_EXCEEDED, 5},
                                                    {grpc::StatusCode::RESOURCE_EXHAUSTED, 5},
                                                    {grpc::StatusCode::INVALID_ARGUMENT, 6},
                                                    {grpc::StatusCode::OUT_OF_RANGE, 6},
                                                    {grpc::StatusCode::FAILED_PRECONDITION, 6},
                                                    {grpc::StatusCode::INTERNAL, 1},
                                                    {grpc::StatusCode::DATA_LOSS, 1}};
  for (auto [code, exit_code] : cases) {
    server_.sessions.on_UndeleteSession = [code = code](auto&, const auto&, auto&) {
      return FakeError(code, "SOME_REASON", "it went wrong");
    };
    Result r = Run({"sessions", "undelete", "s"});
    EXPECT_EQ(r.code, exit_code) << code;
    EXPECT_NE(r.err.find("it went wrong"), std::string::npos) << r.err;
    EXPECT_NE(r.err.find("SOME_REASON"), std::string::npos) << r.err;
  }
}

TEST_F(CliTest, NoServerExitsWith5AndSaysWhatToDo) {
  server_.Stop();
  Result r = Run({"models", "--connect-timeout", "0.2"});
  EXPECT_EQ(r.code, 5);
  EXPECT_NE(r.err.find("no server answers"), std::string::npos);
  EXPECT_NE(r.err.find("hint:"), std::string::npos);
}

TEST_F(CliTest, ErrorsNameTheField) {
  server_.generation.on_Generate = [](auto&, const auto&, auto&) {
    return FakeError(grpc::StatusCode::INVALID_ARGUMENT, "FIELD_OUT_OF_RANGE", "bad request",
                     "limit", "1", "sampling.top_p");
  };
  Result r = Run({"generate", "x", "--top-p", "7"});
  EXPECT_EQ(r.code, 6);
  EXPECT_NE(r.err.find("field sampling.top_p: must be in (0, 1]"), std::string::npos) << r.err;
  r = Run({"generate", "x", "--top-p", "7", "--json"});
  EXPECT_EQ(r.code, 6);
  const json error = json::parse(r.err)["error"];
  EXPECT_EQ(error["code"], "INVALID_ARGUMENT");
  EXPECT_EQ(error["reason"], "FIELD_OUT_OF_RANGE");
  EXPECT_EQ(error["fields"][0]["field"], "sampling.top_p");
  EXPECT_EQ(error["metadata"]["limit"], "1");
}

TEST_F(CliTest, NamesAreExpanded) {
  EXPECT_EQ(Run({"sessions", "get", "diary"}).code, 0);
  EXPECT_EQ(asked_name_.Get(), "tenants/default/sessions/diary");
  EXPECT_EQ(Run({"sessions", "get", "diary", "--tenant", "acme"}).code, 0);
  EXPECT_EQ(asked_name_.Get(), "tenants/acme/sessions/diary");
  EXPECT_EQ(Run({"sessions", "get", "tenants/t/sessions/x"}).code, 0);
  EXPECT_EQ(asked_name_.Get(), "tenants/t/sessions/x");
  Result r = Run({"sessions", "get", "Bad Name"});
  EXPECT_EQ(r.code, 6);
  EXPECT_NE(r.err.find("bad session name"), std::string::npos);
}

TEST_F(CliTest, SessionsListAsTableJsonAndNames) {
  server_.sessions.on_ListSessions = [](auto&, const auto& request, auto& response) {
    // Two pages.
    const bool first = request.page_token().empty();
    auto& s = *response.add_sessions();
    s.set_name(std::string("tenants/default/sessions/") + (first ? "a" : "b"));
    s.set_version(5);
    s.set_position_tokens(1234567);
    if (first) response.set_next_page_token("more");
    return grpc::Status::OK;
  };
  Result r = Run({"sessions", "list"});
  EXPECT_EQ(r.code, 0);
  EXPECT_EQ(r.out.substr(0, 4), "NAME");
  EXPECT_NE(r.out.find("\na "), std::string::npos);
  EXPECT_NE(r.out.find("\nb "), std::string::npos);
  r = Run({"--json", "sessions", "list"});
  const json list = json::parse(r.out);
  ASSERT_EQ(list["sessions"].size(), 2u);
  EXPECT_EQ(list["sessions"][1]["position_tokens"], 1234567);  // a number, not a string
  EXPECT_EQ(Run({"sessions", "list", "-o", "name"}).out,
            "tenants/default/sessions/a\ntenants/default/sessions/b\n");
}

void AddPart(v1::TranscriptTurn& turn, v1::TranscriptPart::Role role, bool generated,
             const std::string& text) {
  v1::TranscriptPart& part = *turn.add_parts();
  part.set_role(role);
  part.set_generated(generated);
  part.set_text(text);
  part.set_num_tokens(static_cast<int64_t>(text.size()));
}

// Two turns on two pages, which cut the second.
grpc::Status TwoPages(grpc::ServerContext&, const v1::ReadTranscriptRequest& request,
                      v1::ReadTranscriptResponse& response) {
  if (request.page_token().empty()) {
    v1::TranscriptTurn& first = *response.add_turns();
    first.set_version(1);
    first.mutable_commit_time()->set_seconds(1'750'000'000);
    first.set_finish_reason(v1::EOS);
    first.set_num_tokens(1234);
    AddPart(first, v1::TranscriptPart::TEMPLATE, false, "<user>");
    AddPart(first, v1::TranscriptPart::USER, false, "Three rivers?\x1b[31m");
    AddPart(first, v1::TranscriptPart::ASSISTANT, false, "1. The");
    AddPart(first, v1::TranscriptPart::ASSISTANT, true, " Nile");
    response.set_next_page_token("more");
  }
  v1::TranscriptTurn& second = *response.add_turns();
  second.set_version(2);
  second.set_position_tokens(1234);
  second.set_num_tokens(9);
  AddPart(second, v1::TranscriptPart::DOCUMENT, false,
          request.page_token().empty() ? "In the " : "beginning");
  return grpc::Status::OK;
}

TEST_F(CliTest, SessionsShowIsTheWholeConversationTurnByTurn) {
  server_.sessions.on_ReadTranscript = TwoPages;
  environment_.push_back("TZ=UTC");
  Result r = Run({"sessions", "show", "diary"});
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(r.out,
            "--- version 1, 2025-06-15 15:06:40, position 0, 1,234 tokens, eos\n"
            "user: Three rivers?\x1b[31m\nassistant: 1. The Nile\n\n"
            "--- version 2, position 1234, 9 tokens\ndocument: In the beginning\n");
  EXPECT_NE(Run({"sessions", "show", "diary", "--template"}).out.find("\ntemplate: <user>\n"),
            std::string::npos);
  r = Run({"sessions", "show", "diary", "--json"});
  const auto turns = Lines(r.out);
  ASSERT_EQ(turns.size(), 2u);
  EXPECT_EQ(turns[0]["parts"][1]["role"], "USER");
  EXPECT_EQ(turns[0]["commit_time"], "2025-06-15T15:06:40Z");
  ASSERT_EQ(turns[1]["parts"].size(), 1u);
  EXPECT_EQ(turns[1]["parts"][0]["text"], "In the beginning");
  EXPECT_EQ(turns[1]["parts"][0]["num_tokens"], 16);
}

TEST_F(CliTest, SessionsShowPassesItsRangeOn) {
  test::Guarded<std::vector<v1::ReadTranscriptRequest>> asked;
  server_.sessions.on_ReadTranscript = [&](auto&, const auto& request, auto&) {
    asked.Update([&](auto& all) { all.push_back(request); });
    return grpc::Status::OK;
  };
  EXPECT_EQ(Run({"sessions", "show", "diary@v3", "--from", "7"}).code, 0);
  EXPECT_EQ(Run({"sessions", "show", "diary", "--last-tokens", "9", "--json"}).code, 0);
  EXPECT_EQ(Run({"sessions", "show", "diary", "--last-tokens", "9", "--from", "1"}).code, 2);
  ASSERT_EQ(asked.Get().size(), 2u);
  EXPECT_EQ(asked.Get()[0].name(), "tenants/default/sessions/diary/snapshots/v3");
  EXPECT_EQ(asked.Get()[0].position_tokens(), 7);
  EXPECT_EQ(asked.Get()[0].view(), v1::ReadTranscriptRequest::TEXT);
  EXPECT_EQ(asked.Get()[1].last_tokens(), 9);
  EXPECT_EQ(asked.Get()[1].view(), v1::ReadTranscriptRequest::VIEW_UNSPECIFIED);
}

TEST_F(CliTest, ChatShowsWhatWasSaidLast) {
  server_.sessions.on_ReadTranscript = TwoPages;
  const std::string reminder =
      "user: Three rivers?[31m\nassistant: 1. The Nile\ndocument: (9 tokens)\n";
  Result r = Run({"chat", "talk"}, "/show\n");
  EXPECT_NE(r.err.find("user: Three rivers?"), std::string::npos) << r.err;
  EXPECT_NE(r.err.find(reminder), std::string::npos) << r.err;
  // A script that brings its own lines has not asked for it.
  EXPECT_EQ(Run({"chat", "talk"}, "Hi\n").err, "");
  // After a turn whose end was lost, and which was kept.
  std::atomic<int> version{3};
  server_.sessions.on_GetSession = [&](auto&, const auto& request, auto& session) {
    session.set_name(request.name());
    session.set_model("models/m");
    session.set_version(version);
    return grpc::Status::OK;
  };
  server_.generation.on_Generate = [&](auto&, const auto&, auto&) {
    version = 4;
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "Socket closed");
  };
  r = Run({"chat", "talk"}, "Hi\n");
  EXPECT_EQ(r.code, 5);
  EXPECT_NE(r.err.find("has gone on to version 4"), std::string::npos) << r.err;
  EXPECT_NE(r.err.find(reminder), std::string::npos) << r.err;
}

TEST_F(CliTest, DeleteForGood) {
  std::atomic<bool> purge{false};
  server_.sessions.on_DeleteSession = [&](auto&, const auto& request, auto& session) {
    purge = request.purge();
    session.set_name(request.name());
    session.mutable_purge_time()->set_seconds(4'000'000'000);
    return grpc::Status::OK;
  };
  EXPECT_NE(Run({"sessions", "delete", "s"}).out.find("s deleted; can be undeleted"),
            std::string::npos);
  EXPECT_FALSE(purge);
  EXPECT_EQ(Run({"sessions", "delete", "s", "--purge"}).out, "s deleted for good\n");
  EXPECT_TRUE(purge);
}

TEST_F(CliTest, GenerateWritesExactBytesIntoAPipe) {
  Result r =
      Run({"generate", "Say", "--temperature", "0", "--stop", "a", "--stop", "b", "-n", "5"});
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(r.out, "Hello\x1b[31m");
  EXPECT_EQ(r.err, "");
  ASSERT_EQ(requests_.Get().size(), 1u);
  EXPECT_EQ(requests_.Get()[0].text(), "Say");
  EXPECT_TRUE(requests_.Get()[0].sampling().has_temperature());
  EXPECT_FALSE(requests_.Get()[0].sampling().has_top_p());
  EXPECT_FALSE(requests_.Get()[0].sampling().has_top_k());  // the server's default
  EXPECT_FALSE(requests_.Get()[0].sampling().has_min_p());
  EXPECT_EQ(requests_.Get()[0].stop_sequences_size(), 2);
  EXPECT_EQ(requests_.Get()[0].max_output_tokens(), 5);
}

TEST_F(CliTest, SamplingThatIsSwitchedOffIsSaid) {
  Result r = Run({"generate", "Say", "--top-k", "0", "--min-p", "0", "--top-p", "1"});
  EXPECT_EQ(r.code, 0) << r.err;
  const v1::Sampling sampling = requests_.Get().at(0).sampling();
  EXPECT_TRUE(sampling.has_top_k() && sampling.top_k() == 0);
  EXPECT_TRUE(sampling.has_min_p() && sampling.min_p() == 0);
  EXPECT_FALSE(sampling.has_presence_penalty());
}

TEST_F(CliTest, GenerateJsonIsOneEventALine) {
  Result r =
      Run({"generate", "-", "--json", "--logprobs", "2", "--system", "Be kind."}, "From a pipe");
  EXPECT_EQ(r.code, 0) << r.err;
  const auto lines = Lines(r.out);
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_EQ(lines[0]["started"]["seed"], "18446744073709551615");
  EXPECT_EQ(lines[1]["delta"]["text"], "Hel");
  EXPECT_EQ(lines[3]["final"]["finish_reason"], "EOS");
  EXPECT_EQ(lines[3]["final"]["usage"]["recomputed_tokens"], 0);
  ASSERT_EQ(requests_.Get()[0].messages().messages_size(), 2);
  EXPECT_EQ(requests_.Get()[0].messages().messages(0).role(), "system");
  EXPECT_EQ(requests_.Get()[0].messages().messages(1).content(), "From a pipe");
  EXPECT_EQ(requests_.Get()[0].logprobs(), 2);
}

TEST_F(CliTest, GenerateGoesOnWithTheStartOfAnAnswer) {
  EXPECT_EQ(Run({"generate", "Three rivers", "--answer-start", "1. The Nile"}).code, 0);
  const v1::GenerateRequest request = requests_.Get().at(0);
  ASSERT_EQ(request.messages().messages_size(), 2);
  EXPECT_EQ(request.messages().messages(0).role(), "user");
  EXPECT_EQ(request.messages().messages(1).role(), "assistant");
  EXPECT_EQ(request.messages().messages(1).content(), "1. The Nile");
  EXPECT_TRUE(request.continue_final_message());
  EXPECT_EQ(Run({"generate", "-s", "diary", "--answer-start", "x"}).code, 2);
  EXPECT_EQ(requests_.Get().size(), 1u);
}

TEST_F(CliTest, ChatGoesOnWithACutAnswerAndWithTheStartOfEach) {
  const Result r = Run({"chat", "talk", "--answer-start", "Well,"}, "One\n/continue\n");
  EXPECT_EQ(r.code, 0) << r.err;
  ASSERT_EQ(requests_.Get().size(), 2u);
  EXPECT_TRUE(requests_.Get()[0].continue_final_message());
  EXPECT_EQ(requests_.Get()[0].messages().messages(1).content(), "Well,");
  EXPECT_EQ(requests_.Get()[1].input_case(), v1::GenerateRequest::INPUT_NOT_SET);
  EXPECT_EQ(requests_.Get()[1].session(), "tenants/default/sessions/talk");
  EXPECT_EQ(Run({"chat", "talk", "--raw", "--answer-start", "Well,"}, "One\n").code, 2);
}

TEST_F(CliTest, GenerateOnASessionMayHaveNoInput) {
  EXPECT_EQ(Run({"generate", "-s", "diary"}).code, 0);
  EXPECT_EQ(requests_.Get().at(0).input_case(), v1::GenerateRequest::INPUT_NOT_SET);
  EXPECT_EQ(requests_.Get().at(0).session(), "tenants/default/sessions/diary");
}

TEST_F(CliTest, ChatCreatesTheSessionAndEachLineIsATurn) {
  exists_ = false;
  Result r =
      Run({"chat", "talk", "--system", "Be brief."}, "Hi\n\nlong \\\nline\n//slash\n/quit\nno\n");
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_TRUE(exists_);
  ASSERT_EQ(requests_.Get().size(), 3u);
  EXPECT_EQ(requests_.Get()[0].session(), "tenants/default/sessions/talk");
  ASSERT_EQ(requests_.Get()[0].messages().messages_size(), 2);
  EXPECT_EQ(requests_.Get()[0].messages().messages(0).content(), "Be brief.");
  ASSERT_EQ(requests_.Get()[1].messages().messages_size(),
            1);  // the session has read the system message
  EXPECT_EQ(requests_.Get()[1].messages().messages(0).content(), "long \nline");
  EXPECT_EQ(requests_.Get()[2].messages().messages(0).content(), "/slash");
  EXPECT_EQ(r.out, "Hello\x1b[31m\nHello\x1b[31m\nHello\x1b[31m\n");
}

TEST_F(CliTest, ChatTakesABlockAsOneTurn) {
  const Result r = Run({"chat", "talk"}, "\"\"\"\n/one\n\ntwo\\\n\"\"\"\nthree\n");
  EXPECT_EQ(r.code, 0) << r.err;
  ASSERT_EQ(requests_.Get().size(), 2u);
  EXPECT_EQ(requests_.Get()[0].messages().messages(0).content(), "/one\n\ntwo\\");
  EXPECT_EQ(requests_.Get()[1].messages().messages(0).content(), "three");
  EXPECT_EQ(Run({"chat", "talk"}, "\"\"\"\nno end\n").code, 2);
  EXPECT_EQ(requests_.Get().size(), 2u);
}

TEST_F(CliTest, FlagsOfABeginningAreRefusedOnASessionThatHasBegun) {
  Result r = Run({"chat", "old", "-m", "other"}, "Hi\n");
  EXPECT_EQ(r.code, 6);
  EXPECT_NE(r.err.find("session old runs on m"), std::string::npos) << r.err;
  r = Run({"ingest", "-", "-s", "old", "-m", "other"}, "text");
  EXPECT_EQ(r.code, 6);
  position_ = 562;
  r = Run({"chat", "old", "--system", "Be brief."}, "Hi\n");
  EXPECT_EQ(r.code, 6);
  EXPECT_NE(r.err.find("old has read 562 tokens"), std::string::npos) << r.err;
  EXPECT_EQ(requests_.Get().size(), 0u);
  EXPECT_EQ(Run({"chat", "new", "--system", "x", "--raw"}, "Hi\n").code, 2);
  // Its own model's name says nothing new, and a default is no wish of this command.
  environment_.push_back("MNEME_MODEL=other");
  EXPECT_EQ(Run({"chat", "old", "-m", "models/m"}, "Hi\n").code, 0);
  EXPECT_EQ(Run({"chat", "old"}, "Hi\n").code, 0);
  EXPECT_EQ(requests_.Get().size(), 2u);
}

TEST_F(CliTest, ATurnWhoseEndWasLostIsLookedInto) {
  server_.generation.on_Generate = [](auto&, const auto&, auto&) {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "Socket closed");
  };
  EXPECT_NE(Run({"chat", "talk"}, "Hi\n").err.find("has not changed (version 0)"),
            std::string::npos);
}

TEST_F(CliTest, StatisticsAreForThoseWhoAsk) {
  EXPECT_EQ(Run({"chat", "talk"}, "Hi\n").err, "");
  EXPECT_NE(Run({"chat", "talk", "-v"}, "Hi\n").err.find("saved as version 7"), std::string::npos);
}

TEST_F(CliTest, ChatCommandsCallTheServer) {
  test::Guarded<std::vector<int64_t>> positions;
  test::Guarded<std::string> child;
  server_.sessions.on_RewindSession = [&](auto&, const auto& request, auto& response) {
    positions.Update([&](auto& all) { all.push_back(request.position_tokens()); });
    response.mutable_session()->set_name(request.name());
    response.mutable_session()->set_position_tokens(request.position_tokens());
    return grpc::Status::OK;
  };
  server_.sessions.on_ForkSession = [&](auto&, const auto& request, auto& response) {
    child.Set(request.session_ids(0));
    response.add_sessions();
    return grpc::Status::OK;
  };
  position_ = 11;
  Result r =
      Run({"chat", "talk"}, "One\nTwo\n/rewind 2\n/rewind @5\nThree\n/regenerate\n/fork copy\n");
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(positions.Get(), (std::vector<int64_t>{11, 5, 5}));
  EXPECT_EQ(child.Get(), "copy");
  ASSERT_EQ(requests_.Get().size(), 4u);
  EXPECT_EQ(requests_.Get()[3].messages().messages(0).content(), "Three");
  EXPECT_EQ(Run({"chat", "talk"}, "/nonsense\nOne\n").code, 2);
}

TEST_F(CliTest, ChatSaysWhyAModelTakesNoMessages) {
  server_.models.on_GetModel = [](auto&, const auto& request, auto& model) {
    model.set_name(request.name());
    model.set_chat_template_problem("it writes a date");
    return grpc::Status::OK;
  };
  Result r = Run({"chat", "talk"}, "Hi\n");
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_NE(r.err.find("takes no messages (it writes a date)"), std::string::npos) << r.err;
  EXPECT_EQ(requests_.Get().at(0).text(), "Hi");
  r = Run({"chat", "talk", "--answer-start", "Well,"}, "Hi\n");
  EXPECT_NE(r.code, 0);
  EXPECT_NE(r.err.find("--answer-start needs"), std::string::npos) << r.err;
  EXPECT_NE(Run({"models", "get", "m"}).out.find("no: it writes a date"), std::string::npos);
}

TEST_F(CliTest, ChatInAScriptEndsWithTheFirstFailure) {
  server_.generation.on_Generate = [this](auto&, const auto&, auto&) {
    requests_.Update([](auto& requests) { requests.emplace_back(); });
    return FakeError(grpc::StatusCode::ABORTED, "SESSION_BUSY", "busy", "current_version", "3");
  };
  Result r = Run({"chat", "talk"}, "One\nTwo\n");
  EXPECT_EQ(r.code, 4);
  EXPECT_EQ(requests_.Get().size(), 1u);
}

TEST_F(CliTest, InterruptCancelsTheGenerationWellAndExitsWith130) {
  std::atomic<bool> cancelled{false}, writing{false};
  test::Guarded<std::string> generation;
  server_.generation.on_CancelGeneration = [&](auto&, const auto& request, auto&) {
    generation.Set(request.name());
    cancelled = true;
    return grpc::Status::OK;
  };
  server_.generation.on_Generate = [&](auto& context, const auto&, auto& writer) {
    v1::GenerateResponse event;
    event.set_sequence(1);
    event.mutable_started()->set_generation("tenants/default/generations/g-9");
    writer.Write(event);
    event.Clear();
    event.set_sequence(2);
    event.mutable_delta()->set_text("so far");
    writer.Write(event);
    writing = true;
    while (!cancelled && !context.IsCancelled()) absl::SleepFor(absl::Milliseconds(2));
    event.Clear();
    event.set_sequence(3);
    event.mutable_final()->set_finish_reason(v1::CANCELLED);
    event.mutable_final()->set_committed(true);
    writer.Write(event);
    return grpc::Status::OK;
  };
  const pid_t pid = Spawn({"generate", "-s", "diary", "Go", "--json"});
  // The second event has been seen by the tool once it is in its output.
  for (int i = 0; i < 5000 && Slurp(folder_ / "out").find("so far") == std::string::npos; ++i) {
    absl::SleepFor(absl::Milliseconds(2));
  }
  ASSERT_TRUE(writing);
  kill(pid, SIGINT);
  Result r = Wait(pid);
  EXPECT_EQ(r.code, 130);
  EXPECT_EQ(generation.Get(), "tenants/default/generations/g-9");
  EXPECT_EQ(Lines(r.out).back()["final"]["finish_reason"], "CANCELLED");
}

class CliIngestTest : public CliTest {
 protected:
  void SetUp() override {
    CliTest::SetUp();
    std::ofstream(folder_ / "book", std::ios::binary) << std::string(300'000, 'a') << "end";
    server_.sessions.on_IngestSession = [this](auto&, auto& stream) {
      v1::IngestRequest request;
      stream.Read(&request);
      ids_.Update([&](auto& ids) { ids.push_back(request.start().ingest_id()); });
      std::string durable = durable_.Get();
      v1::IngestProgress progress;
      progress.set_durable_bytes(static_cast<int64_t>(durable.size()));
      stream.Write(progress);
      while (stream.Read(&request)) {
        EXPECT_EQ(request.data().offset_bytes(), static_cast<int64_t>(durable.size()));
        durable += request.data().data();
        durable_.Set(durable);
        if (break_once_ && durable.size() > 200'000) {
          break_once_ = false;
          return grpc::Status(grpc::StatusCode::UNAVAILABLE, "connection reset");
        }
        progress.set_durable_bytes(static_cast<int64_t>(durable.size()));
        progress.set_received_bytes(progress.durable_bytes());
        progress.set_read_tokens(progress.durable_bytes() / 4);
        progress.set_done(request.data().last());
        stream.Write(progress);
        if (request.data().last()) break;
      }
      return grpc::Status::OK;
    };
  }

  test::Guarded<std::string> durable_;
  test::Guarded<std::vector<std::string>> ids_;
  std::atomic<bool> break_once_{false};
};

TEST_F(CliIngestTest, ResumesAndReports) {
  break_once_ = true;
  Result r = Run({"ingest", folder_ / "book", "-s", "reader"});
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(durable_.Get(), Slurp(folder_ / "book"));
  EXPECT_NE(r.out.find("Ingested 293.0 KiB"), std::string::npos) << r.out;
  EXPECT_NE(r.err.find("connection lost"), std::string::npos) << r.err;
  const std::vector<std::string> ids = ids_.Get();
  ASSERT_EQ(ids.size(), 2u);
  EXPECT_EQ(ids[0], ids[1]);
}

TEST_F(CliIngestTest, TheIdFollowsSessionAndContent) {
  auto ingest = [&](std::vector<std::string> more, const std::string& session) {
    durable_.Set("");
    std::vector<std::string> args = {"ingest", folder_ / "book", "-s", session, "--json"};
    args.insert(args.end(), more.begin(), more.end());
    Result r = Run(args);
    EXPECT_EQ(r.code, 0) << r.err;
    EXPECT_EQ(Lines(r.out).back()["done"], true);
    return ids_.Get().back();
  };
  const std::string id = ingest({}, "reader");
  EXPECT_LE(id.size(), 64u);
  EXPECT_EQ(ingest({}, "reader"), id);
  EXPECT_NE(ingest({}, "other"), id);
  EXPECT_NE(ingest({"--again"}, "reader"), id);
  EXPECT_EQ(ingest({"--ingest-id", "mine"}, "reader"), "mine");
  std::ofstream(folder_ / "book", std::ios::app) << "more";
  EXPECT_NE(ingest({}, "reader"), id);
}

TEST_F(CliIngestTest, StdinAndMissingFiles) {
  Result r = Run({"ingest", "-", "-s", "reader"}, "some text");
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(durable_.Get(), "some text");
  EXPECT_EQ(Run({"ingest", folder_ / "none", "-s", "reader"}).code, 1);
  EXPECT_EQ(Run({"ingest", folder_, "-s", "reader"}).code, 1);
}

}  // namespace
}  // namespace mneme::client
