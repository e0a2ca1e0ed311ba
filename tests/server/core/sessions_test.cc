// Life of a session: create, list, update, fork, rewind, delete, expire, damage; and every error.
#include <cmath>
#include <filesystem>
#include <set>
#include <thread>

#include "server/core/session_store.h"
#include "tests/server/core/core_test_base.h"

namespace mneme::server {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;
using Code = absl::StatusCode;

#define EXPECT_ERROR(expr, expected_code, expected_reason)  \
  do {                                                      \
    const absl::Status s = (expr);                          \
    EXPECT_EQ(s.code(), expected_code) << s;                \
    EXPECT_EQ(ReasonOf(s), expected_reason) << s.message(); \
  } while (false)

class SessionsTest : public CoreTest {
 protected:
  absl::Status TryGenerate(const v1::GenerateRequest& request) {
    CollectingSink sink;
    const absl::Status status = Generate(request, sink);
    EXPECT_EQ(status.ok(), sink.has_final);
    return status;
  }
  absl::StatusOr<v1::ForkSessionResponse> Fork(const std::string& name, int count,
                                               std::vector<std::string> ids = {}) {
    CallContext context;
    v1::ForkSessionRequest request;
    request.set_name(name);
    request.set_count(count);
    for (auto& id : ids) request.add_session_ids(id);
    return core->ForkSession(context, request);
  }
  absl::StatusOr<v1::RewindSessionResponse> RewindTo(const std::string& id, int64_t position) {
    CallContext context;
    v1::RewindSessionRequest request;
    request.set_name(Name(id));
    request.set_position_tokens(position);
    return core->RewindSession(context, request);
  }
  absl::StatusOr<v1::RewindSessionResponse> RewindTo(const std::string& id,
                                                     const std::string& snapshot) {
    CallContext context;
    v1::RewindSessionRequest request;
    request.set_name(Name(id));
    request.set_snapshot(Name(id) + "/snapshots/" + snapshot);
    return core->RewindSession(context, request);
  }
  absl::StatusOr<v1::ListSessionsResponse> List(int page_size = 0, const std::string& token = "",
                                                const std::string& filter = "",
                                                bool show_deleted = false) {
    CallContext context;
    v1::ListSessionsRequest request;
    request.set_parent("tenants/default");
    request.set_page_size(page_size);
    request.set_page_token(token);
    request.set_filter(filter);
    request.set_show_deleted(show_deleted);
    return core->ListSessions(context, request);
  }
};

TEST_F(SessionsTest, CreateAndGet) {
  Start();
  const v1::Session s = Create("s", [](v1::Session& session) {
    session.set_display_name("a name");
    (*session.mutable_labels())["k"] = "v";
    session.mutable_idle_ttl()->set_seconds(100);
  });
  EXPECT_EQ(s.name(), Name("s"));
  EXPECT_EQ(s.model(), "models/tiny");
  EXPECT_EQ(s.version(), 0);
  EXPECT_EQ(s.transcript(), v1::Session::TOKENS);
  EXPECT_EQ(s.snapshot_policy().max_count(), 8);
  EXPECT_EQ(Get("s").SerializeAsString(), s.SerializeAsString());
  EXPECT_NE(Create("").name(), Create("").name());

  CallContext context;
  v1::CreateSessionRequest request;
  request.set_parent("tenants/default");
  request.set_session_id("s");
  EXPECT_ERROR(core->CreateSession(context, request).status(), Code::kAlreadyExists,
               reason::kSessionExists);
  request.set_session_id("t");
  request.set_validate_only(true);
  EXPECT_TRUE(core->CreateSession(context, request).ok());
  EXPECT_ERROR(TryGet("t").status(), Code::kNotFound, reason::kSessionNotFound);

  request.set_session_id("Bad Id");
  request.mutable_session()->set_display_name(std::string(129, 'x'));
  request.mutable_session()->mutable_snapshot_policy()->set_max_count(65);
  request.mutable_session()->mutable_ttl()->set_seconds(-1);
  const absl::Status bad = core->CreateSession(context, request).status();
  EXPECT_EQ(bad.code(), Code::kInvalidArgument);
  EXPECT_THAT(BadFields(bad),
              UnorderedElementsAre("session_id", "session.display_name",
                                   "session.snapshot_policy.max_count", "session.ttl"));
  v1::CreateSessionRequest other;
  other.set_parent("tenants/other");
  EXPECT_ERROR(core->CreateSession(context, other).status(), Code::kPermissionDenied,
               reason::kAccessDenied);
  other.set_parent("tenants/default");
  other.mutable_session()->set_model("models/none");
  EXPECT_ERROR(core->CreateSession(context, other).status(), Code::kNotFound,
               reason::kModelNotFound);
}

TEST_F(SessionsTest, ListPagesAndFilters) {
  Start();
  std::set<std::string> expected;
  for (int i = 0; i < 23; ++i) {
    const std::string id = absl::StrCat("s", i);
    Create(id, [&](v1::Session& s) { (*s.mutable_labels())["odd"] = i % 2 ? "yes" : "no"; });
    expected.insert(Name(id));
  }
  std::vector<std::string> names;
  std::string token;
  do {
    auto page = List(5, token);
    ASSERT_TRUE(page.ok());
    for (const auto& s : page->sessions()) names.push_back(s.name());
    token = page->next_page_token();
    // A session that is deleted or created meanwhile does not disturb the others.
    if (names.size() == 5) Create("zz");
  } while (!token.empty());
  names.pop_back();  // zz
  EXPECT_EQ(names, std::vector<std::string>(expected.begin(), expected.end()));
  EXPECT_EQ(List(0, "", "labels.odd = yes")->sessions_size(), 11);
  EXPECT_ERROR(List(-1).status(), Code::kInvalidArgument, reason::kFieldInvalid);
  EXPECT_ERROR(List(5, "nonsense").status(), Code::kInvalidArgument, reason::kPageTokenInvalid);
  const std::string bound = List(5)->next_page_token();
  EXPECT_ERROR(List(5, bound, "state = ACTIVE").status(), Code::kInvalidArgument,
               reason::kPageTokenInvalid);
  EXPECT_ERROR(List(5, "", "nonsense").status(), Code::kInvalidArgument, reason::kFieldInvalid);
}

TEST_F(SessionsTest, UpdateWithMaskAndEtag) {
  Start();
  const v1::Session s = Create("s");
  CallContext context;
  v1::UpdateSessionRequest request;
  request.mutable_session()->set_name(Name("s"));
  request.mutable_session()->set_display_name("new");
  request.mutable_session()->set_etag(s.etag());
  EXPECT_ERROR(core->UpdateSession(context, request).status(), Code::kInvalidArgument,
               reason::kFieldRequired);
  request.mutable_update_mask()->add_paths("display_name");
  auto updated = core->UpdateSession(context, request);
  ASSERT_TRUE(updated.ok()) << updated.status();
  EXPECT_EQ(updated->display_name(), "new");
  EXPECT_EQ(updated->version(), 0);
  EXPECT_NE(updated->etag(), s.etag());
  const absl::Status stale = core->UpdateSession(context, request).status();
  EXPECT_ERROR(stale, Code::kAborted, reason::kVersionMismatch);
  EXPECT_EQ(Metadata(stale, "current_version"), "0");
  request.mutable_update_mask()->add_paths("model");
  EXPECT_ERROR(core->UpdateSession(context, request).status(), Code::kInvalidArgument,
               reason::kFieldInvalid);
}

TEST_F(SessionsTest, ForkSharesAndDiverges) {
  Start();
  Create("p");
  Say("p", "the parent reads this", 6);
  const auto before = store->store->Stats()->chunk_bytes;
  auto forked = Fork(Name("p"), 64);
  ASSERT_TRUE(forked.ok()) << forked.status();
  ASSERT_EQ(forked->sessions_size(), 64);
  EXPECT_EQ(store->store->Stats()->chunk_bytes, before);
  const auto expected = Say("p", "", 8).tokens;
  for (int i : {0, 31, 63}) {
    const v1::Session& child = forked->sessions(i);
    EXPECT_EQ(child.parent(), Name("p"));
    EXPECT_EQ(child.parent_version(), 1);
    const std::string id = child.name().substr(child.name().find_last_of('/') + 1);
    const auto turn = Say(id, "", 8);
    EXPECT_EQ(turn.tokens, expected);
    EXPECT_EQ(turn.final.usage().recomputed_tokens(), 0);
  }
  // All or none.
  EXPECT_ERROR(Fork(Name("p"), 0, {"fresh", "p"}).status(), Code::kAlreadyExists,
               reason::kSessionExists);
  EXPECT_ERROR(TryGet("fresh").status(), Code::kNotFound, reason::kSessionNotFound);
  EXPECT_ERROR(Fork(Name("p"), 65).status(), Code::kInvalidArgument, reason::kFieldOutOfRange);
  EXPECT_THAT(BadFields(Fork(Name("p"), 0, {"a", "a", "B"}).status()),
              UnorderedElementsAre("session_ids[1]", "session_ids[2]"));
  // From a snapshot.
  auto old = Fork(Name("p") + "/snapshots/v1", 0, {"old"});
  ASSERT_TRUE(old.ok()) << old.status();
  EXPECT_EQ(Say("old", "", 8).tokens, expected);
  EXPECT_ERROR(Fork(Name("p") + "/snapshots/v9", 1).status(), Code::kNotFound,
               reason::kSnapshotNotFound);
}

TEST_F(SessionsTest, EverythingGoesWithTheSessions) {
  config.sessions.undelete_window_ms = 0;
  Start();
  Create("p");
  for (int i = 0; i < 12; ++i) Say("p", "more words", 3);
  EXPECT_EQ(Snapshots("p").size(), 8u);
  EXPECT_EQ(Snapshots("p")[0].version(), 12);
  auto forked = Fork(Name("p"), 5);
  ASSERT_TRUE(forked.ok());
  ASSERT_TRUE(Delete("p").ok());
  EXPECT_ERROR(TryGet("p").status(), Code::kNotFound, reason::kSessionNotFound);
  for (const auto& child : forked->sessions()) {
    const std::string id = child.name().substr(child.name().find_last_of('/') + 1);
    Say(id, "children outlive their parent", 3);
    ASSERT_TRUE(Delete(id).ok());
  }
  EXPECT_EQ(store->store->Stats()->records, 0);
  EXPECT_EQ(store->store->Stats()->chunks, 0);
}

TEST_F(SessionsTest, RewindToSnapshotAndPosition) {
  Start();
  Create("s");
  const auto first = Say("s", "first words", 5);
  const int64_t middle = first.final.position_tokens();
  const auto second = Say("s", "second words", 5);
  const auto third = Say("s", "third words", 5);

  auto back = RewindTo("s", "v1");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->recomputed_tokens(), 0);
  EXPECT_EQ(back->session().version(), 4);
  EXPECT_EQ(back->session().position_tokens(), middle);
  EXPECT_EQ(Say("s", "second words", 5).tokens, second.tokens);
  // Versions 2 and 3 now lie on another branch; version 5 took their place.
  const auto other = Say("s", "something else entirely", 5);

  const int64_t target = second.final.position_tokens() + 2;
  auto replay = RewindTo("s", target);
  ASSERT_TRUE(replay.ok()) << replay.status();
  EXPECT_EQ(replay->session().position_tokens(), target);
  EXPECT_GT(replay->recomputed_tokens(), 0);
  EXPECT_LE(replay->recomputed_tokens(), 2);
  // Undone.
  ASSERT_TRUE(RewindTo("s", "before-rewind").ok());
  EXPECT_EQ(Get("s").position_tokens(), other.final.position_tokens());

  // A replayed position equals one that was reached directly.
  ASSERT_TRUE(RewindTo("s", middle - 3).ok());
  Start();
  const auto replayed = Say("s", "", 3);
  EXPECT_EQ(replayed.tokens,
            std::vector<int32_t>(first.tokens.begin() + 2, first.tokens.begin() + 5));

  // All the way back.
  ASSERT_TRUE(RewindTo("s", 0).ok());
  EXPECT_EQ(Say("s", "first words", 5).tokens, first.tokens);

  EXPECT_ERROR(RewindTo("s", 1 << 20).status(), Code::kOutOfRange, reason::kPositionOutOfRange);
  EXPECT_ERROR(RewindTo("s", -1).status(), Code::kInvalidArgument, reason::kFieldOutOfRange);
  EXPECT_ERROR(RewindTo("s", "v99").status(), Code::kNotFound, reason::kSnapshotNotFound);
  CallContext context;
  v1::RewindSessionRequest request;
  request.set_name(Name("s"));
  EXPECT_ERROR(core->RewindSession(context, request).status(), Code::kInvalidArgument,
               reason::kFieldRequired);
  Create("none", [](v1::Session& s) { s.set_transcript(v1::Session::NONE); });
  Say("none", "words", 3);
  EXPECT_ERROR(RewindTo("none", 1).status(), Code::kFailedPrecondition,
               reason::kPositionNotRestorable);
  EXPECT_TRUE(RewindTo("none", "v1").ok());
}

TEST_F(SessionsTest, AsyncSessionsDoNotWaitForTheDisk) {
  Start();
  const auto async = [](v1::Session& s) { s.set_durability(v1::Session::ASYNC); };
  Create("s");
  EXPECT_EQ(Create("a", async).durability(), v1::Session::ASYNC);
  EXPECT_EQ(Get("s").durability(), v1::Session::SYNC);
  // What `change` commits: {waited for, not waited for}.
  const auto commits = [&](const std::function<void()>& change) {
    const int synced = store->synced, unsynced = store->unsynced;
    change();
    return std::pair(store->synced - synced, store->unsynced - unsynced);
  };
  const std::pair waits(1, 0), goes_on(0, 1);
  EXPECT_EQ(commits([&] { Say("s", "words", 3); }), waits);
  EXPECT_EQ(commits([&] { Say("a", "words", 3); }), goes_on);
  EXPECT_EQ(commits([&] { ASSERT_TRUE(RewindTo("a", 1).ok()); }), goes_on);
  EXPECT_EQ(commits([&] { ASSERT_TRUE(Delete("a").ok()); }), waits);
  CallContext context;
  v1::UndeleteSessionRequest undelete;
  undelete.set_name(Name("a"));
  ASSERT_TRUE(core->UndeleteSession(context, undelete).ok());
  v1::ForkSessionRequest fork;
  fork.set_name(Name("a"));
  fork.add_session_ids("child");
  ASSERT_TRUE(core->ForkSession(context, fork).ok());
  EXPECT_EQ(Get("child").durability(), v1::Session::ASYNC);
  EXPECT_EQ(commits([&] { Say("child", "words", 3); }), goes_on);

  v1::CreateSessionRequest create;
  create.set_parent("tenants/default");
  create.mutable_session()->set_durability(static_cast<v1::Session::Durability>(9));
  EXPECT_THAT(BadFields(core->CreateSession(context, create).status()),
              ElementsAre("session.durability"));
}

TEST_F(SessionsTest, DeleteUndelete) {
  Start();
  Create("s");
  const auto turn = Say("s", "abc", 3);
  ASSERT_TRUE(Delete("s").ok());
  EXPECT_EQ(Get("s").state(), v1::Session::DELETED);
  EXPECT_EQ(List()->sessions_size(), 0);
  EXPECT_EQ(List(0, "", "", true)->sessions_size(), 1);
  EXPECT_ERROR(TryGenerate(Request("s", "more", 1)), Code::kFailedPrecondition,
               reason::kSessionDeleted);
  EXPECT_ERROR(Delete("s").status(), Code::kFailedPrecondition, reason::kSessionDeleted);
  CallContext context;
  v1::UndeleteSessionRequest undelete;
  undelete.set_name(Name("s"));
  ASSERT_TRUE(core->UndeleteSession(context, undelete).ok());
  EXPECT_EQ(Get("s").state(), v1::Session::ACTIVE);
  EXPECT_EQ(Say("s", "", 2).started.version(), turn.final.version());
}

TEST_F(SessionsTest, PurgeLeavesNothingAndFreesTheId) {
  std::string folder = (std::filesystem::temp_directory_path() / "mneme-purge-XXXXXX").string();
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  for (const bool on_disk : {false, true}) {
    SCOPED_TRACE(on_disk);
    core.reset();
    store = std::make_shared<TestStore::Shared>();
    if (on_disk) store->store = *memstore::OpenRocksDbStore({.path = folder});
    Start();
    const auto purge = [&](const std::string& id) {
      CallContext context;
      v1::DeleteSessionRequest request;
      request.set_name(Name(id));
      request.set_purge(true);
      return core->DeleteSession(context, request);
    };
    const std::string uid = Create("s").uid();
    Say("s", "Something to forget", 5);
    const auto child = Fork(Name("s"), 1, {"child"});
    const auto purged = purge("s");
    ASSERT_TRUE(purged.ok()) << purged.status();
    EXPECT_EQ(purged->state(), v1::Session::DELETED);
    EXPECT_TRUE(purged->has_purge_time());
    EXPECT_ERROR(TryGet("s").status(), Code::kNotFound, reason::kSessionNotFound);
    EXPECT_ERROR(purge("s").status(), Code::kNotFound, reason::kSessionNotFound);
    EXPECT_EQ(List(0, "", "", true)->sessions_size(), 1);
    EXPECT_NE(Create("s").uid(), uid);
    EXPECT_EQ(Get("s").position_tokens(), 0);

    // Of one that was deleted before, whose id is taken for a day otherwise.
    Say("s", "More to forget", 5);
    ASSERT_TRUE(Delete("s").ok());
    EXPECT_EQ(Get("s").state(), v1::Session::DELETED);
    ASSERT_TRUE(purge("s").ok());
    CallContext context;
    v1::UndeleteSessionRequest undelete;
    undelete.set_name(Name("s"));
    EXPECT_ERROR(core->UndeleteSession(context, undelete).status(), Code::kNotFound,
                 reason::kSessionNotFound);
    EXPECT_EQ(Say("child", "", 3).tokens.size(), 3u);
    ASSERT_TRUE(purge("child").ok());
    EXPECT_EQ(store->store->Stats()->records, 0);
    EXPECT_EQ(store->store->Stats()->chunks, 0);
  }
  core.reset();
  store.reset();
  std::filesystem::remove_all(folder);
}

TEST_F(SessionsTest, PurgeWaitsForNoTurnUnlessForced) {
  config.limits.max_unsent_tokens = 1;  // the turn stands while its reader does
  Start();
  Create("s");
  CollectingSink sink;
  sink.on_event = [&](const v1::GenerateResponse& event) {
    if (!event.has_delta()) return true;
    CallContext context;
    v1::DeleteSessionRequest request;
    request.set_name(Name("s"));
    request.set_purge(true);
    EXPECT_ERROR(core->DeleteSession(context, request).status(), Code::kAborted,
                 reason::kSessionBusy);
    return true;
  };
  ASSERT_TRUE(Generate(Request("s", "abc", 3), sink).ok());
  EXPECT_TRUE(sink.has_final);
  EXPECT_EQ(Get("s").state(), v1::Session::ACTIVE);
}

TEST_F(SessionsTest, ExpiresAndIsPurged) {
  config.sessions.undelete_window_ms = 400;
  Start();
  const auto soon = [](v1::Session& s) { s.mutable_ttl()->set_nanos(50'000'000); };
  Create("s", soon);
  Create("stays");
  std::this_thread::sleep_for(std::chrono::milliseconds(60));
  EXPECT_EQ(Get("s").state(), v1::Session::DELETED);  // swept or not
  EXPECT_ERROR(TryGenerate(Request("s", "more", 1)), Code::kFailedPrecondition,
               reason::kSessionDeleted);
  for (int i = 0; i < 200 && store->store->Stats()->records > 1; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_EQ(store->store->Stats()->records, 1);
  EXPECT_ERROR(TryGet("s").status(), Code::kNotFound, reason::kSessionNotFound);
  Create("s");
}

TEST_F(SessionsTest, DamageIsNoticedAndRepaired) {
  Start();
  Create("s");
  const auto first = Say("s", "abc", 4);
  Say("s", "more", 4);
  Start();
  store->corrupt_chunks = true;
  EXPECT_ERROR(TryGenerate(Request("s", "x", 2)), Code::kDataLoss, reason::kStateCorrupt);
  EXPECT_EQ(Get("s").state(), v1::Session::DAMAGED);
  EXPECT_ERROR(TryGenerate(Request("s", "x", 2)), Code::kFailedPrecondition,
               reason::kSessionDamaged);
  EXPECT_ERROR(RewindTo("s", "v1").status(), Code::kDataLoss, reason::kStateCorrupt);
  store->corrupt_chunks = false;
  ASSERT_TRUE(RewindTo("s", "v1").ok());
  EXPECT_EQ(Get("s").state(), v1::Session::ACTIVE);
  EXPECT_EQ(Get("s").position_tokens(), first.final.position_tokens());
  Say("s", "", 2);
}

TEST_F(SessionsTest, StoreDown) {
  Start();
  Create("s");
  store->fault = [](const std::string&) { return absl::UnavailableError("x"); };
  EXPECT_ERROR(TryGet("s").status(), Code::kUnavailable, reason::kStoreUnavailable);
  EXPECT_ERROR(core->CheckStore(), Code::kUnavailable, reason::kStoreUnavailable);
  EXPECT_ERROR(TryGenerate(Request("s", "x", 2)), Code::kUnavailable, reason::kStoreUnavailable);
  EXPECT_TRUE(TryGenerate(Request("", "stateless goes on", 2)).ok());
  store->fault = nullptr;
}

TEST_F(SessionsTest, GenerateReportsEveryBadField) {
  Start();
  Create("s");
  auto request = Request("s", "x", 1);
  auto& sampling = *request.mutable_sampling();
  sampling.set_temperature(NAN);
  sampling.set_top_p(1.5);
  sampling.set_top_k(-1);
  sampling.set_min_p(2);
  sampling.set_repetition_penalty(0);
  sampling.set_presence_penalty(3);
  sampling.set_frequency_penalty(-3);
  sampling.set_penalty_window_tokens(9000);
  (*sampling.mutable_logit_bias())[1 << 20] = 1;
  (*sampling.mutable_logit_bias())[3] = 101;
  request.add_stop_sequences("");
  request.add_stop_sequences(std::string(257, 'x'));
  request.add_stop_token_ids(-1);
  request.set_max_output_tokens(100000);
  request.mutable_max_duration()->set_seconds(-1);
  request.set_logprobs(21);
  request.set_expected_version(-1);
  request.mutable_token_ids()->add_ids(1 << 20);
  const absl::Status status = TryGenerate(request);
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_THAT(BadFields(status),
              UnorderedElementsAre(
                  "token_ids.ids[0]", "sampling.temperature", "sampling.top_p", "sampling.top_k",
                  "sampling.min_p", "sampling.repetition_penalty", "sampling.presence_penalty",
                  "sampling.frequency_penalty", "sampling.penalty_window_tokens",
                  "sampling.logit_bias[1048576]", "sampling.logit_bias[3]", "stop_sequences[0]",
                  "stop_sequences[1]", "stop_token_ids[0]", "max_output_tokens", "max_duration",
                  "logprobs", "expected_version"));
  request = Request("s", "", 1);
  EXPECT_ERROR(TryGenerate(request), Code::kInvalidArgument, reason::kFieldRequired);
  EXPECT_ERROR(TryGenerate(Request("", "", 1)), Code::kInvalidArgument, reason::kFieldRequired);
  EXPECT_ERROR(TryGenerate(Request("", "a\xFF", 1)), Code::kInvalidArgument, reason::kFieldInvalid);
  EXPECT_ERROR(TryGenerate(Request("nobody", "x", 1)), Code::kNotFound, reason::kSessionNotFound);
  request = Request("s", "x", 1);
  request.set_session("tenants/other/sessions/s");
  EXPECT_ERROR(TryGenerate(request), Code::kPermissionDenied, reason::kAccessDenied);
  request.set_session("No Session");
  EXPECT_THAT(BadFields(TryGenerate(request)), ElementsAre("session"));
  request = Request("s", "x", 1);
  request.set_expected_version(7);
  const absl::Status regressed = TryGenerate(request);
  EXPECT_ERROR(regressed, Code::kDataLoss, reason::kVersionRegressed);
  EXPECT_EQ(Metadata(regressed, "current_version"), "0");
  request = Request("", "x", 1);
  request.set_model("models/none");
  EXPECT_ERROR(TryGenerate(request), Code::kNotFound, reason::kModelNotFound);
  CallContext context;
  v1::CancelGenerationRequest cancel;
  cancel.set_name("tenants/default/generations/gone");
  EXPECT_ERROR(core->CancelGeneration(context, cancel).status(), Code::kNotFound,
               reason::kGenerationNotFound);
}

TEST_F(SessionsTest, InputTooLong) {
  config.limits.max_input_tokens = 5;
  Start();
  auto request = Request("", "", 1);
  for (int i = 0; i < 6; ++i) request.mutable_token_ids()->add_ids(5);
  const absl::Status status = TryGenerate(request);
  EXPECT_ERROR(status, Code::kInvalidArgument, reason::kInputTooLong);
  EXPECT_EQ(Metadata(status, "input_tokens"), "6");
  EXPECT_EQ(Metadata(status, "max_input_tokens"), "5");
}

TEST_F(SessionsTest, AStateOfAnOlderFormatIsRefusedAndKept) {
  Start();
  Create("s");
  Say("s", "abc", 2);
  core.reset();
  Metrics metrics;
  SessionStore sessions(std::make_unique<TestStore>(store), 0, {}, metrics);
  const auto make_old = [](SessionRecord& record, SessionStore::Change&) {
    storage::Point& head = *record.data.mutable_head();
    auto manifest = engine::SnapshotManifest::Parse(head.manifest());
    manifest->format_version = 1;
    head.set_manifest(manifest->Serialize());
    return absl::OkStatus();
  };
  ASSERT_TRUE(sessions.Update({"default", "s"}, make_old).ok());
  const int64_t chunks = store->store->Stats()->chunks;
  Start();
  const absl::Status refused = TryGenerate(Request("s", "x", 1));
  EXPECT_ERROR(refused, Code::kFailedPrecondition, reason::kModelMismatch);
  EXPECT_EQ(Metadata(refused, "session_format"), "1");
  EXPECT_EQ(Metadata(refused, "server_format"), absl::StrCat(engine::kSnapshotFormat));
  EXPECT_EQ(Get("s").state(), v1::Session::ACTIVE);
  CallContext context;
  v1::UpdateSessionRequest update;
  update.mutable_session()->set_name(Name("s"));
  update.mutable_session()->set_display_name("still here");
  update.mutable_update_mask()->add_paths("display_name");
  ASSERT_TRUE(core->UpdateSession(context, update).ok());
  EXPECT_EQ(store->store->Stats()->chunks, chunks);
}

// What the session needs, what is there instead, and what to do.
TEST_F(SessionsTest, ModelGoneOrChanged) {
  const std::string original = config.models[0].path;
  const std::string other = std::string(MNEME_TINY_DIR) + "/tiny-llama-f32.gguf";
  Start();
  Create("s");
  Say("s", "abc", 2);
  const auto refused = [&](const char* expected_reason) {
    Start();
    const absl::Status status = TryGenerate(Request("s", "x", 1));
    EXPECT_ERROR(status, Code::kFailedPrecondition, expected_reason);
    return status;
  };
  const auto says = [](const absl::Status& status, std::vector<std::string> parts) {
    for (const std::string& part : parts) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(part));
    }
  };
  config.models = {{"tiny", other}, {"kept", original}};
  absl::Status status = refused(reason::kModelMismatch);
  says(status, {"models/tiny", "Q8_0", "F32", "models/kept is the session's", "--model tiny="});
  EXPECT_EQ(Metadata(status, "same_checkpoint"), "models/kept");
  EXPECT_THAT(Metadata(status, "session_checkpoint"), HasSubstr("(llama, Q8_0)"));
  EXPECT_THAT(Metadata(status, "model_checkpoint"), HasSubstr("(llama, F32)"));
  EXPECT_NE(Metadata(status, "session_fingerprint"), Metadata(status, "model_fingerprint"));

  config.models = {{"renamed", original}, {"other", other}};
  status = refused(reason::kModelNotLoaded);
  says(status, {"made with models/tiny", "Q8_0", "has models/other, models/renamed",
                "models/renamed is the session's checkpoint", "--model tiny="});
  EXPECT_EQ(Metadata(status, "session_model"), "models/tiny");
  EXPECT_EQ(Metadata(status, "loaded_models"), "models/other, models/renamed");
  config.models = {{"other", other}};
  EXPECT_EQ(Metadata(refused(reason::kModelNotLoaded), "same_checkpoint"), "");

  config.models = {{"tiny", original}};
  const Config::Engine engine = config.engine;
  struct Changed {
    std::string setting, session, server;
    std::function<void(Config::Engine&)> change;
  };
  for (const auto& [setting, session, server, change] :
       std::vector<Changed>{{"window_tokens", "0", "48", [](auto& e) { e.window_tokens = 48; }},
                            {"sink_tokens", "4", "2", [](auto& e) { e.sink_tokens = 2; }},
                            {"overflow", "slide", "error", [](auto& e) { e.overflow = "error"; }},
                            {"kv_dtype", "f16", "f32", [](auto& e) { e.kv_dtype = "f32"; }}}) {
    config.engine = engine;
    change(config.engine);
    status = refused(reason::kModelMismatch);
    says(status, {absl::StrCat("engine.", setting, " ", session, " (here ", server, ")")});
    EXPECT_EQ(Metadata(status, absl::StrCat("session_", setting)), session);
    EXPECT_EQ(Metadata(status, absl::StrCat("server_", setting)), server);
  }
  EXPECT_EQ(Get("s").state(), v1::Session::ACTIVE);  // not damaged
  config.engine = engine;
  Start();
  EXPECT_EQ(Say("s", "and on", 2).tokens.size(), 2u);
}

// Points of servers that did not keep their settings: at least what is here is told.
TEST_F(SessionsTest, AnUnknownLayoutTellsThePresentSettings) {
  Start();
  Create("s");
  Say("s", "abc", 2);
  core.reset();
  const memstore::Key key{"default", "sessions/s"};
  auto record = store->store->Get(key);
  storage::StoredSession data;
  ASSERT_TRUE(record.ok() && data.ParseFromString(record->value));
  data.mutable_head()->clear_settings();
  memstore::Transaction transaction;
  transaction.puts.push_back({.key = key,
                              .expected_version = record->version,
                              .value = data.SerializeAsString(),
                              .chunks = record->chunks});
  ASSERT_TRUE(store->store->Commit(transaction).ok());
  config.engine.window_tokens = 48;
  Start();
  const absl::Status status = TryGenerate(Request("s", "x", 1));
  EXPECT_ERROR(status, Code::kFailedPrecondition, reason::kModelMismatch);
  EXPECT_EQ(Metadata(status, "server_window_tokens"), "48");
  EXPECT_THAT(std::string(status.message()), HasSubstr("engine.window_tokens 48"));
}

TEST_F(SessionsTest, TokenizeDetokenize) {
  Start();
  CallContext context;
  v1::TokenizeRequest tokenize;
  tokenize.set_text("hello world");
  auto tokens = core->Tokenize(context, tokenize);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(tokens->pieces_size(), tokens->token_ids_size());
  v1::DetokenizeRequest detokenize;
  *detokenize.mutable_token_ids() = tokens->token_ids();
  EXPECT_EQ(core->Detokenize(context, detokenize)->text(), "hello world");
  detokenize.add_token_ids(-1);
  EXPECT_ERROR(core->Detokenize(context, detokenize).status(), Code::kInvalidArgument,
               reason::kFieldInvalid);
  EXPECT_ERROR(core->Tokenize(context, {}).status(), Code::kInvalidArgument,
               reason::kFieldRequired);
  EXPECT_ERROR(core->Score(context, {}).status(), Code::kInvalidArgument, reason::kFieldRequired);
}

}  // namespace
}  // namespace mneme::server
