// What lists and starts cost the store: as many questions for a thousand sessions as for one. And
// the figures that make that possible: they stay right.
#include <map>
#include <string>
#include <vector>

#include "server/core/session_store.h"
#include "server/core/stored_bytes.h"
#include "tests/server/core/core_test_base.h"

namespace mneme::server {
namespace {

class ListCostTest : public CoreTest {
 protected:
  // How often the store is asked for what, but for what the sweeper asks.
  std::map<std::string, int> CountCalls(const std::function<void()>& what) {
    auto calls = std::make_shared<test::Guarded<std::map<std::string, int>>>();
    store->fault = [calls](const std::string& op) {
      calls->Update([&](auto& counts) { return ++counts[op]; });
      return absl::OkStatus();
    };
    what();
    store->fault = nullptr;
    return calls->Get();
  }
  std::map<std::string, int> CallsOfPage(int page_size, const std::string& filter = "") {
    return CountCalls([&] {
      CallContext context;
      v1::ListSessionsRequest request;
      request.set_parent("tenants/default");
      request.set_page_size(page_size);
      request.set_filter(filter);
      auto listed = core->ListSessions(context, request);
      ASSERT_TRUE(listed.ok()) << listed.status();
      ASSERT_EQ(listed->sessions_size(), page_size);
      for (const v1::Session& session : listed->sessions()) {
        EXPECT_GT(session.stored_bytes(), 0) << session.name();
      }
    });
  }
  void Fork(const std::string& id, int children) {
    CallContext context;
    v1::ForkSessionRequest request;
    request.set_name(id);
    request.set_count(children);
    ASSERT_TRUE(core->ForkSession(context, request).ok());
  }

  storage::StoredSession Stored(const std::string& id) {
    storage::StoredSession data;
    const auto record = store->store->Get({"default", "sessions/" + id});
    EXPECT_TRUE(record.ok() && data.ParseFromString(record->value)) << record.status();
    return data;
  }
  // As the store's records have it, whatever the session's says.
  int64_t Counted(const std::string& id) {
    storage::StoredSession data = Stored(id);
    std::map<std::string, storage::Point> points;
    const auto listed = store->store->List({.realm = "default", .prefix = "snapshots/" + id + "/"});
    for (const storage::SnapshotRef& ref : data.snapshots()) {
      for (const auto& item : *listed) {
        storage::StoredSnapshot snapshot;
        EXPECT_TRUE(snapshot.ParseFromString(item.record.value));
        const std::string key = item.name.substr(item.name.rfind('/') + 1);
        // Those of versions have zeros in their keys.
        const bool same = ref.automatic()
                              ? key[0] == 'v' && std::stoll(key.substr(1)) == ref.version()
                              : key == ref.id();
        if (same) points[ref.id()] = snapshot.point();
      }
    }
    EXPECT_EQ(points.size(), static_cast<size_t>(data.snapshots_size()));
    CountStoredBytes(data, points);
    return data.stored_bytes();
  }
  // A server of an earlier version wrote it.
  void Forget(const std::string& id) {
    const memstore::Key key{"default", "sessions/" + id};
    const auto record = store->store->Get(key);
    storage::StoredSession data = Stored(id);
    data.clear_stored_bytes();
    for (auto& ref : *data.mutable_snapshots()) ref.clear_bytes();
    ASSERT_TRUE(store->store
                    ->Commit({.puts = {{key, record->version, data.SerializeAsString(),
                                        record->chunks, record->expire_time}}})
                    .ok());
  }
};

TEST_F(ListCostTest, APageCostsTheSameWhateverItsLength) {
  store->shared = true;
  config.sessions.sweep_interval_ms = 3600 * 1000;
  Start();
  Create("s");
  Say("s", "Once upon a time", 4);
  Say("s", " there was", 4);
  Fork("s", 60);
  for (const char* filter : {"", "state = ACTIVE"}) {
    const auto few = CallsOfPage(2, filter), many = CallsOfPage(50, filter);
    EXPECT_EQ(few, many);
    EXPECT_EQ(many, (std::map<std::string, int>{{"list", 1}, {"get_many", 1}}));
  }
  // Sessions that were not counted when they were written: their snapshots, all at once.
  for (int i = 0; i < 2; ++i) {
    CallContext context;
    v1::ListSessionsRequest request;
    request.set_parent("tenants/default");
    const auto listed = core->ListSessions(context, request);
    if (i == 0) {
      for (const v1::Session& session : listed->sessions()) {
        Forget(session.name().substr(session.name().rfind('/') + 1));
      }
      EXPECT_EQ(CallsOfPage(50), (std::map<std::string, int>{{"list", 1}, {"get_many", 2}}));
    }
    for (const v1::Session& session : listed->sessions()) {
      EXPECT_EQ(session.stored_bytes(),
                Counted(session.name().substr(session.name().rfind('/') + 1)));
    }
  }
}

TEST_F(ListCostTest, AStartAsksForFiguresAlone) {
  Start();
  Create("s");
  Say("s", "Once upon a time", 4);
  Fork("s", 40);
  const auto calls = CountCalls([&] { Start(); });
  EXPECT_EQ(calls, (std::map<std::string, int>{{"probe", 1}, {"totals", 1}}));
  EXPECT_EQ(core->metrics().sessions_stored(Metrics::Stored::kActive).Value(), 41);
}

// Of a shared store, each server's figure is that of all.
TEST_F(ListCostTest, TheGaugeCountsWhatOtherServersMake) {
  store->shared = true;
  Start();
  auto other = ServerCore::Create(config, std::make_unique<TestStore>(store));
  ASSERT_TRUE(other.ok()) << other.status();
  Create("a");
  Create("b");
  ASSERT_TRUE(Delete("b").ok());
  prometheus::Gauge& active = (*other)->metrics().sessions_stored(Metrics::Stored::kActive);
  prometheus::Gauge& deleted = (*other)->metrics().sessions_stored(Metrics::Stored::kDeleted);
  for (int i = 0; i < 500 && (active.Value() != 1 || deleted.Value() != 1); ++i) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  EXPECT_EQ(active.Value(), 1);
  EXPECT_EQ(deleted.Value(), 1);
}

TEST_F(ListCostTest, StoredBytesAreThoseOfTheStore) {
  Start();
  const auto check = [&](const std::string& id, const char* when) {
    EXPECT_EQ(Get(id).stored_bytes(), Counted(id)) << id << " after " << when;
    EXPECT_TRUE(Stored(id).has_stored_bytes());
  };
  // In the usual course nothing is read to keep the figure.
  const auto turn = [&](const std::string& id, int lists) {
    auto calls = CountCalls([&] { Say(id, " and then", 3); });
    EXPECT_EQ(calls["get_many"], lists) << id;
    check(id, "a turn");
  };
  const auto keep = [&](const std::string& id, const std::string& snapshot) {
    CallContext context;
    v1::CreateSnapshotRequest request;
    request.set_parent(id);
    request.set_snapshot_id(snapshot);
    ASSERT_TRUE(core->CreateSnapshot(context, request).ok());
    check(id, "a snapshot");
  };
  const auto rewind = [&](const std::string& id, int64_t position) {
    CallContext context;
    v1::RewindSessionRequest request;
    request.set_name(id);
    request.set_position_tokens(position);
    ASSERT_TRUE(core->RewindSession(context, request).ok());
    check(id, "a rewind");
  };
  Create("s", [](auto& session) { session.mutable_snapshot_policy()->set_max_count(3); });
  check("s", "its creation");
  for (int i = 0; i < 6; ++i) turn("s", 0);
  for (int i = 0; i < 40; ++i) Say("s", "", 1);  // the transcript's chunks are merged
  check("s", "many turns");
  const int64_t before = Get("s").stored_bytes();
  keep("s", "kept");
  turn("s", 0);
  turn("s", 0);
  turn("s", 0);  // "kept" is in the middle from here on
  rewind("s", 9);
  turn("s", 1);  // the last snapshot is not of the head
  turn("s", 1);  // nor is the oldest the one that goes
  EXPECT_GT(Get("s").stored_bytes(), before);
  {
    CallContext context;
    v1::DeleteSnapshotRequest request;
    request.set_name("s@kept");
    ASSERT_TRUE(core->DeleteSnapshot(context, request).ok());
    check("s", "a snapshot less");
  }
  Fork("s", 1);
  // Without snapshots of its own.
  Create("plain", [](auto& session) { session.mutable_snapshot_policy()->set_max_count(0); });
  for (int i = 0; i < 3; ++i) turn("plain", 0);
  keep("plain", "kept");
  turn("plain", 0);
  turn("plain", 1);
  // Of an earlier server: counted at the next change, and by whoever asks before.
  Create("old");
  turn("old", 0);
  turn("old", 0);
  Forget("old");
  EXPECT_EQ(Get("old").stored_bytes(), Counted("old"));
  EXPECT_FALSE(Stored("old").has_stored_bytes());
  turn("old", 1);
  turn("old", 0);
}

}  // namespace
}  // namespace mneme::server
