// mneme chat: a conversation that is kept.
#include <algorithm>
#include <iostream>
#include <limits>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cli/context.h"
#include "client/cli/interrupt.h"
#include "client/cli/json.h"
#include "client/cli/line_reader.h"
#include "client/cli/messages.h"
#include "client/cli/open_session.h"
#include "client/cli/output.h"
#include "client/cli/transcript.h"
#include "client/cli/turn.h"
#include "client/cli/turn_flags.h"
#include "client/cli/typed_message.h"

namespace mneme::cli {
namespace {

constexpr char kHelp[] = R"(  /help                 this
  /info                 the session: position, version, sizes, model
  /rewind [N]           take back the last N turns (default 1)
  /rewind @POSITION     go back to a token position
  /rewind SNAPSHOT      go back to a snapshot; before-rewind undoes the last rewind
  /show                 what was said last
  /snapshots            the kept points of this session
  /regenerate           take the last answer back and ask for another
  /continue             go on with an answer that was cut short
  /fork NAME            make a copy at this point; the conversation stays here
  /switch NAME          go on in session NAME, created if there is none
  /new [NAME]           go on in a new session
  /save [NAME]          every answer is saved already; with NAME keep this point as a fork
  /quit                 leave; so does Ctrl-D. Ctrl-C stops an answer, what was said is kept
  //text                a message that begins with '/'
  A line that ends in '\' goes on in the next one; so does a message between two
  lines of """. Lines that are pasted at once are one message.
)";

struct ChatFlags {
  std::string session, model, system, answer_start;
  bool raw = false, no_history = false;
  double max_outage_s = 60;
  TurnFlags turn;
};

class Chat {
 public:
  Chat(client::Client& client, const Context& context, const ChatFlags& flags)
      : client_(client), context_(context), flags_(flags), talk_(StdinIsTty() && !context.json()) {}

  int Run() {
    const bool fresh = flags_.session.empty();
    const absl::Status entered =
        Enter(fresh ? FreshName() : flags_.session, fresh ? Entry::kNew : Entry::kAsFlagged);
    if (!entered.ok()) return context_.Fail(entered);
    LineReader reader(flags_.no_history ? "" : DefaultHistoryFile());
    TypedMessageReader typed;
    for (;;) {
      std::string line;
      const LineReader::Event event = ReadLine(reader, typed.waiting() ? ". " : "> ", &line);
      if (event == LineReader::Event::kInterrupted) {
        typed.Clear();
        std::cerr << "\n(Ctrl-D or /quit leaves)\n";
        continue;
      }
      if (event == LineReader::Event::kEnd) break;
      const std::optional<TypedMessage> message = typed.Add(line);
      if (!message || message->text.find_first_not_of(" \t\n") == std::string::npos) continue;
      if (message->command && IsQuit(message->text)) break;
      const int code = message->command ? Command(message->text) : Turn(message->text);
      // A script must hear of a failure; a person sees it and goes on.
      if (code != kOk && !StdinIsTty()) return code;
    }
    if (typed.waiting()) return context_.FailUsage("the last message has no end: it was not sent");
    if (talk_) {
      std::cerr << "\nKept. Go on any time: mneme chat " << Id() << "\n";
    }
    return kOk;
  }

 private:
  struct Point {
    int64_t position;
    std::string message;  // what was sent there
  };

  enum class Entry { kAsFlagged, kSwitch, kNew };

  // Ctrl-C at the prompt only clears the line. A turn has its own handler (RunTurn).
  static LineReader::Event ReadLine(LineReader& reader, const char* prompt, std::string* line) {
    std::optional<OnInterrupt> at_prompt;
    if (StdinIsTty()) at_prompt.emplace([](int) {});
    return reader.Read(prompt, line);
  }

  static bool IsQuit(const std::string& command) {
    return command == "/quit" || command == "/exit" || command == "/q";
  }

  static std::string FreshName() {
    return absl::FormatTime("chat-%Y%m%d-%H%M%S", absl::Now(), absl::LocalTimeZone());
  }

  std::string Id() const { return std::string(client::IdOf(session_.name())); }

  static void PrintJson(const google::protobuf::Message& message) {
    std::cout << Dump(ToJson(message)) << "\n" << std::flush;
  }

  void Say(const std::string& text) const {
    if (!context_.json()) std::cerr << TerminalSafe(text) << "\n";
  }

  // Makes `name` the session of this chat. The flags of the command line are about the session it
  // began with, and those of later ones that are new.
  absl::Status Enter(const std::string& name, Entry entry) {
    auto full = client::SessionName(context_.tenant, name);
    if (!full.ok()) return full.status();
    auto opened = entry == Entry::kNew ? CreateSession(client_, context_, *full, flags_.model)
                                       : OpenSession(client_, context_, *full,
                                                     entry == Entry::kAsFlagged ? flags_.model : "",
                                                     IfAbsent::kCreate);
    if (!opened.ok()) return opened.status();
    const auto& [session, created] = *opened;
    if (!flags_.system.empty() && session.position_tokens() > 0) {
      const std::string why =
          absl::StrCat("--system can only begin a session, and ", context_.Short(session.name()),
                       " has read ", session.position_tokens(), " tokens");
      if (entry == Entry::kAsFlagged) {
        return absl::FailedPreconditionError(why + "; leave the flag out, or name a new session");
      }
      Say(why + ": it is not sent.");
    }
    auto model = client_.GetModel(session.model());
    if (!model.ok()) return model.status();
    const bool begins = !flags_.system.empty() && session.position_tokens() == 0;
    if (!model->has_chat_template() && (begins || !flags_.answer_start.empty())) {
      return absl::FailedPreconditionError(absl::StrCat(
          begins ? "--system" : "--answer-start",
          " needs a model that takes messages; of this one: ", model->chat_template_problem()));
    }
    session_ = session;
    points_.clear();
    raw_ = flags_.raw || !model->has_chat_template();
    if (talk_) {
      const std::string before = created ? "" : Reminder(client_, session_.name());
      if (!before.empty()) std::cerr << Dim(TerminalSafe(before));
      Say(absl::StrCat(
          created ? "New session " : "Session ", Id(), " on ",
          client::IdOf(session_.model()).data(),
          created ? "" : absl::StrCat(", ", session_.position_tokens(), " tokens read so far"),
          ". /help lists what you can do."));
    }
    if (raw_ && !flags_.raw) {
      Say(absl::StrCat("This model takes no messages (", model->chat_template_problem(),
                       "): your text is continued as it is."));
    }
    return absl::OkStatus();
  }

  int Turn(const std::string& text) {
    v1::GenerateRequest request;
    if (raw_) {
      request.set_text(text);
    } else {
      Fill({.system = session_.position_tokens() == 0 ? flags_.system : "",
            .user = text,
            .answer_start = flags_.answer_start},
           request);
    }
    return Send(std::move(request), text);
  }

  // A turn without input goes on from where the session is. It belongs to the last message, so that
  // /rewind and /regenerate take both back.
  int Continue() { return Send({}, std::nullopt); }

  // `message`: what begins a turn of its own.
  int Send(v1::GenerateRequest request, const std::optional<std::string>& message) {
    request.set_session(session_.name());
    if (auto s = flags_.turn.Fill(request); !s.ok()) {
      return context_.FailUsage(std::string(s.message()));
    }
    if (const std::optional<int> code = GiveUpOnServer()) return *code;
    TurnResult result = RunTurn(client_, context_, client_.Generate(request));
    const bool lost = client::ErrorOf(result.status).outcome_unknown && !result.started;
    if (lost && session_.version() > 0) {
      // Sent on a connection that was dead without anybody's knowing yet. With the version it can
      // be sent again: if it had arrived after all, the session has another one now.
      if (const std::optional<int> code = GiveUpOnServer()) return *code;
      request.set_expected_version(session_.version());
      result = RunTurn(client_, context_, client_.Generate(request));
      if (client::ErrorOf(result.status).reason == "VERSION_MISMATCH") {
        SayWhatWasKept();
        return kOk;
      }
    }
    if (!context_.json() && !result.ended_in_newline) std::cout << "\n" << std::flush;
    if (result.final) {
      if (result.final->committed()) {
        if (message) points_.push_back({session_.position_tokens(), *message});
        session_.set_position_tokens(result.final->position_tokens());
        session_.set_version(result.final->version());
      }
      if (!context_.json() && context_.verbose) {
        std::cerr << Dim(absl::StrCat("[", TurnSummary(*result.final), "]")) << "\n";
      } else if (talk_ && CutShort(*result.final)) {
        Say("(cut short: /continue goes on)");
      }
    }
    if (result.interrupted) {
      if (!result.final) {
        Say("Stopped.");
        Refresh();  // the server may have kept a part of it
      }
      return StdinIsTty() ? kOk : kInterrupted;
    }
    if (result.status.ok()) return kOk;
    const int code = context_.Fail(result.status);
    if (client::ErrorOf(result.status).outcome_unknown) SayWhatWasKept();
    return code;
  }

  static bool CutShort(const v1::GenerateResponse::Final& final) {
    return final.finish_reason() == v1::MAX_TOKENS || final.finish_reason() == v1::DURATION ||
           final.finish_reason() == v1::PREEMPTED;
  }

  // A server that is being restarted is waited for, and a person told so. The exit code if it stays
  // away, or nobody wants to wait; nothing once it answers.
  std::optional<int> GiveUpOnServer() {
    const absl::Duration look = absl::Milliseconds(200);
    if (client_.AwaitServer(look).ok()) return std::nullopt;
    OnInterrupt interrupt([](int) {});
    Say(absl::StrCat("The server is away: waiting for it, at most ",
                     HumanSpan(absl::Seconds(flags_.max_outage_s)), ". Ctrl-C gives up."));
    const absl::Time give_up = absl::Now() + absl::Seconds(flags_.max_outage_s);
    while (absl::Now() < give_up && !interrupt.interrupted()) {
      if (client_.AwaitServer(look).ok()) return std::nullopt;
    }
    if (interrupt.interrupted()) {
      Say("Not sent.");
      return StdinIsTty() ? kOk : kInterrupted;
    }
    return context_.Fail(absl::UnavailableError(
        absl::StrCat("no server answers at ", context_.server, "; the message was not sent")));
  }

  // After a turn whose end was lost.
  void SayWhatWasKept() {
    const int64_t before = session_.version();
    if (!Refresh()) return;
    Say(session_.version() == before
            ? absl::StrCat("The session has not changed (version ", before, ").")
            : absl::StrCat("The session has gone on to version ", session_.version(), ", position ",
                           session_.position_tokens(),
                           ": what was said is kept; /rewind takes it back."));
    if (session_.version() != before) Say(Reminder(client_, session_.name()));
  }

  bool Refresh() {
    auto session = client_.GetSession(session_.name());
    if (session.ok()) session_ = *session;
    return session.ok();
  }

  int Command(const std::string& line) {
    std::istringstream words(line);
    std::string command, argument, more;
    words >> command >> argument >> more;
    if (!more.empty()) return context_.FailUsage("too many words after " + command);
    if (command == "/help" || command == "/?") {
      if (context_.json()) {
        std::cout << Dump(Json{{"help", kHelp}}) << "\n" << std::flush;
      } else {
        std::cerr << kHelp;
      }
      return kOk;
    }
    if (command == "/info") return Info();
    if (command == "/show") return Show();
    if (command == "/snapshots") return Snapshots();
    if (command == "/rewind") return Rewind(argument);
    if (command == "/continue") return Continue();
    if (command == "/regenerate" || command == "/retry") return Regenerate();
    if (command == "/fork") return Fork(argument);
    if (command == "/save") {
      if (!argument.empty()) return Fork(argument);
      if (context_.json()) return Info();
      Say(absl::StrCat("Saved already: every answer is on disk before it is reported (version ",
                       session_.version(), "). To keep this point under a name: /save NAME"));
      return kOk;
    }
    if (command == "/switch") {
      if (argument.empty()) return context_.FailUsage("/switch needs a session: /switch NAME");
      return Go(argument, Entry::kSwitch);
    }
    if (command == "/new") {
      return Go(argument.empty() ? FreshName() : argument, Entry::kNew);
    }
    return context_.FailUsage(command + " is not known; /help lists what is");
  }

  int Go(const std::string& name, Entry entry) {
    if (auto s = Enter(name, entry); !s.ok()) return context_.Fail(s);
    if (context_.json()) PrintJson(session_);
    return kOk;
  }

  int Info() {
    Refresh();
    if (context_.json()) {
      PrintJson(session_);
      return kOk;
    }
    Say(absl::StrCat("session   ", session_.name(), "\nmodel     ", session_.model(),
                     "\nposition  ", session_.position_tokens(), " tokens, version ",
                     session_.version(), "\nstate     ", HumanBytes(session_.state_bytes()),
                     ", constant; stored ", HumanBytes(session_.stored_bytes()),
                     session_.parent().empty() ? "" : "\nparent    ", session_.parent()));
    return kOk;
  }

  int Show() {
    const std::string text = Reminder(client_, session_.name());
    if (context_.json()) {
      std::cout << Dump(Json{{"text", text}}) << "\n" << std::flush;
    } else {
      Say(text.empty() ? "Nothing is kept of what was said."
                       : absl::StrCat(text, "All of it: mneme sessions show ", Id()));
    }
    return kOk;
  }

  absl::StatusOr<std::vector<v1::Snapshot>> AllSnapshots() {
    v1::ListSnapshotsRequest request;
    request.set_parent(session_.name());
    request.set_page_size(1000);
    auto page = client_.ListSnapshots(request);  // a session keeps far fewer than one page
    if (!page.ok()) return page.status();
    return std::vector<v1::Snapshot>(page->snapshots().begin(), page->snapshots().end());
  }

  int Snapshots() {
    auto snapshots = AllSnapshots();
    if (!snapshots.ok()) return context_.Fail(snapshots.status());
    for (const auto& s : *snapshots) {
      if (context_.json()) {
        PrintJson(s);
      } else {
        Say(absl::StrCat("  ", std::string(client::IdOf(s.name())), "  position ",
                         s.position_tokens(), ", version ", s.version(), ", ", Age(s.create_time()),
                         " ago"));
      }
    }
    if (snapshots->empty()) Say("No snapshots yet: one is kept after each answer.");
    return kOk;
  }

  int RewindTo(v1::RewindSessionRequest request) {
    request.set_name(session_.name());
    auto response = client_.RewindSession(request);
    if (!response.ok()) return context_.Fail(response.status());
    session_ = response->session();
    if (context_.json()) PrintJson(*response);
    while (!points_.empty() && points_.back().position >= session_.position_tokens()) {
      points_.pop_back();
    }
    Say(absl::StrCat("Back at position ", session_.position_tokens(), " (recomputed ",
                     response->recomputed_tokens(), " tokens). To undo: /rewind before-rewind"));
    return kOk;
  }

  // Where the last `turns` turns began: of this chat, or else by the snapshots after each turn.
  absl::StatusOr<int64_t> PositionBefore(int turns) {
    if (static_cast<size_t>(turns) <= points_.size()) {
      return points_[points_.size() - static_cast<size_t>(turns)].position;
    }
    auto snapshots = AllSnapshots();
    if (!snapshots.ok()) return snapshots.status();
    std::vector<int64_t> positions;
    for (const auto& s : *snapshots) {
      if (s.automatic() && client::IdOf(s.name()) != "before-rewind" &&
          s.position_tokens() < session_.position_tokens()) {
        positions.push_back(s.position_tokens());
      }
    }
    std::sort(positions.begin(), positions.end(), std::greater<>());
    positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
    if (static_cast<size_t>(turns) > positions.size()) {
      return absl::OutOfRangeError(
          absl::StrCat("only ", std::max(positions.size(), points_.size()),
                       " earlier turns have a snapshot; /rewind @POSITION reaches any point, "
                       "/rewind @0 the beginning"));
    }
    return positions[static_cast<size_t>(turns) - 1];
  }

  int Rewind(const std::string& argument) {
    v1::RewindSessionRequest request;
    int turns = 1;
    int64_t position = 0;
    if (argument.empty() || absl::SimpleAtoi(argument, &turns)) {
      if (turns < 1) return context_.FailUsage("/rewind needs a number of turns of 1 or more");
      auto before = PositionBefore(turns);
      if (!before.ok()) return context_.Fail(before.status());
      request.set_position_tokens(*before);
    } else if (argument[0] == '@') {
      if (!absl::SimpleAtoi(argument.substr(1), &position)) {
        return context_.FailUsage("/rewind @POSITION needs a number, such as /rewind @120");
      }
      request.set_position_tokens(position);
    } else {
      request.set_snapshot(argument);
    }
    return RewindTo(std::move(request));
  }

  int Regenerate() {
    if (points_.empty()) {
      return context_.FailUsage(
          "/regenerate needs an answer of this chat; take back an older one "
          "with /rewind");
    }
    const Point last = points_.back();
    v1::RewindSessionRequest request;
    request.set_position_tokens(last.position);
    if (int code = RewindTo(std::move(request)); code != kOk) return code;
    return Turn(last.message);
  }

  int Fork(const std::string& child) {
    if (child.empty()) return context_.FailUsage("/fork needs a name: /fork NAME");
    v1::ForkSessionRequest request;
    request.set_name(session_.name());
    request.add_session_ids(child);
    auto response = client_.ForkSession(request);
    if (!response.ok()) return context_.Fail(response.status());
    if (context_.json()) {
      PrintJson(*response);
      return kOk;
    }
    Say(absl::StrCat("Forked as ", child, " at position ",
                     response->sessions_size() > 0 ? response->sessions(0).position_tokens() : 0,
                     ". You are still in ", Id(), "; go there with /switch ", child));
    return kOk;
  }

  client::Client& client_;
  const Context& context_;
  const ChatFlags& flags_;
  const bool talk_;  // to a person, not a script
  bool raw_ = false;
  v1::Session session_;
  std::vector<Point> points_;  // where the turns of this chat began, oldest first
};

}  // namespace

void AddChat(CLI::App& app, Context& context) {
  auto* command = app.add_subcommand("chat", "Talk with a model; the conversation is kept");
  auto flags = std::make_shared<ChatFlags>();
  command->add_option("SESSION", flags->session,
                      "Go on in this session, created if there is none; default: a new one");
  AddModelFlag(*command, flags->model, "Model of a session that is created");
  auto* raw = command->add_flag("--raw", flags->raw,
                                "Send text as it is, without the model's chat template");
  command->add_option("--system", flags->system, "System message at the beginning of a new session")
      ->excludes(raw);
  command
      ->add_option("--answer-start", flags->answer_start,
                   "Every answer begins with this, and the model goes on from there; the output "
                   "does not repeat it")
      ->excludes(raw);
  command->add_flag("--no-history", flags->no_history,
                    "Keep no history of typed lines (else ~/.local/state/mneme/history)");
  command
      ->add_option("--max-outage", flags->max_outage_s,
                   "Keep a message so many seconds while the server is away")
      ->capture_default_str();
  flags->turn.AddTo(*command);
  command->footer(absl::StrCat(R"(
Answers stream to stdout, everything else goes to stderr. Each answer is durable before it is
reported: kill the server or this program, and the session goes on where it was.

In the chat:
)",
                               kHelp, R"(
Without a terminal each line of stdin (or block of """) is a turn, commands included; the first
failure ends it.

Examples:
  mneme chat                        # a new session, named by the time
  mneme chat diary --system "You are a patient listener."
  printf 'My name is Ada.\nWhat is my name?\n' | mneme chat test --temperature 0
  printf '/rewind 1\nSay it again.\n' | mneme chat test --json)"));
  OnRun(command, context,
        [&context, flags](client::Client& c) { return Chat(c, context, *flags).Run(); });
}

}  // namespace mneme::cli
