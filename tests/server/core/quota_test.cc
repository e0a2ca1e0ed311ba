// What a tenant may keep, and how tenants share a server: each call with a key of its own.
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

#include "server/core/errors.h"
#include "tests/server/core/core_test_base.h"

namespace mneme::server {
namespace {

class FileSink : public ExportSink {
 public:
  bool Send(v1::ExportSessionResponse response) override {
    file += response.data();
    return true;
  }
  std::string file;
};

class QuotaTest : public CoreTest {
 protected:
  // A call of `tenant`.
  struct Call : CallContext {
    Call(const std::string& name, TenantLimits limits, Role role = Role::kUser) {
      caller = std::make_shared<Caller>(
          Caller{.id = "k", .tenant = name, .limits = limits, .role = role});
      tenant = name;
    }
  };
  Call Of(const std::string& tenant) {
    return Call(tenant, tenant == "acme" ? acme_ : TenantLimits());
  }

  static std::string NameIn(const std::string& tenant, const std::string& id) {
    return absl::StrCat("tenants/", tenant, "/sessions/", id);
  }
  absl::Status CreateIn(const std::string& tenant, const std::string& id) {
    Call call = Of(tenant);
    return CreateBy(call, *core, tenant, id);
  }
  static absl::Status CreateBy(CallContext& call, ServerCore& server, const std::string& tenant,
                               const std::string& id) {
    v1::CreateSessionRequest request;
    request.set_parent("tenants/" + tenant);
    request.set_session_id(id);
    return server.CreateSession(call, request).status();
  }
  absl::StatusOr<v1::Session> GetIn(const std::string& tenant, const std::string& id) {
    Call call = Of(tenant);
    v1::GetSessionRequest request;
    request.set_name(NameIn(tenant, id));
    return core->GetSession(call, request);
  }
  absl::Status DeleteIn(const std::string& tenant, const std::string& id, bool purge) {
    Call call = Of(tenant);
    v1::DeleteSessionRequest request;
    request.set_name(NameIn(tenant, id));
    request.set_purge(purge);
    return core->DeleteSession(call, request).status();
  }
  absl::Status ForkIn(const std::string& tenant, const std::string& id, int count) {
    Call call = Of(tenant);
    v1::ForkSessionRequest request;
    request.set_name(NameIn(tenant, id));
    request.set_count(count);
    return core->ForkSession(call, request).status();
  }
  absl::Status SayIn(const std::string& tenant, const std::string& id, int max = 4) {
    Call call = Of(tenant);
    CollectingSink sink;
    auto request = Request("", "Once upon a time", max);
    request.set_session(NameIn(tenant, id));
    return core->Generate(call, request, sink);
  }

  TenantLimits acme_;
};

TEST_F(QuotaTest, Sessions) {
  acme_.sessions = 3;
  Start();
  for (const char* id : {"a", "b"}) ASSERT_TRUE(CreateIn("acme", id).ok());
  EXPECT_EQ(ReasonOf(ForkIn("acme", "a", 2)), reason::kQuotaSessions);
  ASSERT_TRUE(ForkIn("acme", "a", 1).ok());
  const absl::Status full = CreateIn("acme", "c");
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(full), reason::kQuotaSessions);
  EXPECT_EQ(Metadata(full, "limit"), "3");
  EXPECT_EQ(Metadata(full, "used"), "3");
  ASSERT_TRUE(CreateIn("other", "c").ok());
  // It still works, and still counts what is deleted but not gone.
  EXPECT_TRUE(SayIn("acme", "a").ok());
  ASSERT_TRUE(DeleteIn("acme", "b", /*purge=*/false).ok());
  EXPECT_EQ(ReasonOf(CreateIn("acme", "c")), reason::kQuotaSessions);
  {
    Call call = Of("acme");
    v1::UndeleteSessionRequest undelete;
    undelete.set_name(NameIn("acme", "b"));
    EXPECT_TRUE(core->UndeleteSession(call, undelete).ok());  // adds nothing
  }
  Start();
  EXPECT_EQ(ReasonOf(CreateIn("acme", "c")), reason::kQuotaSessions);
  ASSERT_TRUE(DeleteIn("acme", "b", /*purge=*/true).ok());
  ASSERT_TRUE(CreateIn("acme", "c").ok());
  // An admin of another tenant is not held to it; nor is anybody where there are no keys.
  Call admin("other", TenantLimits(), Role::kAdmin);
  admin.tenant = "acme";
  EXPECT_TRUE(CreateBy(admin, *core, "acme", "d").ok());
  CallContext anybody;
  anybody.tenant = "acme";
  EXPECT_TRUE(CreateBy(anybody, *core, "acme", "e").ok());
  acme_.sessions = 0;
  EXPECT_TRUE(CreateIn("acme", "f").ok());
}

TEST_F(QuotaTest, CallsAtATimeDoNotExceedItTogether) {
  acme_.sessions = 5;
  Start();
  std::vector<std::thread> threads;
  std::atomic<int> made{0};
  for (int i = 0; i < 12; ++i) {
    threads.emplace_back([&, i] { made += CreateIn("acme", absl::StrCat("s", i)).ok(); });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_GT(made, 0);
  EXPECT_LE(made, 5);
  for (int i = made; i < 5; ++i) EXPECT_TRUE(CreateIn("acme", absl::StrCat("more", i)).ok());
  EXPECT_EQ(ReasonOf(CreateIn("acme", "last")), reason::kQuotaSessions);
}

TEST_F(QuotaTest, BytesAreAskedForBeforeATurnNotAfterIt) {
  Start();
  for (const char* id : {"a", "b"}) ASSERT_TRUE(CreateIn("acme", id).ok());
  ASSERT_TRUE(SayIn("acme", "a").ok());
  const int64_t one = GetIn("acme", "a")->stored_bytes();
  // There is room for a little, so this turn begins, and takes all it needs.
  acme_.bytes = one + 1;
  ASSERT_TRUE(SayIn("acme", "b").ok());
  EXPECT_GT(GetIn("acme", "a")->stored_bytes() + GetIn("acme", "b")->stored_bytes(), acme_.bytes);
  const double read = Counter("mneme_input_tokens_total");
  const absl::Status full = SayIn("acme", "a");
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(full), reason::kQuotaBytes);
  EXPECT_EQ(Metadata(full, "limit"), absl::StrCat(acme_.bytes));
  EXPECT_EQ(Counter("mneme_input_tokens_total"), read);
  EXPECT_EQ(GetIn("acme", "a")->version(), 1);
  // So does all else that would add some.
  EXPECT_EQ(ReasonOf(ForkIn("acme", "a", 1)), reason::kQuotaBytes);
  {
    Call call = Of("acme");
    v1::CreateSnapshotRequest request;
    request.set_parent(NameIn("acme", "a"));
    EXPECT_EQ(ReasonOf(core->CreateSnapshot(call, request).status()), reason::kQuotaBytes);
    v1::RewindSessionRequest rewind;
    rewind.set_name(NameIn("acme", "a"));
    rewind.set_position_tokens(1);
    EXPECT_EQ(ReasonOf(core->RewindSession(call, rewind).status()), reason::kQuotaBytes);
    v1::IngestRequest::Start start;
    start.set_session(NameIn("acme", "a"));
    start.set_ingest_id("i");
    EXPECT_EQ(ReasonOf(core->StartIngest(call, start).status()), reason::kQuotaBytes);
  }
  // An empty session, and a turn without one, take no bytes.
  EXPECT_TRUE(CreateIn("acme", "c").ok());
  {
    Call call = Of("acme");
    CollectingSink sink;
    EXPECT_TRUE(core->Generate(call, Request("", "x", 2), sink).ok());
  }
  // A restart forgets nothing; purging is the way out.
  Start();
  EXPECT_EQ(ReasonOf(SayIn("acme", "a")), reason::kQuotaBytes);
  ASSERT_TRUE(DeleteIn("acme", "b", /*purge=*/false).ok());
  EXPECT_EQ(ReasonOf(SayIn("acme", "a")), reason::kQuotaBytes);
  ASSERT_TRUE(DeleteIn("acme", "b", /*purge=*/true).ok());
  EXPECT_TRUE(SayIn("acme", "a").ok());
}

TEST_F(QuotaTest, AnImportIsRefusedByItsHeader) {
  Start();
  ASSERT_TRUE(CreateIn("acme", "a").ok());
  ASSERT_TRUE(SayIn("acme", "a").ok());
  Call call = Of("acme");
  FileSink sink;
  v1::ExportSessionRequest request;
  request.set_name(NameIn("acme", "a"));
  ASSERT_TRUE(core->ExportSession(call, request, sink).ok());
  const int64_t one = GetIn("acme", "a")->stored_bytes();
  v1::ImportSessionRequest::Start start;
  start.set_parent("tenants/acme");
  for (const auto& [sessions, bytes, reason] :
       {std::tuple(int64_t{1}, 2 * one, reason::kQuotaSessions),
        std::tuple(int64_t{2}, 2 * one - 100 - one / 2, reason::kQuotaBytes),
        std::tuple(int64_t{2}, 2 * one + 4096, "")}) {
    acme_.sessions = sessions;
    acme_.bytes = bytes;
    Call importing = Of("acme");
    auto import = core->StartImport(importing, start);
    absl::Status status = import.status();
    if (status.ok()) status = (*import)->Write(sink.file);
    EXPECT_EQ(ReasonOf(status), reason);
    if (!status.ok()) continue;
    const auto imported = (*import)->Finish();
    EXPECT_TRUE(imported.ok()) << imported.status();
  }
}

TEST_F(QuotaTest, AnIngestStopsBetweenTwoCommitsAndGoesOnLater) {
  Start();
  for (const char* id : {"a", "b"}) ASSERT_TRUE(CreateIn("acme", id).ok());
  ASSERT_TRUE(SayIn("acme", "b").ok());
  const int64_t one = GetIn("acme", "b")->stored_bytes();
  acme_.bytes = one + 1;
  v1::IngestRequest::Start start;
  start.set_session(NameIn("acme", "a"));
  start.set_ingest_id("i");
  start.set_commit_every_tokens(600);
  std::string text;
  for (int i = 0; text.size() < 12'000; ++i) absl::StrAppend(&text, "word", i, " ");
  int64_t durable = 0;
  {
    Call call = Of("acme");
    auto ingest = core->StartIngest(call, start);
    ASSERT_TRUE(ingest.ok()) << ingest.status();
    v1::IngestRequest::Data data;
    data.set_data(text);
    const absl::Status status = (*ingest)->Write(data);
    EXPECT_EQ(ReasonOf(status), reason::kQuotaBytes) << status;
  }
  EXPECT_EQ(GetIn("acme", "a")->version(), 1);  // what was committed stays
  ASSERT_TRUE(DeleteIn("acme", "b", /*purge=*/true).ok());
  acme_.bytes = 1 << 30;
  Call call = Of("acme");
  auto ingest = core->StartIngest(call, start);
  ASSERT_TRUE(ingest.ok()) << ingest.status();
  durable = (*ingest)->progress().durable_bytes();
  EXPECT_GT(durable, 0);
  v1::IngestRequest::Data data;
  data.set_offset_bytes(durable);
  data.set_data(text.substr(durable));
  data.set_last(true);
  EXPECT_TRUE((*ingest)->Write(data).ok());
  EXPECT_TRUE((*ingest)->progress().done());
}

// Each looks at what all of them have stored, at the latest before it refuses.
TEST_F(QuotaTest, ServersOfOneStoreCountTogether) {
  store->shared = true;
  acme_.sessions = 3;
  Start();
  auto other = ServerCore::Create(config, std::make_unique<TestStore>(store));
  ASSERT_TRUE(other.ok()) << other.status();
  const auto create = [&](ServerCore& server, const char* id) {
    Call call = Of("acme");
    return CreateBy(call, server, "acme", id);
  };
  ASSERT_TRUE(create(*core, "a").ok());
  ASSERT_TRUE(create(**other, "b").ok());
  ASSERT_TRUE(create(*core, "c").ok());
  absl::SleepFor(absl::Milliseconds(1100));
  EXPECT_EQ(ReasonOf(create(**other, "d")), reason::kQuotaSessions);
  // What was purged elsewhere is room at once.
  ASSERT_TRUE(DeleteIn("acme", "a", /*purge=*/true).ok());
  EXPECT_TRUE(create(**other, "d").ok());
  EXPECT_EQ(ReasonOf(create(**other, "e")), reason::kQuotaSessions);
}

// Fifty turns of one tenant wait for the only slot; the single one of another comes next.
TEST_F(QuotaTest, ACrowdDelaysAnotherTenantByOneTurn) {
  config.limits.max_running_streams = 1;
  config.limits.max_unsent_tokens = 1;
  acme_.running = 0;
  Start();
  std::mutex mutex;
  std::vector<std::string> order;
  std::vector<std::thread> turns;
  std::atomic<bool> go{false};
  const auto turn = [&](const std::string& tenant, bool first) {
    Call call = Of(tenant);
    CollectingSink sink;
    sink.on_event = [&](const v1::GenerateResponse& event) {
      if (event.has_started()) {
        std::lock_guard lock(mutex);
        order.push_back(tenant);
      }
      while (first && !go) std::this_thread::yield();
      return true;
    };
    EXPECT_TRUE(core->Generate(call, Request("", "Once upon a time", first ? 8 : 4), sink).ok());
  };
  const auto await_waiting = [&](double n) {
    while (Gauge("mneme_requests_waiting") != n) std::this_thread::yield();
  };
  // Stands at its first event, as what it says is not read.
  turns.emplace_back([&] { turn("acme", true); });
  while (Gauge("mneme_requests_running") != 1) std::this_thread::yield();
  for (int i = 0; i < 50; ++i) turns.emplace_back([&] { turn("acme", false); });
  await_waiting(50);
  turns.emplace_back([&] { turn("other", false); });
  await_waiting(51);
  go = true;
  for (auto& thread : turns) thread.join();
  ASSERT_EQ(order.size(), 52u);
  const auto at = std::find(order.begin(), order.end(), "other") - order.begin();
  EXPECT_GT(at, 0);
  EXPECT_LE(at, 2);
}

}  // namespace
}  // namespace mneme::server
