// BatchDeleteSessions: all names are good, or nothing happens; then each session for itself.
#include <thread>

#include "server/core/errors.h"
#include "tests/server/core/core_test_base.h"

namespace mneme::server {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class BatchDeleteTest : public CoreTest {
 protected:
  void SetUp() override { Start(); }

  absl::StatusOr<v1::BatchDeleteSessionsResponse> Batch(
      const std::vector<std::string>& names, const std::string& filter = "",
      const std::function<void(v1::BatchDeleteSessionsRequest&)>& edit = nullptr) {
    CallContext context;
    v1::BatchDeleteSessionsRequest request;
    for (const std::string& name : names) request.add_names(name);
    request.set_filter(filter);
    if (edit) edit(request);
    return core->BatchDeleteSessions(context, request);
  }
  static std::vector<std::string> IdsOf(const v1::BatchDeleteSessionsResponse& response) {
    std::vector<std::string> ids;
    for (const auto& s : response.sessions()) ids.push_back(s.name().substr(Name("").size()));
    return ids;
  }
  bool IsDeleted(const std::string& id) {
    auto session = TryGet(id);
    return !session.ok() || session->state() == v1::Session::DELETED;
  }
};

TEST_F(BatchDeleteTest, ByName) {
  for (const char* id : {"a", "b", "c"}) Create(id);
  auto done = Batch({"c", Name("a")});
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_THAT(IdsOf(*done), ElementsAre("c", "a"));
  EXPECT_EQ(done->sessions(0).state(), v1::Session::DELETED);
  EXPECT_THAT(done->failures(), IsEmpty());
  EXPECT_FALSE(IsDeleted("b"));
  EXPECT_TRUE(IsDeleted("a"));
}

TEST_F(BatchDeleteTest, OneBadNameAndNothingHappens) {
  for (const char* id : {"a", "b"}) Create(id);
  ASSERT_TRUE(Delete("b").ok());
  EXPECT_EQ(ReasonOf(Batch({"a", "nobody"}).status()), reason::kSessionNotFound);
  EXPECT_EQ(ReasonOf(Batch({"a", "b"}).status()), reason::kSessionDeleted);
  EXPECT_THAT(BadFields(Batch({"a", "Bad", "a"}).status()), ElementsAre("names[1]", "names[2]"));
  EXPECT_EQ(ReasonOf(Batch({"a", "tenants/other/sessions/x"}).status()), reason::kAccessDenied);
  EXPECT_EQ(ReasonOf(Batch({}).status()), reason::kFieldRequired);
  EXPECT_THAT(BadFields(Batch({"a"}, "state = ACTIVE").status()), ElementsAre("names"));
  EXPECT_THAT(BadFields(Batch({}, "colour ~ red").status()), ElementsAre("filter"));
  EXPECT_THAT(BadFields(Batch(std::vector<std::string>(1001, "a")).status()), ElementsAre("names"));
  auto valid = Batch({"a"}, "", [](auto& r) { r.set_validate_only(true); });
  ASSERT_TRUE(valid.ok());
  EXPECT_THAT(IdsOf(*valid), ElementsAre("a"));
  EXPECT_FALSE(IsDeleted("a"));
}

TEST_F(BatchDeleteTest, ByFilter) {
  for (const char* id : {"a", "b", "c", "d"}) {
    Create(id, [&](auto& session) {
      (*session.mutable_labels())["project"] = id == std::string("c") ? "other" : "atlas";
    });
  }
  ASSERT_TRUE(Delete("d").ok());
  const std::string filter = "labels.project = \"atlas\"";
  auto done = Batch({}, filter);
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_THAT(IdsOf(*done), ElementsAre("a", "b"));
  EXPECT_FALSE(done->more());
  EXPECT_FALSE(IsDeleted("c"));
  // For good: deleted ones match as well, and nothing of them is left.
  done = Batch({}, filter, [](auto& r) { r.set_purge(true); });
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_THAT(IdsOf(*done), ElementsAre("a", "b", "d"));
  EXPECT_EQ(store->store->Stats()->records, 1);
}

TEST_F(BatchDeleteTest, NoMoreThanAThousandACall) {
  for (int i = 0; i < 1003; ++i) Create(absl::StrCat("s", 10000 + i));
  const auto purge = [](auto& r) { r.set_purge(true); };
  auto done = Batch({}, "state = ACTIVE", purge);
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(done->sessions_size(), 1000);
  EXPECT_TRUE(done->more());
  done = Batch({}, "state = ACTIVE", purge);
  EXPECT_THAT(IdsOf(*done), ElementsAre("s11000", "s11001", "s11002"));
  EXPECT_FALSE(done->more());
  EXPECT_EQ(store->store->Stats()->records, 0);
}

TEST_F(BatchDeleteTest, WhatIsBusyStaysAndTheRestGoes) {
  for (const char* id : {"a", "b", "c"}) Create(id);
  CollectingSink sink;
  bool asked = false;
  sink.on_event = [&](const v1::GenerateResponse& event) {
    if (!event.has_delta() || std::exchange(asked, true)) return true;
    auto done = Batch({"a", "b", "c"});
    EXPECT_TRUE(done.ok()) << done.status();
    EXPECT_THAT(IdsOf(*done), ElementsAre("a", "c"));
    EXPECT_EQ(done->failures_size(), 1);
    EXPECT_EQ(done->failures(0).name(), Name("b"));
    EXPECT_EQ(done->failures(0).code(), static_cast<int>(absl::StatusCode::kAborted));
    EXPECT_EQ(done->failures(0).reason(), reason::kSessionBusy);
    EXPECT_NE(done->failures(0).message(), "");
    return true;
  };
  ASSERT_TRUE(Generate(Request("b", "Once", 30), sink).ok());
  EXPECT_TRUE(asked);
  EXPECT_FALSE(IsDeleted("b"));
  auto forced = Batch({"b"}, "", [](auto& r) { r.set_force(true); });
  ASSERT_TRUE(forced.ok());
  EXPECT_TRUE(IsDeleted("b"));
  core->StartDrain();
  EXPECT_EQ(ReasonOf(Batch({"b"}).status()), reason::kDraining);
}

}  // namespace
}  // namespace mneme::server
