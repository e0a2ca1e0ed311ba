// mneme sessions: list, look up, read back, create, change, fork, rewind, delete.
#include <iostream>
#include <map>
#include <optional>

#include "absl/strings/str_cat.h"
#include "client/cli/context.h"
#include "client/cli/json.h"
#include "client/cli/labels.h"
#include "client/cli/output.h"
#include "client/cli/snapshots.h"
#include "client/cli/transcript.h"

namespace mneme::cli {
namespace {

void PrintSessions(const Context& context,
                   const google::protobuf::RepeatedPtrField<v1::Session>& sessions) {
  if (context.names_only()) {
    for (const auto& s : sessions) std::cout << s.name() << "\n";
    return;
  }
  Table table(
      {"NAME", "STATE", "MODEL", "VERSION", "TOKENS", "STATE-SIZE", "STORED", "IN", "AGE", "USED"});
  for (const auto& s : sessions) {
    table.Add({context.Short(s.name()), v1::Session::State_Name(s.state()),
               std::string(client::IdOf(s.model())), absl::StrCat(s.version()),
               HumanCount(s.position_tokens()), HumanBytes(s.state_bytes()),
               HumanBytes(s.stored_bytes()), v1::Session::Residency_Name(s.residency()),
               Age(s.create_time()), Age(s.last_used_time())});
  }
  table.Print(std::cout);
}

int PrintSession(const Context& context, const absl::StatusOr<v1::Session>& session) {
  if (!session.ok()) return context.Fail(session.status());
  if (context.json()) {
    std::cout << Dump(ToJson(*session)) << "\n";
  } else {
    google::protobuf::RepeatedPtrField<v1::Session> one;
    *one.Add() = *session;
    PrintSessions(context, one);
  }
  return kOk;
}

struct ListFlags {
  std::string filter;
  bool show_deleted = false;
  int limit = 0;
};

int List(client::Client& client, const Context& context, const ListFlags& flags) {
  v1::ListSessionsRequest request;
  request.set_filter(flags.filter);
  request.set_show_deleted(flags.show_deleted);
  v1::ListSessionsResponse all;
  do {
    request.set_page_size(flags.limit > 0 ? std::min(1000, flags.limit - all.sessions_size())
                                          : 1000);
    auto page = client.ListSessions(request);
    if (!page.ok()) return context.Fail(page.status());
    all.mutable_sessions()->MergeFrom(page->sessions());
    request.set_page_token(page->next_page_token());
  } while (!request.page_token().empty() &&
           (flags.limit == 0 || all.sessions_size() < flags.limit));
  all.set_next_page_token(request.page_token());
  if (context.json()) {
    std::cout << Dump(ToJson(all)) << "\n";
  } else {
    PrintSessions(context, all.sessions());
    if (all.sessions().empty() && !context.names_only()) {
      std::cerr << "No sessions. Make one: mneme sessions create NAME, or just: mneme chat NAME\n";
    }
  }
  return kOk;
}

// Flags that set fields of a session; shared by create and update.
struct SessionFlags {
  std::string name, model, display_name, ttl, idle_ttl, etag;
  std::vector<std::string> labels, unlabels;
  std::optional<int> max_snapshots;
  bool no_transcript = false, async = false, validate_only = false, no_turn_snapshots = false;
  bool turn_snapshots = false;

  void AddTo(CLI::App& command) {
    command.add_option("--display-name", display_name, "Free text, at most 128 bytes");
    command.add_option("--label", labels, "KEY=VALUE; may be given again")->expected(1)->take_all();
    command.add_option("--ttl", ttl, "Delete after this time, e.g. 7d");
    command.add_option("--idle-ttl", idle_ttl, "Delete when not used for so long, e.g. 12h");
    command.add_option("--max-snapshots", max_snapshots, "Automatic snapshots to keep, 0..64");
    auto* off = command.add_flag("--no-turn-snapshots", no_turn_snapshots,
                                 "No snapshot at the end of each turn");
    command.add_flag("--turn-snapshots", turn_snapshots, "A snapshot at the end of each turn")
        ->excludes(off);
  }

  // Sets what was given, and names it in `paths`.
  absl::Status Fill(v1::Session& session, std::vector<std::string>& paths) const {
    if (!display_name.empty()) {
      session.set_display_name(display_name);
      paths.push_back("display_name");
    }
    if (auto s = AddLabels(labels, session); !s.ok()) return s;
    for (const std::string& key : unlabels) session.mutable_labels()->erase(key);
    if (!labels.empty() || !unlabels.empty()) paths.push_back("labels");
    if (!ttl.empty()) {
      auto span = ParseSpan(ttl);
      if (!span.ok()) return span.status();
      *session.mutable_ttl() = *span;
      paths.push_back("ttl");
    }
    if (!idle_ttl.empty()) {
      auto span = ParseSpan(idle_ttl);
      if (!span.ok()) return span.status();
      *session.mutable_idle_ttl() = *span;
      paths.push_back("idle_ttl");
    }
    if (max_snapshots) session.mutable_snapshot_policy()->set_max_count(*max_snapshots);
    if (no_turn_snapshots) session.mutable_snapshot_policy()->set_at_turn_end(false);
    if (turn_snapshots) session.mutable_snapshot_policy()->set_at_turn_end(true);
    if (max_snapshots || no_turn_snapshots || turn_snapshots) paths.push_back("snapshot_policy");
    return absl::OkStatus();
  }
};

int Create(client::Client& client, const Context& context, const SessionFlags& flags) {
  v1::CreateSessionRequest request;
  if (!flags.name.empty()) {
    auto full = client::SessionName(context.tenant, flags.name);
    if (!full.ok()) return context.FailUsage(std::string(full.status().message()));
    request.set_session_id(std::string(client::IdOf(*full)));
    request.set_parent(full->substr(0, full->find("/sessions/")));
  }
  request.set_validate_only(flags.validate_only);
  auto& session = *request.mutable_session();
  session.set_model(context.ModelOr(flags.model));
  if (flags.no_transcript) session.set_transcript(v1::Session::NONE);
  if (flags.async) session.set_durability(v1::Session::ASYNC);
  std::vector<std::string> paths;
  if (auto s = flags.Fill(session, paths); !s.ok())
    return context.FailUsage(std::string(s.message()));
  return PrintSession(context, client.CreateSession(request));
}

int Update(client::Client& client, const Context& context, const SessionFlags& flags) {
  // Labels and the snapshot policy are whole fields: read, change, and write only if nobody else
  // did meanwhile.
  auto session = client.GetSession(flags.name);
  if (!session.ok()) return context.Fail(session.status());
  v1::UpdateSessionRequest request;
  auto& changed = *request.mutable_session();
  changed.set_name(session->name());
  changed.set_etag(flags.etag.empty() ? session->etag() : flags.etag);
  *changed.mutable_labels() = session->labels();
  if (session->has_snapshot_policy()) {
    *changed.mutable_snapshot_policy() = session->snapshot_policy();
  }
  std::vector<std::string> paths;
  if (auto s = flags.Fill(changed, paths); !s.ok())
    return context.FailUsage(std::string(s.message()));
  if (paths.empty()) return context.FailUsage("nothing to change: give --label, --ttl, ...");
  for (const std::string& path : paths) request.mutable_update_mask()->add_paths(path);
  return PrintSession(context, client.UpdateSession(request));
}

struct ForkFlags {
  std::string name;
  std::vector<std::string> children;
  int count = 0;
  int64_t expected_version = 0;
};

int Fork(client::Client& client, const Context& context, const ForkFlags& flags) {
  v1::ForkSessionRequest request;
  request.set_name(flags.name);
  for (const std::string& child : flags.children) {
    request.add_session_ids(std::string(client::IdOf(child)));
  }
  request.set_count(flags.count);
  request.set_expected_version(flags.expected_version);
  auto response = client.ForkSession(request);
  if (!response.ok()) return context.Fail(response.status());
  if (context.json()) {
    std::cout << Dump(ToJson(*response)) << "\n";
  } else {
    PrintSessions(context, response->sessions());
  }
  return kOk;
}

struct RewindFlags {
  std::string name, snapshot;
  std::optional<int64_t> position;
  int64_t expected_version = 0;
};

int Rewind(client::Client& client, const Context& context, const RewindFlags& flags) {
  if (flags.snapshot.empty() == !flags.position) {
    return context.FailUsage("rewind needs one of --to-snapshot ID and --to-position TOKENS");
  }
  v1::RewindSessionRequest request;
  request.set_name(flags.name);
  if (flags.position) {
    request.set_position_tokens(*flags.position);
  } else {
    request.set_snapshot(flags.snapshot);
  }
  request.set_expected_version(flags.expected_version);
  auto response = client.RewindSession(request);
  if (!response.ok()) return context.Fail(response.status());
  if (context.json()) {
    std::cout << Dump(ToJson(*response)) << "\n";
    return kOk;
  }
  PrintSession(context, response->session());
  if (!context.names_only()) {
    std::cerr << "Recomputed " << response->recomputed_tokens()
              << " tokens. To undo: mneme sessions rewind " << flags.name
              << " --to-snapshot before-rewind\n";
  }
  return kOk;
}

struct ShowFlags {
  std::string name;
  std::optional<int64_t> from, last_tokens;
  bool with_template = false;
};

int Show(client::Client& client, const Context& context, const ShowFlags& flags) {
  v1::ReadTranscriptRequest request;
  request.set_name(flags.name);
  if (flags.from) request.set_position_tokens(*flags.from);
  if (flags.last_tokens) request.set_last_tokens(*flags.last_tokens);
  if (!context.json()) request.set_view(v1::ReadTranscriptRequest::TEXT);
  bool any = false;
  const absl::Status status = ForEachTurn(client, request, [&](const v1::TranscriptTurn& turn) {
    if (context.json()) {
      std::cout << Dump(ToJson(turn)) << "\n";
    } else {
      std::cout << (any ? "\n" : "") << "--- " << TurnHeading(turn) << "\n"
                << ForStdout(TurnText(turn, flags.with_template));
    }
    any = true;
  });
  if (!status.ok()) return context.Fail(status);
  if (!any && !context.json()) std::cerr << "Nothing has been read yet.\n";
  return kOk;
}

struct DeleteFlags {
  std::vector<std::string> names;
  std::string etag, filter;
  bool force = false, purge = false, dry_run = false;
};

// One session: its etag may be asked for.
absl::StatusOr<v1::BatchDeleteSessionsResponse> DeleteOne(client::Client& client,
                                                          const DeleteFlags& flags) {
  v1::DeleteSessionRequest request;
  request.set_name(flags.names[0]);
  request.set_etag(flags.etag);
  request.set_force(flags.force);
  request.set_purge(flags.purge);
  auto session = client.DeleteSession(request);
  if (!session.ok()) return session.status();
  v1::BatchDeleteSessionsResponse deleted;
  *deleted.add_sessions() = *std::move(session);
  return deleted;
}

// As many calls as it takes; `all` has what those did that succeeded.
absl::Status DeleteMany(client::Client& client, const DeleteFlags& flags,
                        v1::BatchDeleteSessionsResponse& all) {
  constexpr size_t kMost = 1000;  // that a call takes
  for (size_t at = 0;; at += kMost) {
    v1::BatchDeleteSessionsRequest request;
    request.set_filter(flags.filter);
    request.set_force(flags.force);
    request.set_purge(flags.purge);
    request.set_validate_only(flags.dry_run);
    for (size_t i = at; i < std::min(at + kMost, flags.names.size()); ++i) {
      request.add_names(flags.names[i]);
    }
    auto done = client.BatchDeleteSessions(request);
    if (!done.ok()) return done.status();
    all.mutable_sessions()->MergeFrom(done->sessions());
    all.mutable_failures()->MergeFrom(done->failures());
    all.set_more(done->more());
    // Those that fail are found again: without any other there is no end.
    const bool again = flags.filter.empty()
                           ? at + kMost < flags.names.size()
                           : done->more() && !flags.dry_run && done->failures().empty();
    if (!again) return absl::OkStatus();
  }
}

int Delete(client::Client& client, const Context& context, const DeleteFlags& flags) {
  if (flags.names.empty() == flags.filter.empty()) {
    return context.FailUsage("delete needs names of sessions, or --filter");
  }
  const bool one = flags.names.size() == 1 && !flags.dry_run;  // an etag can be asked for
  if (!one && !flags.etag.empty()) return context.FailUsage("--etag is for one session");
  v1::BatchDeleteSessionsResponse done;
  absl::Status status;
  if (one) {
    auto deleted = DeleteOne(client, flags);
    status = deleted.status();
    if (deleted.ok()) done = *std::move(deleted);
  } else {
    status = DeleteMany(client, flags, done);
  }
  if (context.json()) {
    if (status.ok() || done.sessions_size() > 0) {
      std::cout << Dump(ToJson(done)["sessions"]) << "\n";
    }
  } else if (context.names_only()) {
    PrintSessions(context, done.sessions());
  } else {
    for (const auto& s : done.sessions()) {
      std::cout << context.Short(s.name())
                << (flags.dry_run ? " would be deleted"
                    : flags.purge ? " deleted for good"
                                  : " deleted");
      if (s.has_purge_time() && !flags.purge && !flags.dry_run) {
        std::cout << "; can be undeleted for "
                  << HumanSpan(absl::FromUnixSeconds(s.purge_time().seconds()) - absl::Now());
      }
      std::cout << "\n";
    }
    if (flags.dry_run && done.more()) std::cout << "and more\n";
  }
  if (!status.ok()) return context.Fail(status);
  int worst = kOk;  // of the first failure
  for (const auto& failure : done.failures()) {
    const absl::Status why(static_cast<absl::StatusCode>(failure.code()), failure.message());
    if (worst == kOk) worst = ExitCodeOf(why);
    if (context.json()) {
      std::cerr << Dump(Json{{"error",
                              {{"code", absl::StatusCodeToString(why.code())},
                               {"reason", failure.reason()},
                               {"message", failure.message()},
                               {"name", failure.name()}}}})
                << "\n";
    } else {
      std::cerr << context.Short(failure.name()) << " is still there: " << failure.reason() << ": "
                << failure.message() << "\n";
    }
  }
  return worst;
}

}  // namespace

void AddSessions(CLI::App& app, Context& context) {
  auto* command = app.add_subcommand("sessions", "List, create, fork, rewind and delete sessions");
  command->alias("session");
  command->require_subcommand(1);

  auto* list = command->add_subcommand("list", "List sessions, ordered by name");
  auto list_flags = std::make_shared<ListFlags>();
  list->add_option("--filter", list_flags->filter,
                   "Terms joined by AND: state = ACTIVE, model = \"models/m\", labels.key = \"v\"");
  list->add_flag("--show-deleted", list_flags->show_deleted, "Also those that can be undeleted");
  list->add_option("--limit", list_flags->limit, "At most so many; default all");
  list->footer(
      "\nExamples:\n  mneme sessions list --filter 'state = ACTIVE AND labels.project = "
      "\"atlas\"'\n"
      "  mneme sessions list --show-deleted --json | jq -r '.sessions[].name'");
  OnRun(list, context, [&context, list_flags](auto& c) { return List(c, context, *list_flags); });

  auto* get = command->add_subcommand("get", "Show one session");
  auto get_name = std::make_shared<std::string>();
  get->add_option("SESSION", *get_name)->required();
  get->footer("\nExample:\n  mneme sessions get diary --json | jq .position_tokens");
  OnRun(get, context,
        [&context, get_name](auto& c) { return PrintSession(context, c.GetSession(*get_name)); });

  auto* show = command->add_subcommand("show", "Show what a session has read and answered");
  auto show_flags = std::make_shared<ShowFlags>();
  show->add_option("SESSION", show_flags->name, "Session, or snapshot as SESSION@SNAPSHOT")
      ->required();
  auto* from = show->add_option("--from", show_flags->from, "Begin at this token position");
  show->add_option("--last-tokens", show_flags->last_tokens, "Only so many tokens before the end")
      ->excludes(from);
  show->add_flag("--template", show_flags->with_template,
                 "Also what the chat template puts around messages");
  show->footer(
      "\nTurn by turn: which version it made and when, and who said what. With --json one turn a "
      "line,\ntoken ids included.\n\nExamples:\n  mneme sessions show diary | less\n"
      "  mneme sessions show diary --last-tokens 200\n"
      "  mneme sessions show diary --json | jq -r '.parts[] | select(.role == \"USER\") | .text'");
  OnRun(show, context, [&context, show_flags](auto& c) { return Show(c, context, *show_flags); });

  auto* create = command->add_subcommand("create", "Create a session that has read nothing");
  auto create_flags = std::make_shared<SessionFlags>();
  create->add_option("SESSION", create_flags->name, "Its id; left out: the server makes one");
  AddModelFlag(*create, create_flags->model);
  create->add_flag("--no-transcript", create_flags->no_transcript,
                   "Keep no token ids; rewind then works to snapshots only");
  create->add_flag(
      "--async", create_flags->async,
      "Do not wait for the disk: turns end sooner, and a crash of the store's machine\n"
      "may take the last second back");
  create->add_flag("--validate-only", create_flags->validate_only, "Check, but create nothing");
  create_flags->AddTo(*create);
  create->footer("\nExample:\n  mneme sessions create diary --label project=atlas --idle-ttl 30d");
  OnRun(create, context,
        [&context, create_flags](auto& c) { return Create(c, context, *create_flags); });

  auto* update =
      command->add_subcommand("update", "Change labels, name, expiry or snapshot policy");
  auto update_flags = std::make_shared<SessionFlags>();
  update->add_option("SESSION", update_flags->name)->required();
  update->add_option("--unlabel", update_flags->unlabels, "Label KEY to remove")
      ->expected(1)
      ->take_all();
  update->add_option("--etag", update_flags->etag, "Only if the session still has this etag");
  update_flags->AddTo(*update);
  update->footer(
      "\nExample:\n  mneme sessions update diary --label project=atlas --unlabel draft --ttl 7d");
  OnRun(update, context,
        [&context, update_flags](auto& c) { return Update(c, context, *update_flags); });

  auto* fork = command->add_subcommand("fork", "Make children that go on from the same point");
  auto fork_flags = std::make_shared<ForkFlags>();
  fork->add_option("SESSION", fork_flags->name, "Session, or snapshot as SESSION@SNAPSHOT")
      ->required();
  fork->add_option("CHILD", fork_flags->children,
                   "Ids of the children; default: made by the server");
  fork->add_option("--count", fork_flags->count, "Number of children, if none is named");
  fork->add_option("--expected-version", fork_flags->expected_version,
                   "Only if the session is at this version");
  fork->footer(
      "\nCosts nothing per token read: references are copied, not bytes.\n\nExample:\n"
      "  mneme sessions fork diary diary-a diary-b");
  OnRun(fork, context, [&context, fork_flags](auto& c) { return Fork(c, context, *fork_flags); });

  auto* rewind = command->add_subcommand("rewind", "Go back to a snapshot or a position");
  auto rewind_flags = std::make_shared<RewindFlags>();
  rewind->add_option("SESSION", rewind_flags->name)->required();
  rewind->add_option("--to-snapshot", rewind_flags->snapshot, "Snapshot id: no compute");
  rewind->add_option("--to-position", rewind_flags->position,
                     "Token position: nearest earlier snapshot, then a replay");
  rewind->add_option("--expected-version", rewind_flags->expected_version,
                     "Only if the session is at this version");
  rewind->footer(
      "\nIt can be undone: the point before is kept as snapshot before-rewind.\n\n"
      "Example:\n  mneme sessions snapshots diary\n"
      "  mneme sessions rewind diary --to-snapshot v12");
  OnRun(rewind, context,
        [&context, rewind_flags](auto& c) { return Rewind(c, context, *rewind_flags); });

  auto* remove = command->add_subcommand("delete", "Delete sessions; undelete works for a while");
  auto delete_flags = std::make_shared<DeleteFlags>();
  remove->add_option("SESSION", delete_flags->names,
                     "All names are checked before the first session is deleted");
  remove->add_option("--filter", delete_flags->filter,
                     "Instead of names: all that `sessions list --filter` shows");
  remove->add_flag("--dry-run", delete_flags->dry_run,
                   "Say what would be deleted, at most 1000, and delete nothing");
  remove->add_flag("--force", delete_flags->force, "Cancel a running turn first");
  remove->add_flag("--purge", delete_flags->purge,
                   "For good, with snapshots and transcript; the id is free at once. Also of a "
                   "session that is deleted already");
  remove->add_option("--etag", delete_flags->etag,
                     "Only if the session still has this etag; of one session");
  remove->footer(
      "\nExamples:\n  mneme sessions delete diary-a diary-b --force\n"
      "  mneme sessions delete --filter 'labels.project = \"atlas\"' --dry-run\n"
      "  mneme sessions delete diary --purge");
  OnRun(remove, context,
        [&context, delete_flags](auto& c) { return Delete(c, context, *delete_flags); });

  auto* undelete = command->add_subcommand("undelete", "Bring a deleted session back");
  auto undelete_name = std::make_shared<std::string>();
  undelete->add_option("SESSION", *undelete_name)->required();
  undelete->footer("\nExample:\n  mneme sessions undelete diary-a");
  OnRun(undelete, context, [&context, undelete_name](auto& c) {
    return PrintSession(context, c.UndeleteSession(*undelete_name));
  });

  auto* snapshots =
      command->add_subcommand("snapshots", "List a session's kept points, newest first");
  auto snapshots_name = std::make_shared<std::string>();
  snapshots->add_option("SESSION", *snapshots_name)->required();
  snapshots->footer(
      "\nExample:\n  mneme sessions snapshots diary\n"
      "  mneme sessions fork diary@v12 from-there");
  OnRun(snapshots, context,
        [&context, snapshots_name](auto& c) { return ListSnapshots(c, context, *snapshots_name); });
  // Last, because CLI11 lets later subcommands inherit it.
  command->footer(R"(
A session is a named, durable owner of one state: what the model has read so far. A SESSION is given
as its id, or as tenants/TENANT/sessions/ID.

Examples:
  mneme sessions list --filter 'labels.project = "atlas"'
  mneme sessions create diary --idle-ttl 30d
  mneme sessions fork diary diary-what-if
  mneme sessions show diary
  mneme sessions rewind diary --to-position 1200
  mneme sessions list -o name | xargs mneme sessions delete)");
}

}  // namespace mneme::cli
