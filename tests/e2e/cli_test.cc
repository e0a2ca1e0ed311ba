// Every subcommand of the real `mneme` against a real server: results, JSON, exit codes, help.
#include <signal.h>

#include <algorithm>
#include <map>
#include <set>

#include "absl/time/clock.h"
#include "tests/e2e/cli_test_base.h"

namespace mneme::test {
namespace {

// Greedy, and of known length.
std::vector<std::string> Turn(std::vector<std::string> args, int tokens) {
  const std::vector<std::string> more = {"--temperature", "0", "--ignore-eos", "-n",
                                         std::to_string(tokens)};
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

using CliTest = CliE2eTest;

TEST_F(CliTest, HelpOfEverySubcommandTeachesWithAnExample) {
  const std::vector<std::vector<std::string>> commands = {{},
                                                          {"chat"},
                                                          {"generate"},
                                                          {"ingest"},
                                                          {"export"},
                                                          {"import"},
                                                          {"models"},
                                                          {"models", "list"},
                                                          {"models", "get"},
                                                          {"tokenize"},
                                                          {"score"},
                                                          {"bench"},
                                                          {"help"},
                                                          {"sessions"},
                                                          {"sessions", "list"},
                                                          {"sessions", "get"},
                                                          {"sessions", "show"},
                                                          {"sessions", "create"},
                                                          {"sessions", "update"},
                                                          {"sessions", "fork"},
                                                          {"sessions", "rewind"},
                                                          {"sessions", "delete"},
                                                          {"sessions", "undelete"},
                                                          {"sessions", "snapshots"},
                                                          {"server"},
                                                          {"server", "info"},
                                                          {"server", "loads"},
                                                          {"server", "drain"},
                                                          {"snapshots"},
                                                          {"snapshots", "create"},
                                                          {"snapshots", "list"},
                                                          {"snapshots", "get"},
                                                          {"snapshots", "delete"}};
  for (std::vector<std::string> args : commands) {
    std::string example = "\n  mneme ";
    for (const std::string& word : args) example += word + " ";
    args.push_back("--help");
    const std::string help = Out(args);
    if (args.size() > 1) example.pop_back();  // a command may stand without arguments
    EXPECT_NE(help.find(example), std::string::npos) << "no example:\n" << help;
  }
  const std::string help = Out({"--help"});
  for (const char* code :
       {"Exit codes", "\n  0 ", "\n  1 ", "\n  2 ", "\n  3 ", " 4 ", " 5 ", " 6 ", " 130 "}) {
    EXPECT_NE(help.find(code), std::string::npos) << code;
  }
}

TEST_F(CliTest, Models) {
  const Json list = OutJson({"models"});
  ASSERT_EQ(list["models"].size(), 1u);
  const Json& model = list["models"][0];
  EXPECT_EQ(model["name"], "models/tiny");
  EXPECT_EQ(model["architecture"], "llama");
  EXPECT_GT(model["state_bytes"].get<int64_t>(), 0);
  EXPECT_EQ(OutJson({"models", "list"}), list);
  EXPECT_EQ(OutJson({"models", "get", "tiny"}), model);
  EXPECT_EQ(Out({"models", "-o", "name"}), "models/tiny\n");
  EXPECT_NE(Out({"models"}).find("llama"), std::string::npos);
  EXPECT_NE(
      Out({"models", "get", "tiny"}).find("temperature 0.8, top-k 40, top-p 0.95, min-p 0.05"),
      std::string::npos);
  EXPECT_EQ(Error({"models", "get", "nobody"}, 3)["reason"], "MODEL_NOT_FOUND");
}

TEST_F(CliTest, GenerateStatelessAndOnASession) {
  const std::vector<Json> events = OutLines(Turn({"generate", "The lighthouse"}, 6));
  ASSERT_GE(events.size(), 3u);
  EXPECT_TRUE(events.front().contains("started"));
  EXPECT_EQ(events.back()["final"]["finish_reason"], "MAX_TOKENS");
  EXPECT_EQ(events.back()["final"]["usage"]["output_tokens"], 6);
  EXPECT_EQ(TokensOf(events).size(), 6u);
  // The text is what the deltas say, byte for byte.
  std::string text;
  for (const Json& event : events) {
    if (event.contains("delta")) text += event["delta"]["text"].get<std::string>();
  }
  EXPECT_EQ(Out(Turn({"generate", "The lighthouse"}, 6)), text);
  EXPECT_EQ(Out(Turn({"generate", "-"}, 6), "The lighthouse"), text);

  // On a session the second turn goes on from the first, and recomputes nothing.
  Out({"sessions", "create", "gen"});
  const Json first = OutLines(Turn({"generate", "-s", "gen", "The lighthouse"}, 6)).back()["final"];
  EXPECT_EQ(first["committed"], true);
  EXPECT_EQ(first["version"], 1);
  const Json second = OutLines(Turn({"generate", "-s", "gen"}, 4)).back()["final"];
  EXPECT_EQ(second["usage"]["recomputed_tokens"], 0);
  EXPECT_EQ(second["position_tokens"], first["position_tokens"].get<int64_t>() + 4);
  const std::vector<Json> whole = OutLines(Turn({"generate", "The lighthouse"}, 10));
  const std::vector<int> both = TokensOf(whole);
  EXPECT_EQ(std::vector<int>(both.begin(), both.begin() + 6), TokensOf(events));

  const auto logprobs = OutLines(Turn({"generate", "The", "--logprobs", "2"}, 2));
  EXPECT_EQ(logprobs[1]["delta"]["logprobs"][0]["top"].size(), 2u);
  EXPECT_NE(Run(Turn({"generate", "-s", "gen", "--chat", "Hello", "-v"}, 2)).err.find("version 3"),
            std::string::npos);
}

TEST_F(CliTest, SessionsThroughTheirWholeLife) {
  const Json made = OutJson({"sessions", "create", "life", "--label", "project=atlas",
                             "--display-name", "A life", "--idle-ttl", "30d"});
  EXPECT_EQ(made["name"], Name("life"));
  EXPECT_EQ(made["state"], "ACTIVE");
  EXPECT_EQ(made["labels"]["project"], "atlas");
  EXPECT_EQ(made["version"], 0);

  for (const char* text : {"The visitor", " asked again", " and wrote"}) {
    Out(Turn({"generate", "-s", "life", text}, 4));
  }
  const Json got = OutJson({"sessions", "get", "life"});
  EXPECT_EQ(got["version"], 3);
  EXPECT_EQ(OutJson({"sessions", "get", Name("life")})["uid"], made["uid"]);

  const Json listed = OutJson({"sessions", "list", "--filter", "labels.project = \"atlas\""});
  ASSERT_EQ(listed["sessions"].size(), 1u);
  EXPECT_EQ(listed["sessions"][0]["name"], Name("life"));
  EXPECT_NE(Out({"sessions", "list", "-o", "name"}).find(Name("life") + "\n"), std::string::npos);
  EXPECT_NE(Out({"sessions", "list"}).find("\nlife "), std::string::npos);

  const Json updated = OutJson({"sessions", "update", "life", "--label", "mood=calm", "--unlabel",
                                "project", "--ttl", "7d"});
  EXPECT_EQ(updated["labels"], Json({{"mood", "calm"}}));
  EXPECT_TRUE(updated.contains("expire_time"));
  EXPECT_EQ(updated["display_name"], "A life");
  EXPECT_NE(updated["etag"], got["etag"]);

  const Json snapshots = OutJson({"sessions", "snapshots", "life"})["snapshots"];
  ASSERT_EQ(snapshots.size(), 3u);
  EXPECT_EQ(snapshots[0]["name"], Name("life") + "/snapshots/v3");
  EXPECT_EQ(Out({"sessions", "snapshots", "life", "-o", "name"}).substr(0, Name("life").size()),
            Name("life"));

  // Forks: of the session, of a snapshot, and unnamed ones.
  const Json forked = OutJson({"sessions", "fork", "life", "branch-a", "branch-b"})["sessions"];
  ASSERT_EQ(forked.size(), 2u);
  EXPECT_EQ(forked[1]["name"], Name("branch-b"));
  EXPECT_EQ(forked[1]["position_tokens"], got["position_tokens"]);
  EXPECT_EQ(forked[1]["parent"], Name("life"));
  const Json old = OutJson({"sessions", "fork", "life@v1", "from-v1"})["sessions"][0];
  EXPECT_EQ(old["position_tokens"], snapshots[2]["position_tokens"]);
  EXPECT_EQ(OutJson({"sessions", "fork", "life", "--count", "3"})["sessions"].size(), 3u);

  // Back to a snapshot, back to a position, and forth again.
  const Json back = OutJson({"sessions", "rewind", "life", "--to-snapshot", "v1"});
  EXPECT_EQ(back["recomputed_tokens"], 0);
  EXPECT_EQ(back["session"]["position_tokens"], snapshots[2]["position_tokens"]);
  EXPECT_EQ(back["session"]["version"], 4);
  const Json undone = OutJson({"sessions", "rewind", "life", "--to-snapshot", "before-rewind"});
  EXPECT_EQ(undone["session"]["position_tokens"], got["position_tokens"]);
  const int64_t position = snapshots[2]["position_tokens"].get<int64_t>() + 1;
  const Json replayed =
      OutJson({"sessions", "rewind", "life", "--to-position", std::to_string(position)});
  EXPECT_EQ(replayed["session"]["position_tokens"], position);
  EXPECT_EQ(replayed["recomputed_tokens"], 1);

  // A point that is kept.
  EXPECT_EQ(OutJson({"snapshots", "create", "life", "good"})["automatic"], false);
  EXPECT_EQ(Error({"snapshots", "create", "life", "good"}, 4)["reason"], "SNAPSHOT_EXISTS");
  EXPECT_EQ(OutJson({"snapshots", "get", "life@good"})["position_tokens"], position);
  EXPECT_NE(Out({"snapshots", "list", "life"}).find("good"), std::string::npos);
  EXPECT_EQ(
      OutJson({"sessions", "fork", "life@good", "from-good"})["sessions"][0]["position_tokens"],
      position);
  EXPECT_EQ(Out({"snapshots", "delete", "life@good"}), "good deleted\n");
  EXPECT_EQ(Error({"snapshots", "get", "life@good"}, 3)["reason"], "SNAPSHOT_NOT_FOUND");

  // Deleted, refused, brought back.
  const Json deleted = OutJson({"sessions", "delete", "life", "branch-a"});
  ASSERT_EQ(deleted.size(), 2u);
  EXPECT_EQ(deleted[0]["state"], "DELETED");
  EXPECT_EQ(Error(Turn({"generate", "-s", "life", "x"}, 1), 6)["reason"], "SESSION_DELETED");
  const std::string live = Out({"sessions", "list", "-o", "name"});
  EXPECT_EQ(live.find(Name("life") + "\n"), std::string::npos);
  EXPECT_NE(Out({"sessions", "list", "--show-deleted", "-o", "name"}).find(Name("life") + "\n"),
            std::string::npos);
  EXPECT_EQ(OutJson({"sessions", "undelete", "life"})["state"], "ACTIVE");
  EXPECT_EQ(OutJson({"sessions", "get", "life"})["position_tokens"], position);
  // A child outlives its parent.
  Out({"sessions", "delete", "life"});
  EXPECT_EQ(OutLines(Turn({"generate", "-s", "branch-b"}, 2)).back()["final"]["committed"], true);
  // By a filter, all at once.
  for (const char* id : {"atlas-a", "atlas-b"}) {
    OutJson({"sessions", "create", id, "--label", "project=atlas"});
  }
  const std::string atlas = "labels.project = \"atlas\"";
  EXPECT_EQ(Out({"sessions", "delete", "--filter", atlas, "--dry-run"}),
            "atlas-a would be deleted\natlas-b would be deleted\n");
  EXPECT_EQ(Error({"sessions", "delete", "atlas-a", "nobody"}, 3)["reason"], "SESSION_NOT_FOUND");
  EXPECT_EQ(OutJson({"sessions", "delete", "--filter", atlas, "--purge"}).size(), 2u);
  EXPECT_EQ(Out({"sessions", "list", "--show-deleted", "--filter", atlas, "-o", "name"}), "");
  EXPECT_EQ(Run({"sessions", "delete"}).code, 2);

  // A deleted session's id is taken, until it is deleted for good.
  EXPECT_EQ(Error({"sessions", "create", "life"}, 4)["reason"], "SESSION_EXISTS");
  Out({"sessions", "delete", "life", "--purge"});
  EXPECT_EQ(OutJson({"sessions", "create", "life"})["position_tokens"], 0);
}

TEST_F(CliTest, ScoreAndTokenize) {
  const Json tokens = OutJson({"tokenize", "The lighthouse keeper"});
  const size_t count = tokens["token_ids"].size();
  EXPECT_GT(count, 1u);
  EXPECT_EQ(Out({"tokenize", "--count"}, "The lighthouse keeper"), absl::StrCat(count, "\n"));
  std::string ids;
  for (const Json& id : tokens["token_ids"]) {
    absl::StrAppend(&ids, ids.empty() ? "" : ",", id.get<int>());
  }
  EXPECT_EQ(Out({"tokenize", "--decode", ids}), "The lighthouse keeper");

  const Json score = OutJson({"score", "The lighthouse keeper", "--logprobs", "2"});
  EXPECT_EQ(score["token_ids"], tokens["token_ids"]);
  EXPECT_EQ(score["unscored_tokens"], 1);
  EXPECT_LT(score["total_logprob"].get<double>(), 0);
  EXPECT_EQ(score["logprobs"][1]["top"].size(), 2u);
  EXPECT_NE(Out({"score", "--summary"}, "The lighthouse keeper").find("perplexity"),
            std::string::npos);
  // On a session everything is scored, and nothing changes.
  Out({"sessions", "create", "scored"});
  Out(Turn({"generate", "-s", "scored", "The"}, 2));
  const Json before = OutJson({"sessions", "get", "scored"});
  EXPECT_EQ(OutJson({"score", "-s", "scored", " keeper"})["unscored_tokens"], 0);
  EXPECT_EQ(OutJson({"sessions", "get", "scored"})["etag"], before["etag"]);
}

TEST_F(CliTest, Bench) {
  const Json report = OutJson({"bench", "--streams", "2", "--concurrency", "2", "--turns", "2",
                               "--prompt-tokens", "4", "--output-tokens", "3"});
  for (const char* mode : {"stateless", "session"}) {
    EXPECT_EQ(report[mode]["turns"], 4) << mode;
    EXPECT_EQ(report[mode]["output_tokens"], 12) << mode;
    EXPECT_GT(report[mode]["first_token_ms"]["p50"].get<double>(), 0) << mode;
  }
  // A session's second turn sends only what is new.
  EXPECT_EQ(report["session"]["input_tokens"], 16);
  EXPECT_EQ(report["stateless"]["input_tokens"], 2 * (4 + 4 + 3 + 4));
  EXPECT_NE(Out({"bench", "--streams", "1", "--output-tokens", "2"}).find("TOK/S"),
            std::string::npos);
  // It leaves no session behind.
  EXPECT_EQ(OutJson({"sessions", "list", "--filter", "state = ACTIVE"}).dump().find("mneme bench"),
            std::string::npos);
}

TEST_F(CliTest, ChatFromAPipe) {
  const ChildProcess::Result chat = Run(Turn({"chat", "piped", "--system", "Be brief."}, 5),
                                        "Hello\n\nAgain\\\nand more\n/quit\n");
  EXPECT_EQ(chat.code, 0) << chat.err;
  EXPECT_EQ(chat.err, "");
  EXPECT_EQ(OutJson({"sessions", "get", "piped"})["version"], 2);

  // With --json every line is a value: events of turns, results of commands.
  const std::vector<Json> lines = OutLines(
      Turn({"chat", "piped"}, 4),
      "One\n/fork piped-copy\n/regenerate\n/rewind\n/rewind before-rewind\n/snapshots\n/info\n"
      "/new piped-new\nTwo\n/switch piped\n/save piped-kept\n/save\n/help\n");
  std::set<std::string> kinds;
  for (const Json& line : lines) {
    for (const auto& [key, value] : line.items()) kinds.insert(key);
  }
  for (const char* kind : {"started", "delta", "final", "recomputed_tokens", "sessions",
                           "state_bytes", "automatic", "help"}) {
    EXPECT_TRUE(kinds.contains(kind)) << kind;
  }
  EXPECT_EQ(OutJson({"sessions", "get", "piped-copy"})["parent"], Name("piped"));
  EXPECT_EQ(OutJson({"sessions", "get", "piped-kept"})["parent"], Name("piped"));
  EXPECT_EQ(OutJson({"sessions", "get", "piped-new"})["version"], 1);

  // The first failure ends it, with the command's exit code.
  EXPECT_EQ(Error({"chat", "piped"}, 3, "/rewind v99\nnever sent\n")["reason"],
            "SNAPSHOT_NOT_FOUND");
  Error({"chat", "piped"}, 2, "/nonsense\n");
}

TEST_F(CliTest, ExitCodesTellWhatHappened) {
  Out({"sessions", "create", "codes"});
  Out(Turn({"generate", "-s", "codes", "The"}, 2));
  Out(Turn({"generate", "-s", "codes", "sea"}, 2));
  // 1: failed here, or there by a fault of its own
  Error({"ingest", (folder_->path() / "none").string(), "-s", "codes"}, 1);
  Error({"ingest", folder_->path().string(), "-s", "codes"}, 1);
  EXPECT_EQ(
      Error(Turn({"generate", "-s", "codes", "--expected-version", "7", "x"}, 1), 1)["reason"],
      "VERSION_REGRESSED");
  // 2: wrong usage
  Error({"nonsense"}, 2);
  Error({"sessions", "get"}, 2);
  Error({"sessions", "rewind", "codes"}, 2);
  Error({"generate", "x", "--max-duration", "soon"}, 2);
  Error({"sessions", "create", "x", "--label", "novalue"}, 2);
  // 3: not found
  const Json nobody = Error({"sessions", "get", "nobody"}, 3);
  EXPECT_EQ(nobody["reason"], "SESSION_NOT_FOUND");
  EXPECT_EQ(nobody["resource"], Name("nobody"));
  EXPECT_NE(Run({"sessions", "get", "nobody"}).err.find("mneme: nobody: "), std::string::npos);
  Error({"models", "--server", absl::StrCat("http://", server_->metrics_address())}, 5);
  // 4: conflict
  EXPECT_EQ(Error({"sessions", "create", "codes"}, 4)["reason"], "SESSION_EXISTS");
  EXPECT_EQ(
      Error(Turn({"generate", "-s", "codes", "--expected-version", "1", "x"}, 1), 4)["reason"],
      "VERSION_MISMATCH");
  // 5: no server; a deadline
  Error({"models", "--server", "127.0.0.1:1", "--connect-timeout", "0.2"}, 5);
  Error({"generate", "x", "--ignore-eos", "-n", "65536", "--timeout", "0.5"}, 5);
  // 6: refused
  const Json refused = Error({"generate", "x", "--top-p", "7"}, 6);
  EXPECT_EQ(refused["reason"], "FIELD_OUT_OF_RANGE");
  EXPECT_EQ(refused["fields"][0]["field"], "sampling.top_p");
  EXPECT_EQ(Error({"generate", "-"}, 6, "not \xff UTF-8")["fields"][0]["field"], "text");
  EXPECT_EQ(Error({"score", "-"}, 6, "not \xff UTF-8")["fields"][0]["field"], "text");
  EXPECT_EQ(Error({"sessions", "rewind", "codes", "--to-position", "99999"}, 6)["reason"],
            "POSITION_OUT_OF_RANGE");
  EXPECT_EQ(Error({"sessions", "list", "--filter", "nonsense"}, 6)["fields"][0]["field"], "filter");
}

TEST_F(CliTest, AConversationCanBeReadBack) {
  const std::string answer =
      Out(Turn({"chat", "told", "--system", "Be brief."}, 12), "Who keeps the light?\n");
  const std::vector<Json> turns = OutLines({"sessions", "show", "told"});
  ASSERT_EQ(turns.size(), 1u);
  EXPECT_EQ(turns[0]["version"], 1);
  EXPECT_EQ(turns[0]["finish_reason"], "MAX_TOKENS");
  std::map<std::string, std::string> said;
  for (const Json& part : turns[0]["parts"]) said[part["role"]] += part["text"];
  EXPECT_EQ(said["SYSTEM"], "Be brief.");
  EXPECT_EQ(said["USER"], "Who keeps the light?");
  EXPECT_EQ(said["ASSISTANT"] + "\n", answer);
  const std::string shown = Out({"sessions", "show", "told"});
  EXPECT_NE(shown.find("\nsystem: Be brief.\nuser: Who keeps the light?\nassistant: "),
            std::string::npos)
      << shown;
  EXPECT_EQ(Error({"sessions", "show", "nobody"}, 3)["reason"], "SESSION_NOT_FOUND");
}

TEST_F(CliTest, APromptOverTheServersLimitSaysWhatToDo) {
  const std::string prompt(30 << 20, 'a');
  const ChildProcess::Result result = Run({"generate", "-", "-n", "1"}, prompt);
  EXPECT_EQ(result.code, 6) << result.err;
  for (const char* text :
       {"the request has 30.0 MiB; this server takes at most 16.0 MiB", "limits.max_request_bytes",
        "hint: feed long texts with `mneme ingest"}) {
    EXPECT_NE(result.err.find(text), std::string::npos) << text << "\n" << result.err;
  }
  const Json error = Error({"score", "-"}, 6, prompt);
  EXPECT_EQ(error["reason"], "REQUEST_TOO_LARGE");
  EXPECT_EQ(error["metadata"]["max_request_bytes"], "16777216");
}

TEST_F(CliTest, TwoModelsAreListedWithWhatChoosesOne) {
  TemporaryFolder folder;
  auto two = ServerProcess::Start({.binary = MNEME_SERVER_BINARY,
                                   .model = absl::StrCat("left=", MNEME_TINY_MODEL),
                                   .folder = folder.path(),
                                   .flags = {"--model", absl::StrCat("right=", MNEME_TINY_MODEL)}});
  ASSERT_TRUE(two.ok()) << two.status();
  const std::vector<std::string> at = {"--server", (*two)->address()};
  for (std::vector<std::string> command : {std::vector<std::string>{"generate", "x"},
                                           {"chat", "s"},
                                           {"sessions", "create", "s"},
                                           {"tokenize", "x"},
                                           {"score", "x"},
                                           {"ingest", "-", "-s", "s", "--create"},
                                           {"bench"}}) {
    command.insert(command.end(), at.begin(), at.end());
    const ChildProcess::Result result = Run(command, "text\n");
    EXPECT_EQ(result.code, 6) << result.err;
    EXPECT_NE(result.err.find("several models, left, right"), std::string::npos) << result.err;
    EXPECT_NE(result.err.find("--model"), std::string::npos) << result.err;
  }
  const auto config = folder.path() / "mneme/config.yaml";
  std::filesystem::create_directories(config.parent_path());
  std::ofstream(config) << "model: right\nserver: " << (*two)->address() << "\n";
  ChildProcess::Options create = Command({"sessions", "create", "s", "--json"});
  create.environment = {{"XDG_CONFIG_HOME", folder.path()}};
  EXPECT_EQ(Parse(ChildProcess::Run(create).out)["model"], "models/right");
  create.command[3] = "t";
  create.environment.emplace_back("MNEME_MODEL", "left");
  EXPECT_EQ(Parse(ChildProcess::Run(create).out)["model"], "models/left");
}

TEST_F(CliTest, ABusySessionIsAConflictOrAQueue) {
  Out({"sessions", "create", "busy"});
  auto running = Spawn({"generate", "-s", "busy", "The", "--ignore-eos", "-n", "65536", "--json"});
  ASSERT_NE(running, nullptr);
  while (!running->Ended() && running->Out().find("delta") == std::string::npos) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  const Json busy = Error(Turn({"generate", "-s", "busy", "x"}, 1), 4);
  EXPECT_EQ(busy["reason"], "SESSION_BUSY");
  EXPECT_EQ(busy["metadata"]["current_version"], "0");
  EXPECT_EQ(Error({"sessions", "delete", "busy"}, 4)["reason"], "SESSION_BUSY");
  auto queued = Spawn(Turn({"generate", "-s", "busy", "--queue", "x", "--json"}, 1));
  absl::SleepFor(absl::Milliseconds(100));
  EXPECT_FALSE(queued->Ended());

  // Ctrl-C ends the running one well: what it said is kept, and the queued turn goes on from there.
  running->Signal(SIGINT);
  const ChildProcess::Result interrupted = running->Wait();
  EXPECT_EQ(interrupted.code, 130) << interrupted.err;
  const Json final = ParseLines(interrupted.out).back()["final"];
  EXPECT_EQ(final["finish_reason"], "CANCELLED");
  EXPECT_EQ(final["committed"], true);
  const ChildProcess::Result after = queued->Wait();
  EXPECT_EQ(after.code, 0) << after.err;
  EXPECT_EQ(ParseLines(after.out).back()["final"]["usage"]["reused_input_tokens"],
            final["position_tokens"]);
}

}  // namespace
}  // namespace mneme::test
