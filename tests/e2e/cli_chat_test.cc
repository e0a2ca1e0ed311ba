// `mneme chat` and the progress bar as a person sees them: on a terminal.
#include <signal.h>
#include <sys/stat.h>

#include "absl/time/clock.h"
#include "tests/e2e/cli_test_base.h"
#include "tests/support/pty_process.h"

namespace mneme::test {
namespace {

constexpr char kCtrlA[] = "\x01", kCtrlC[] = "\x03", kCtrlD[] = "\x04", kCtrlF[] = "\x06";

class CliChatTest : public CliE2eTest {
 protected:
  using Variables = std::vector<std::pair<std::string, std::string>>;
  std::unique_ptr<PtyProcess> Terminal(std::vector<std::string> args,
                                       const Variables& environment = Environment()) {
    args.insert(args.begin(), MNEME_CLI_BINARY);
    auto terminal = PtyProcess::Start(std::move(args), environment);
    EXPECT_TRUE(terminal.ok()) << terminal.status();
    return terminal.ok() ? *std::move(terminal) : nullptr;
  }
  std::unique_ptr<PtyProcess> Chat(const std::string& session, const std::string& tokens) {
    return Terminal(
        {"chat", session, "--temperature", "0", "--seed", "3", "--ignore-eos", "-n", tokens, "-v"});
  }
  int64_t Position(const std::string& session) {
    return OutJson({"sessions", "get", session})["position_tokens"].get<int64_t>();
  }
};

#define EXPECT_SHOWN(terminal, text) \
  ASSERT_TRUE((terminal).Expect(text)) << "not shown: " << (text) << "\n" << (terminal).screen()
#define EXPECT_PROMPT(terminal) \
  EXPECT_SHOWN(terminal, "> "); \
  ASSERT_TRUE((terminal).ExpectKeysAreRead()) << (terminal).screen()

TEST_F(CliChatTest, TypeStreamCommandsAndCtrlD) {
  auto chat = Chat("talk", "12");
  ASSERT_NE(chat, nullptr);
  EXPECT_SHOWN(*chat, "New session talk on tiny");
  EXPECT_PROMPT(*chat);
  chat->Type("Hello there\r");
  EXPECT_SHOWN(*chat, "wrote 12 tokens");
  EXPECT_SHOWN(*chat, "saved as version 1");
  EXPECT_PROMPT(*chat);
  const int64_t first = Position("talk");
  EXPECT_GT(first, 12);

  chat->Type("/save\r");
  EXPECT_SHOWN(*chat, "Saved already");
  chat->Type("/fork branch\r");
  EXPECT_SHOWN(*chat, absl::StrCat("Forked as branch at position ", first));
  chat->Type("And again\r");
  EXPECT_SHOWN(*chat, "saved as version 2");
  chat->Type("/save kept\r");
  EXPECT_SHOWN(*chat, "Forked as kept at position");
  const int64_t second = Position("talk");

  chat->Type("/rewind\r");
  EXPECT_SHOWN(*chat, absl::StrCat("Back at position ", first));
  EXPECT_EQ(Position("talk"), first);
  chat->Type("/rewind before-rewind\r");
  EXPECT_SHOWN(*chat, absl::StrCat("Back at position ", second));
  chat->Type("/snapshots\r");
  EXPECT_SHOWN(*chat, "before-rewind");
  chat->Type("/rewind @0\r");
  EXPECT_SHOWN(*chat, "Back at position 0");
  chat->Type("/nonsense\r");
  EXPECT_SHOWN(*chat, "/nonsense is not known");
  chat->Type("/switch branch\r");
  EXPECT_SHOWN(*chat, absl::StrCat("Session branch on tiny, ", first, " tokens read so far"));
  chat->Type("/help\r");
  EXPECT_SHOWN(*chat, "/rewind @POSITION");
  EXPECT_PROMPT(*chat);
  chat->Type(kCtrlD);
  EXPECT_SHOWN(*chat, "Go on any time: mneme chat branch");
  EXPECT_EQ(chat->Wait(), 0) << chat->screen();
  EXPECT_EQ(Position("branch"), first);
  EXPECT_EQ(Position("kept"), second);
  EXPECT_EQ(Position("talk"), 0);

  // What was typed is kept for the next time, for its owner alone.
  const std::filesystem::path history = folder_->path() / ".local/state/mneme/history";
  const std::string typed = ReadFile(history);
  EXPECT_NE(typed.find("Hello"), std::string::npos) << typed;
  struct stat info;
  ASSERT_EQ(stat(history.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(CliChatTest, LinesCanBeEdited) {
  auto chat = Chat("edited", "4");
  ASSERT_NE(chat, nullptr);
  EXPECT_PROMPT(*chat);
  // An x too much after the first letter, noticed at the end of the line.
  chat->Type(absl::StrCat("Hxello", kCtrlA, kCtrlF, kCtrlD, "\r"));
  EXPECT_SHOWN(*chat, "saved as version 1");
  EXPECT_PROMPT(*chat);
  chat->Type(kCtrlD);
  EXPECT_EQ(chat->Wait(), 0) << chat->screen();
  // The same session as if "Hello" had been typed: both go on alike.
  const std::vector<std::string> flags = {"--temperature", "0", "--ignore-eos", "-n", "4"};
  std::vector<std::string> pipe = {"chat", "unedited"};
  pipe.insert(pipe.end(), flags.begin(), flags.end());
  Out(pipe, "Hello\n");
  EXPECT_EQ(Position("edited"), Position("unedited"));
  EXPECT_EQ(OutJson({"score", "-s", "edited", " and then"}),
            OutJson({"score", "-s", "unedited", " and then"}));
}

TEST_F(CliChatTest, APasteIsOneTurn) {
  auto chat = Chat("pasted", "4");
  ASSERT_NE(chat, nullptr);
  EXPECT_SHOWN(*chat, "\033[?2004h");  // asks the terminal to mark pastes
  EXPECT_PROMPT(*chat);
  chat->Type("Read this: \033[200~one\r/two\nthr\033ee\r\r\033[201~!\r");
  EXPECT_SHOWN(*chat, "\033[?2004l");
  EXPECT_SHOWN(*chat, "saved as version 1");
  EXPECT_PROMPT(*chat);
  chat->Type("/quit\r");
  EXPECT_EQ(chat->Wait(), 0) << chat->screen();
  Out({"chat", "blocked", "--temperature", "0", "--ignore-eos", "-n", "4"},
      "\"\"\"\nRead this: one\n/two\nthree!\n\"\"\"\n");
  EXPECT_EQ(Position("pasted"), Position("blocked"));
  EXPECT_EQ(OutJson({"score", "-s", "pasted", " and then"}),
            OutJson({"score", "-s", "blocked", " and then"}));
}

TEST_F(CliChatTest, ABlockHasItsOwnPrompt) {
  auto chat = Chat("block", "4");
  ASSERT_NE(chat, nullptr);
  EXPECT_PROMPT(*chat);
  chat->Type("\"\"\"\r");
  EXPECT_SHOWN(*chat, ". ");
  ASSERT_TRUE(chat->ExpectKeysAreRead());
  chat->Type("/one\rtwo\r\"\"\"\r");
  EXPECT_SHOWN(*chat, "saved as version 1");
  EXPECT_PROMPT(*chat);
  chat->Type("/quit\r");
  EXPECT_EQ(chat->Wait(), 0) << chat->screen();
}

TEST_F(CliChatTest, ARestartedServerIsNotNoticed) {
  auto chat = Chat("restarted", "4");
  ASSERT_NE(chat, nullptr);
  EXPECT_PROMPT(*chat);
  server_->Kill();
  StartServer();
  chat->Type("The first line\r");
  EXPECT_SHOWN(*chat, "saved as version 1");
  EXPECT_PROMPT(*chat);
  server_->Signal(SIGINT);  // drains
  server_->Wait();
  StartServer();
  chat->Type("The second line\r");
  EXPECT_SHOWN(*chat, "saved as version 2");
  EXPECT_PROMPT(*chat);
  // Away while a line is typed.
  server_->Kill();
  chat->Type("The third line\r");
  EXPECT_SHOWN(*chat, "The server is away: waiting for it");
  StartServer();
  EXPECT_SHOWN(*chat, "saved as version 3");
  EXPECT_PROMPT(*chat);
  // Away for longer than a person waits.
  server_->Kill();
  chat->Type("The fourth line\r");
  EXPECT_SHOWN(*chat, "The server is away");
  chat->Type(kCtrlC);
  EXPECT_SHOWN(*chat, "Not sent.");
  StartServer();
  EXPECT_PROMPT(*chat);
  chat->Type("/quit\r");
  EXPECT_EQ(chat->Wait(), 0) << chat->screen();
  EXPECT_EQ(OutJson({"sessions", "get", "restarted"})["version"], 3) << chat->screen();
  EXPECT_EQ(chat->screen().find("handshaker"), std::string::npos) << chat->screen();
}

TEST_F(CliChatTest, AnOldConversationIsShown) {
  Out({"chat", "remembered", "--temperature", "0", "-n", "4"}, "What is a keeper?\n");
  auto chat = Chat("remembered", "4");
  ASSERT_NE(chat, nullptr);
  EXPECT_SHOWN(*chat, "user: What is a keeper?");
  EXPECT_SHOWN(*chat, "assistant: ");
  EXPECT_SHOWN(*chat, "Session remembered on tiny");
  EXPECT_PROMPT(*chat);
  chat->Type("/quit\r");
  EXPECT_EQ(chat->Wait(), 0) << chat->screen();
}

TEST_F(CliChatTest, WithoutVAnAnswerStandsAlone) {
  auto chat = Terminal({"chat", "quiet", "--temperature", "0", "--ignore-eos", "-n", "4"});
  ASSERT_NE(chat, nullptr);
  EXPECT_PROMPT(*chat);
  chat->Type("Hello\r");
  EXPECT_SHOWN(*chat, "cut short: /continue goes on");
  EXPECT_PROMPT(*chat);
  EXPECT_EQ(chat->screen().find("tok/s"), std::string::npos) << chat->screen();
  chat->Type("/quit\r");
  EXPECT_EQ(chat->Wait(), 0) << chat->screen();
}

TEST_F(CliChatTest, NoColorIsRespected) {
  for (const bool no_color : {false, true}) {
    auto environment = Environment();
    environment.emplace_back("NO_COLOR", no_color ? "1" : "");
    auto chat = Terminal({"chat", no_color ? "plain" : "dimmed", "-v", "-n", "4"}, environment);
    ASSERT_NE(chat, nullptr);
    EXPECT_PROMPT(*chat);
    chat->Type("Hello\r");
    EXPECT_SHOWN(*chat, "saved as version 1");
    EXPECT_PROMPT(*chat);
    EXPECT_EQ(chat->screen().find("\033[2m") == std::string::npos, no_color) << chat->screen();
    chat->Type("/quit\r");
    EXPECT_EQ(chat->Wait(), 0) << chat->screen();
  }
}

TEST_F(CliChatTest, CtrlCStopsAnAnswerAndKeepsIt) {
  auto chat = Chat("long", "60000");
  ASSERT_NE(chat, nullptr);
  EXPECT_PROMPT(*chat);
  chat->Type("half a line");
  EXPECT_SHOWN(*chat, "half a line");
  chat->Type(kCtrlC);
  // A Ctrl-C between the echo and the next read finds nobody who waits; a person presses it again.
  if (!chat->Expect("Ctrl-D or /quit leaves", absl::Seconds(10))) {
    chat->Type(kCtrlC);
    EXPECT_SHOWN(*chat, "Ctrl-D or /quit leaves");
  }
  EXPECT_PROMPT(*chat);
  chat->Type("Tell me everything\r");
  // Runs until stopped: wait for a good part of it.
  const size_t before = chat->screen().size();
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (chat->screen().size() < before + 300 && absl::Now() < deadline) {
    chat->Expect("\xff never shown", absl::Milliseconds(20));
  }
  chat->Type(kCtrlC);
  EXPECT_SHOWN(*chat, ", cancelled");
  EXPECT_SHOWN(*chat, "saved as version 1");
  EXPECT_PROMPT(*chat);
  chat->Type("/quit\r");
  EXPECT_EQ(chat->Wait(), 0) << chat->screen();
  EXPECT_GT(Position("long"), 20);
}

TEST_F(CliChatTest, IngestDrawsABarInPlace) {
  std::string text;
  for (int i = 0; i < 600; ++i) absl::StrAppend(&text, "The keeper wrote page ", i, ". ");
  const auto book = WriteFile("bar.txt", text);
  auto ingest = Terminal({"ingest", book, "-s", "barred", "--create"});
  ASSERT_NE(ingest, nullptr);
  EXPECT_SHOWN(*ingest, "\r\033[K[");
  EXPECT_SHOWN(*ingest, " tok/s");
  EXPECT_SHOWN(*ingest, ", constant");
  EXPECT_SHOWN(*ingest, "] 100%");
  EXPECT_SHOWN(*ingest, "Ingested ");
  EXPECT_EQ(ingest->Wait(), 0) << ingest->screen();
}

}  // namespace
}  // namespace mneme::test
