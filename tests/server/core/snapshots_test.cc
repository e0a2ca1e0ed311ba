// Snapshots that are asked for: they stay, whatever the policy drops, until they are deleted.
#include <thread>

#include "server/core/errors.h"
#include "tests/server/core/core_test_base.h"

namespace mneme::server {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::StartsWith;

class SnapshotsTest : public CoreTest {
 protected:
  void SetUp() override { Start(); }

  absl::StatusOr<v1::Snapshot> Keep(const std::string& session, const std::string& id,
                                    int64_t expected_version = 0) {
    CallContext context;
    v1::CreateSnapshotRequest request;
    request.set_parent(session);
    request.set_snapshot_id(id);
    request.set_expected_version(expected_version);
    return core->CreateSnapshot(context, request);
  }
  absl::StatusOr<v1::Snapshot> GetOne(const std::string& name) {
    CallContext context;
    v1::GetSnapshotRequest request;
    request.set_name(name);
    return core->GetSnapshot(context, request);
  }
  absl::StatusOr<v1::Snapshot> DeleteOne(const std::string& name) {
    CallContext context;
    v1::DeleteSnapshotRequest request;
    request.set_name(name);
    return core->DeleteSnapshot(context, request);
  }
  std::vector<std::string> Ids(const std::string& session) {
    std::vector<std::string> ids;
    for (const v1::Snapshot& snapshot : Snapshots(session)) {
      ids.push_back(snapshot.name().substr(snapshot.name().rfind('/') + 1));
    }
    return ids;
  }
  absl::StatusOr<v1::RewindSessionResponse> Rewind(const std::string& session,
                                                   const std::string& snapshot) {
    CallContext context;
    v1::RewindSessionRequest request;
    request.set_name(session);
    request.set_snapshot(snapshot);
    return core->RewindSession(context, request);
  }
};

TEST_F(SnapshotsTest, OneThatIsKeptOutlivesThePolicysOwn) {
  Create("s", [](auto& session) { session.mutable_snapshot_policy()->set_max_count(2); });
  ASSERT_TRUE(Keep("s", "empty").ok());
  Say("s", "Once upon a time", 6);
  auto kept = Keep("s", "good-point");
  ASSERT_TRUE(kept.ok()) << kept.status();
  EXPECT_EQ(kept->name(), Name("s") + "/snapshots/good-point");
  EXPECT_EQ(kept->version(), 1);
  EXPECT_EQ(kept->position_tokens(), Get("s").position_tokens());
  EXPECT_FALSE(kept->automatic());
  EXPECT_GT(kept->stored_bytes(), 0);
  const auto there = Say("s", " there was", 6).tokens;
  for (int i = 0; i < 3; ++i) Say("s", " more", 2);
  EXPECT_THAT(Ids("s"), ElementsAre("v5", "v4", "good-point", "empty"));
  auto got = GetOne("s@good-point");
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(got->DebugString(), kept->DebugString());

  // Also over a restart, and with no version in memory.
  Start();
  auto rewound = Rewind("s", "good-point");
  ASSERT_TRUE(rewound.ok()) << rewound.status();
  EXPECT_EQ(rewound->recomputed_tokens(), 0);
  EXPECT_EQ(rewound->session().position_tokens(), kept->position_tokens());
  EXPECT_EQ(Say("s", " there was", 6).tokens, there);
  CallContext context;
  v1::ForkSessionRequest fork;
  fork.set_name("s@good-point");
  fork.add_session_ids("branch");
  ASSERT_TRUE(core->ForkSession(context, fork).ok());
  EXPECT_EQ(Say("branch", " there was", 6).tokens, there);
  ASSERT_TRUE(Rewind("s", "empty").ok());
  EXPECT_EQ(Get("s").position_tokens(), 0);
  v1::ReadTranscriptRequest read;
  read.set_name("s@good-point");
  EXPECT_EQ(core->ReadTranscript(context, read)->position_tokens(), kept->position_tokens());
}

TEST_F(SnapshotsTest, NamesAndConditions) {
  Create("s");
  Say("s", "Once upon a time", 6);
  ASSERT_TRUE(Keep("s", "a").ok());
  auto taken = Keep("s", "a");
  EXPECT_EQ(taken.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ReasonOf(taken.status()), reason::kSnapshotExists);
  for (const char* id : {"Bad", "v1", "v007", "before-rewind", "a_b", "-a"}) {
    EXPECT_THAT(BadFields(Keep("s", id).status()), ElementsAre("snapshot_id")) << id;
  }
  EXPECT_TRUE(Keep("s", "v1b").ok());
  auto unnamed = Keep("s", "");
  ASSERT_TRUE(unnamed.ok());
  EXPECT_THAT(unnamed->name(), StartsWith(Name("s") + "/snapshots/c-"));
  EXPECT_EQ(ReasonOf(Keep("s", "b", 7).status()), reason::kVersionRegressed);
  EXPECT_TRUE(Keep("s", "b", 1).ok());
  EXPECT_THAT(BadFields(Keep("s", "c", -1).status()), ElementsAre("expected_version"));
  EXPECT_EQ(ReasonOf(Keep("nobody", "b").status()), reason::kSessionNotFound);
  EXPECT_EQ(ReasonOf(GetOne("s@nothing").status()), reason::kSnapshotNotFound);
  EXPECT_EQ(ReasonOf(DeleteOne("s@nothing").status()), reason::kSnapshotNotFound);
  EXPECT_EQ(ReasonOf(GetOne("nobody@a").status()), reason::kSessionNotFound);
  ASSERT_TRUE(Delete("s").ok());
  EXPECT_EQ(ReasonOf(Keep("s", "d").status()), reason::kSessionDeleted);
  EXPECT_TRUE(GetOne("s@a").ok());  // until the session is purged
}

TEST_F(SnapshotsTest, DeletingOneGivesItsBytesBack) {
  Create("s", [](auto& session) { session.mutable_snapshot_policy()->set_max_count(1); });
  Say("s", "Once upon a time", 6);
  const auto before = *store->store->Stats();
  ASSERT_TRUE(Keep("s", "a").ok());
  EXPECT_EQ(store->store->Stats()->chunks, before.chunks);  // references alone
  Say("s", " there was", 6);
  Say("s", " a lighthouse", 6);
  const int64_t with = store->store->Stats()->chunk_bytes;
  auto deleted = DeleteOne("s@a");
  ASSERT_TRUE(deleted.ok()) << deleted.status();
  EXPECT_EQ(deleted->version(), 1);
  EXPECT_LT(store->store->Stats()->chunk_bytes, with);
  EXPECT_EQ(store->store->Stats()->records, before.records);
  EXPECT_THAT(Ids("s"), ElementsAre("v3"));
  EXPECT_EQ(ReasonOf(DeleteOne("s@a").status()), reason::kSnapshotNotFound);
  // Automatic ones and before-rewind as well; the next rewind makes it anew.
  ASSERT_TRUE(DeleteOne("s@v3").ok());
  ASSERT_TRUE(Keep("s", "b").ok());
  ASSERT_TRUE(Rewind("s", "b").ok());
  ASSERT_TRUE(DeleteOne("s@before-rewind").ok());
  ASSERT_TRUE(Rewind("s", "b").ok());
  EXPECT_THAT(Ids("s"), Contains("before-rewind"));
  // All of it goes with the session.
  CallContext context;
  v1::DeleteSessionRequest purge;
  purge.set_name("s");
  purge.set_purge(true);
  ASSERT_TRUE(core->DeleteSession(context, purge).ok());
  EXPECT_EQ(store->store->Stats()->records, 0);
  EXPECT_EQ(store->store->Stats()->chunks, 0);
}

TEST_F(SnapshotsTest, ARunningTurnNeitherWaitsNorFails) {
  Create("s");
  const auto first = Say("s", "Once upon a time", 6);
  CollectingSink sink;
  int events = 0;
  sink.on_event = [&](const v1::GenerateResponse&) {
    if (events++ == 2) {
      EXPECT_EQ(Keep("s", "meanwhile")->version(), 1);
      EXPECT_TRUE(DeleteOne("s@v1").ok());
    }
    return true;
  };
  ASSERT_TRUE(Generate(Request("s", " there was", 20), sink).ok());
  EXPECT_GT(events, 2);
  EXPECT_TRUE(sink.final.committed());
  EXPECT_EQ(sink.final.version(), 2);
  EXPECT_THAT(Ids("s"), ElementsAre("v2", "meanwhile"));
}

TEST_F(SnapshotsTest, ThereIsAMostOfThem) {
  Create("s");
  for (int i = 0; i < 256; ++i) ASSERT_TRUE(Keep("s", absl::StrCat("k", i)).ok()) << i;
  auto more = Keep("s", "more");
  EXPECT_THAT(BadFields(more.status()), ElementsAre("parent"));
  EXPECT_EQ(ReasonOf(more.status()), reason::kFieldOutOfRange);
  ASSERT_TRUE(DeleteOne("s@k7").ok());
  EXPECT_TRUE(Keep("s", "more").ok());
}

}  // namespace
}  // namespace mneme::server
