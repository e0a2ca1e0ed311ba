// The contract of memstore/state_store.h, for every store.
#include "memstore/state_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/memstore/store_testing.h"
#include "tests/support/postgres_server.h"

namespace mneme::memstore {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

class StateStoreTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (GetParam() == "memory") {
      store_ = CreateMemoryStore();
      return;
    }
    absl::StatusOr<std::unique_ptr<StateStore>> store;
    if (GetParam() == "rocksdb") {
      RocksDbOptions options;
      options.path = directory_.path();
      store = OpenRocksDbStore(options);
    } else {
      PostgresOptions options;
      options.uri = mneme::test::PostgresServer::Shared().NewDatabase();
      store = OpenPostgresStore(options);
    }
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }

  void Must(const Transaction& transaction) {
    const absl::Status status = store_->Commit(transaction);
    ASSERT_TRUE(status.ok()) << status;
  }
  absl::StatusCode CodeOf(const Transaction& transaction) {
    return store_->Commit(transaction).code();
  }
  int64_t VersionOf(const Key& key) {
    const auto record = store_->Get(key);
    return record.ok() ? record->version : 0;
  }
  StoreStats Stats() { return *store_->Stats(); }

  TempDirectory directory_;
  std::unique_ptr<StateStore> store_;
};

TEST_P(StateStoreTest, PutGetReplaceDelete) {
  const Key key{"tenant", "session"};
  EXPECT_TRUE(absl::IsNotFound(store_->Get(key).status()));
  const std::string binary("a\0b\xff", 4);
  const absl::Time expiry = absl::FromUnixNanos(1234567890123456789);
  const NewChunk chunk = MakeChunk("state");
  Must(PutOf(key, 0, binary, {chunk}, expiry));
  auto record = store_->Get(key);
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(record->version, 1);
  EXPECT_EQ(record->value, binary);
  EXPECT_THAT(record->chunks, ElementsAre(chunk.id));
  EXPECT_EQ(record->expire_time, expiry);

  Must(PutOf(key, 1, ""));
  record = store_->Get(key);
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(record->version, 2);
  EXPECT_EQ(record->value, "");
  EXPECT_THAT(record->chunks, IsEmpty());
  EXPECT_EQ(record->expire_time, absl::InfiniteFuture());

  Must(DeleteOf(key, 2));
  EXPECT_TRUE(absl::IsNotFound(store_->Get(key).status()));
  Must(PutOf(key, 0, "again"));
  EXPECT_EQ(VersionOf(key), 1);
}

TEST_P(StateStoreTest, ManyRecordsAtOnce) {
  Must(PutOf({"t", "a"}, 0, "1"));
  Must(PutOf({"t", "b"}, 0, "2", {MakeChunk("x")}, absl::FromUnixSeconds(7)));
  Must(PutOf({"other", "c"}, 0, "3"));
  auto found = store_->GetMany("t", {"b", "absent", "a", "c"});
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_EQ(found->size(), 2);
  EXPECT_EQ(found->at("a").value, "1");
  const Record one = *store_->Get({"t", "b"});
  EXPECT_EQ(found->at("b").version, one.version);
  EXPECT_EQ(found->at("b").value, one.value);
  EXPECT_EQ(found->at("b").chunks, one.chunks);
  EXPECT_EQ(found->at("b").expire_time, one.expire_time);
  EXPECT_THAT(*store_->GetMany("t", {}), IsEmpty());
  EXPECT_THAT(*store_->GetMany("nobody", {"a"}), IsEmpty());
}

TEST_P(StateStoreTest, TotalsFollowEveryCommit) {
  EXPECT_THAT(*store_->Totals(""), IsEmpty());
  Must(PutOf({"a", "old"}, 0, "1.."));  // before anybody asked for totals
  Must(PutOf({"a", "none"}, 0, "x"));
  ASSERT_TRUE(store_->KeepTotals(TallyOfLength).ok());
  EXPECT_THAT(*store_->Totals(""), ElementsAre(Total{"a", 1, 1, 3}));
  Must(PutOf({"a", "new"}, 0, "1...."));
  Must(PutOf({"b", "s"}, 0, "2"));
  EXPECT_THAT(*store_->Totals(""), ElementsAre(Total{"a", 1, 2, 8}, Total{"b", 2, 1, 1}));
  EXPECT_THAT(*store_->Totals("a"), ElementsAre(Total{"a", 1, 2, 8}));
  EXPECT_THAT(*store_->Totals("nobody"), IsEmpty());
  // Another kind and amount, and several records at once.
  Transaction several = PutOf({"a", "old"}, 1, "3......");
  several.puts.push_back(PutOf({"a", "more"}, 0, "1.").puts[0]);
  several.deletes.push_back({{"a", "new"}, 1});
  Must(several);
  EXPECT_THAT(*store_->Totals("a"), ElementsAre(Total{"a", 1, 1, 2}, Total{"a", 3, 1, 7}));
  // What does not happen changes nothing.
  EXPECT_EQ(CodeOf(PutOf({"a", "old"}, 1, "1")), absl::StatusCode::kAborted);
  EXPECT_EQ(CodeOf(ReferTo({"a", "refers"}, 0, {HashChunk("nothing")})),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(*store_->Totals("a"), ElementsAre(Total{"a", 1, 1, 2}, Total{"a", 3, 1, 7}));
  Must(DeleteOf({"a", "old"}, 2));
  Must(DeleteOf({"a", "more"}, 1));
  Must(DeleteOf({"b", "s"}, 1));
  EXPECT_THAT(*store_->Totals(""), IsEmpty());
}

TEST_P(StateStoreTest, TotalsAreExactUnderConcurrentCommits) {
  ASSERT_TRUE(store_->KeepTotals(TallyOfLength).ok());
  constexpr int kThreads = 8, kRounds = 20;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int64_t round = 0; round < kRounds; ++round) {
        Transaction put = PutOf({"r", absl::StrCat("s", t)}, round,
                                absl::StrCat(1 + (t + round) % 3, std::string(round, '.')));
        put.sync = false;
        ASSERT_TRUE(store_->Commit(put).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  int64_t records = 0, amount = 0;
  const std::vector<Total> totals = *store_->Totals("r");
  for (const Total& total : totals) {
    records += total.records;
    amount += total.amount;
  }
  EXPECT_EQ(records, kThreads);
  EXPECT_EQ(amount, kThreads * kRounds);
}

TEST_P(StateStoreTest, WrongVersionIsAbortedAndNamesTheFoundOne) {
  const Key key{"t", "s"};
  Must(PutOf(key, 0, "1"));
  Must(PutOf(key, 1, "2"));
  for (const int64_t expected : {0, 1, 3}) {
    const absl::Status status = store_->Commit(PutOf(key, expected, "x"));
    EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
    ASSERT_TRUE(status.GetPayload(kVersionPayload).has_value());
    EXPECT_EQ(std::string(*status.GetPayload(kVersionPayload)), "2");
    EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("expected ", expected)));
  }
  const absl::Status absent = store_->Commit(DeleteOf({"t", "absent"}, 1));
  EXPECT_EQ(absent.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(std::string(*absent.GetPayload(kVersionPayload)), "0");
  EXPECT_EQ(CodeOf(DeleteOf(key, 1)), absl::StatusCode::kAborted);
  EXPECT_EQ(store_->Get(key)->value, "2");
}

TEST_P(StateStoreTest, ATransactionIsAllOrNothing) {
  Must(PutOf({"t", "b"}, 0, "b"));
  Transaction transaction = PutOf({"t", "a"}, 0, "a", {MakeChunk("new")});
  transaction.puts.push_back({{"t", "b"}, 7, "b2", {}, absl::InfiniteFuture()});
  EXPECT_EQ(CodeOf(transaction), absl::StatusCode::kAborted);
  EXPECT_EQ(VersionOf({"t", "a"}), 0);
  EXPECT_EQ(Stats().chunks, 0);
  transaction.puts[1].expected_version = 1;
  Must(transaction);
  EXPECT_EQ(VersionOf({"t", "a"}), 1);
  EXPECT_EQ(VersionOf({"t", "b"}), 2);
}

TEST_P(StateStoreTest, ChunksLiveWhileReferredTo) {
  const NewChunk a = MakeChunk("aaaa"), b = MakeChunk(std::string(100000, 'b'));
  Must(PutOf({"t", "parent"}, 0, "p", {a, b}));
  EXPECT_EQ(*store_->GetChunk("t", a.id), "aaaa");
  Must(ReferTo({"t", "fork"}, 0, {a.id, b.id, a.id}));  // a duplicate counts twice
  EXPECT_EQ(Stats().chunks, 2);
  EXPECT_EQ(Stats().chunk_bytes, 100004);
  Must(DeleteOf({"t", "parent"}, 1));
  EXPECT_EQ(*store_->GetChunk("t", b.id), b.bytes);
  Must(ReferTo({"t", "fork"}, 1, {a.id}));
  EXPECT_EQ(*store_->GetChunk("t", a.id), "aaaa");
  EXPECT_TRUE(absl::IsNotFound(store_->GetChunk("t", b.id).status()));
  Must(DeleteOf({"t", "fork"}, 2));
  EXPECT_TRUE(absl::IsNotFound(store_->GetChunk("t", a.id).status()));
  const StoreStats stats = Stats();
  EXPECT_EQ(stats.records, 0);
  EXPECT_EQ(stats.chunks, 0);
  EXPECT_EQ(stats.chunk_bytes, 0);
  EXPECT_EQ(CodeOf(ReferTo({"t", "late"}, 0, {a.id})), absl::StatusCode::kFailedPrecondition);
}

TEST_P(StateStoreTest, AMoveOfTheLastReferenceKeepsTheChunk) {
  const NewChunk chunk = MakeChunk("moved");
  Must(PutOf({"t", "from"}, 0, "", {chunk}));
  Transaction move = ReferTo({"t", "to"}, 0, {chunk.id});
  move.deletes.push_back({{"t", "from"}, 1});
  Must(move);
  EXPECT_EQ(*store_->GetChunk("t", chunk.id), "moved");
  Must(ReferTo({"t", "to"}, 1, {}));
  EXPECT_TRUE(absl::IsNotFound(store_->GetChunk("t", chunk.id).status()));
}

TEST_P(StateStoreTest, ChunksAreNeverSharedBetweenRealms) {
  const NewChunk chunk = MakeChunk("secret");
  Must(PutOf({"a", "s"}, 0, "", {chunk}));
  EXPECT_TRUE(absl::IsNotFound(store_->GetChunk("b", chunk.id).status()));
  EXPECT_EQ(CodeOf(ReferTo({"b", "s"}, 0, {chunk.id})), absl::StatusCode::kFailedPrecondition);
  Must(PutOf({"b", "s"}, 0, "", {chunk}));
  EXPECT_EQ(Stats().chunks, 2);
  Must(DeleteOf({"a", "s"}, 1));
  EXPECT_TRUE(absl::IsNotFound(store_->GetChunk("a", chunk.id).status()));
  EXPECT_EQ(*store_->GetChunk("b", chunk.id), "secret");
}

TEST_P(StateStoreTest, ANewChunkThatNobodyRefersToIsNotStored) {
  Transaction transaction = PutOf({"t", "s"}, 0, "");
  transaction.new_chunks.push_back(MakeChunk("unused"));
  Must(transaction);
  EXPECT_EQ(Stats().chunks, 0);
}

TEST_P(StateStoreTest, AChunkUnderAFalseIdIsNeverHandedOut) {
  Transaction forged = PutOf({"r", "n"}, 0, "", {MakeChunk("true")});
  forged.new_chunks[0].bytes = "false";
  Must(forged);
  EXPECT_TRUE(absl::IsDataLoss(store_->GetChunk("r", forged.new_chunks[0].id).status()));
}

TEST_P(StateStoreTest, MalformedInputIsRefused) {
  const auto invalid = absl::StatusCode::kInvalidArgument;
  for (const std::string& bad : {std::string(), std::string(513, 'x'), std::string("a\0b", 3),
                                 std::string("\n"), std::string("\xc3\xa4")}) {
    EXPECT_EQ(CodeOf(PutOf({bad, "n"}, 0, "")), invalid) << bad;
    EXPECT_EQ(CodeOf(PutOf({"r", bad}, 0, "")), invalid) << bad;
    EXPECT_EQ(CodeOf(DeleteOf({"r", bad}, 1)), invalid) << bad;
    EXPECT_EQ(store_->Get({"r", bad}).status().code(), invalid) << bad;
    EXPECT_EQ(store_->GetChunk(bad, ChunkId{}).status().code(), invalid) << bad;
    ListOptions list;
    list.realm = bad;
    EXPECT_EQ(store_->List(list).status().code(), invalid) << bad;
  }
  Must(PutOf({std::string(512, ' '), std::string(512, '~')}, 0, ""));
  EXPECT_EQ(CodeOf(PutOf({"r", "n"}, -1, "")), invalid);
  EXPECT_EQ(CodeOf(DeleteOf({"r", "n"}, 0)), invalid);
  Transaction twice = PutOf({"r", "n"}, 0, "");
  twice.deletes.push_back({{"r", "n"}, 1});
  EXPECT_EQ(CodeOf(twice), invalid);
  Transaction mixed = PutOf({"r", "n"}, 0, "");
  mixed.puts.push_back({{"q", "n"}, 0, "", {}, absl::InfiniteFuture()});
  EXPECT_EQ(CodeOf(mixed), invalid);
  ListOptions list{"r", "", "", 0};
  EXPECT_EQ(store_->List(list).status().code(), invalid);
  EXPECT_EQ(VersionOf({"r", "n"}), 0);
}

TEST_P(StateStoreTest, ListsByPrefixInOrderAndInPages) {
  for (const char* name : {"s/b", "s/a", "t/x", "s/c", "s", "s/a/1"}) {
    Must(PutOf({"r", name}, 0, name));
  }
  Must(PutOf({"r2", "s/z"}, 0, ""));
  const auto names = [&](ListOptions options) {
    std::vector<std::string> result;
    const auto listed = store_->List(options);
    EXPECT_TRUE(listed.ok()) << listed.status();
    for (const ListedRecord& entry : *listed) {
      EXPECT_EQ(entry.record.value, entry.name);
      result.push_back(entry.name);
    }
    return result;
  };
  EXPECT_THAT(names({"r", "", "", 100}), ElementsAre("s", "s/a", "s/a/1", "s/b", "s/c", "t/x"));
  EXPECT_THAT(names({"r", "s/", "", 100}), ElementsAre("s/a", "s/a/1", "s/b", "s/c"));
  EXPECT_THAT(names({"r", "s/", "", 2}), ElementsAre("s/a", "s/a/1"));
  EXPECT_THAT(names({"r", "s/", "s/a/1", 2}), ElementsAre("s/b", "s/c"));
  EXPECT_THAT(names({"r", "s/", "s/aa", 1}), ElementsAre("s/b"));
  EXPECT_THAT(names({"r", "s/", "a", 1}), ElementsAre("s/a"));  // before the prefix
  EXPECT_THAT(names({"r", "s/", "t", 5}), IsEmpty());
  EXPECT_THAT(names({"nobody", "", "", 5}), IsEmpty());
  EXPECT_THAT(*store_->Realms(), ElementsAre("r", "r2"));
  Must(DeleteOf({"r2", "s/z"}, 1));
  EXPECT_THAT(*store_->Realms(), ElementsAre("r"));
}

TEST_P(StateStoreTest, RealmsThatArePrefixesOfEachOtherStayApart) {
  Must(PutOf({"a", "bc"}, 0, "1"));
  Must(PutOf({"ab", "c"}, 0, "2"));
  Must(PutOf({"a b", "c"}, 0, "3"));
  EXPECT_EQ(store_->Get({"a", "bc"})->value, "1");
  EXPECT_EQ(store_->Get({"ab", "c"})->value, "2");
  EXPECT_EQ(store_->List({"a", "", "", 10})->size(), 1u);
  EXPECT_THAT(*store_->Realms(), UnorderedElementsAre("a", "a b", "ab"));
}

TEST_P(StateStoreTest, ExpiryIndexFollowsTheRecords) {
  const absl::Time t0 = absl::FromUnixSeconds(1000);
  const auto at = [&](int seconds) { return t0 + absl::Seconds(seconds); };
  Must(PutOf({"r", "late"}, 0, "", {}, at(30)));
  Must(PutOf({"q", "early"}, 0, "", {}, at(10)));
  Must(PutOf({"r", "mid"}, 0, "", {}, at(20)));
  Must(PutOf({"r", "never"}, 0, ""));
  Must(PutOf({"r", "ancient"}, 0, "", {}, absl::FromUnixSeconds(-5)));
  EXPECT_THAT(*store_->Expired(at(20), 10),
              ElementsAre(Key{"r", "ancient"}, Key{"q", "early"}, Key{"r", "mid"}));
  EXPECT_THAT(*store_->Expired(at(20) - absl::Nanoseconds(1), 10),
              ElementsAre(Key{"r", "ancient"}, Key{"q", "early"}));
  EXPECT_THAT(*store_->Expired(at(100), 1), ElementsAre(Key{"r", "ancient"}));
  EXPECT_EQ(store_->Expired(absl::InfiniteFuture(), 100)->size(), 4u);
  EXPECT_THAT(*store_->Expired(absl::InfinitePast(), 100), IsEmpty());
  EXPECT_EQ(VersionOf({"r", "ancient"}), 1);  // expired, yet there until swept
  Must(PutOf({"r", "mid"}, 1, "", {}, at(20)));
  Must(PutOf({"q", "early"}, 1, "", {}, at(25)));
  Must(PutOf({"r", "late"}, 1, ""));
  Must(DeleteOf({"r", "ancient"}, 1));
  EXPECT_THAT(*store_->Expired(at(100), 10), ElementsAre(Key{"r", "mid"}, Key{"q", "early"}));
}

TEST_P(StateStoreTest, OfRacingWritersExactlyOneSucceeds) {
  const Key key{"r", "contended"};
  constexpr int kThreads = 8, kRounds = 25;
  std::vector<std::atomic<int>> wins(kRounds);
  std::atomic<int> others{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int64_t round = 0; round < kRounds; ++round) {
        const absl::Status status = store_->Commit(PutOf(key, round, absl::StrCat(t)));
        if (status.ok()) {
          ++wins[round];
        } else if (!absl::IsAborted(status)) {
          ++others;
        }
        // Wait for this round's winner, so that all race in every round.
        while (VersionOf(key) <= round) std::this_thread::yield();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(others, 0);
  for (int round = 0; round < kRounds; ++round) EXPECT_EQ(wins[round], 1) << "round " << round;
  EXPECT_EQ(VersionOf(key), kRounds);
}

// One thread drops the last reference to a chunk while others add one: whoever was told OK must
// find the bytes.
TEST_P(StateStoreTest, AChunkIsNeverDeletedUnderANewReference) {
  const NewChunk chunk = MakeChunk(std::string(70000, 'z'));
  constexpr int kThreads = 4, kRounds = 60;
  std::atomic<int> lost{0}, unexpected{0}, referred{0}, refused{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const Key key{"r", absl::StrCat("k", t)};
      for (int round = 0; round < kRounds; ++round) {
        const bool brings_bytes = (round + t) % 3 == 0;
        Transaction put = brings_bytes ? PutOf(key, 0, "", {chunk}) : ReferTo(key, 0, {chunk.id});
        put.sync = false;
        const absl::Status status = store_->Commit(put);
        if (status.ok()) {
          ++referred;
          const auto bytes = store_->GetChunk("r", chunk.id);
          if (!bytes.ok() || *bytes != chunk.bytes) ++lost;
          Transaction del = DeleteOf(key, 1);
          del.sync = false;
          if (!store_->Commit(del).ok()) ++unexpected;
        } else if (!brings_bytes && status.code() == absl::StatusCode::kFailedPrecondition) {
          ++refused;
        } else {
          ++unexpected;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(lost, 0);
  EXPECT_EQ(unexpected, 0);
  EXPECT_GE(referred, kThreads * kRounds / 3);
  EXPECT_EQ(Stats().chunks, 0);
  EXPECT_EQ(Stats().records, 0);
  EXPECT_TRUE(absl::IsNotFound(store_->GetChunk("r", chunk.id).status()));
}

TEST_P(StateStoreTest, ListingUnderChangesShowsWhatStaysExactlyOnce) {
  std::set<std::string> stable;
  for (int i = 0; i < 100; ++i) {
    const std::string name = absl::StrFormat("s%03d", i * 2);
    stable.insert(name);
    Transaction put = PutOf({"r", name}, 0, "");
    put.sync = false;
    Must(put);
  }
  std::atomic<bool> stop{false};
  std::thread churn([&] {
    for (int i = 0; !stop; i = (i + 7) % 100) {
      const Key key{"r", absl::StrFormat("s%03d", i * 2 + 1)};
      Transaction put = PutOf(key, 0, "");
      put.sync = false;
      Transaction del = DeleteOf(key, 1);
      del.sync = false;
      ASSERT_TRUE(store_->Commit(put).ok());
      ASSERT_TRUE(store_->Commit(del).ok());
    }
  });
  for (int pass = 0; pass < 20; ++pass) {
    std::vector<std::string> seen;
    ListOptions options{"r", "s", "", 7};
    for (;;) {
      const auto page = store_->List(options);
      ASSERT_TRUE(page.ok()) << page.status();
      for (const ListedRecord& entry : *page) seen.push_back(entry.name);
      if (page->size() < 7) break;
      options.start_after = page->back().name;
    }
    EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
    EXPECT_EQ(std::set<std::string>(seen.begin(), seen.end()).size(), seen.size());
    for (const std::string& name : stable) {
      EXPECT_TRUE(std::binary_search(seen.begin(), seen.end(), name)) << name;
    }
  }
  stop = true;
  churn.join();
}

TEST_P(StateStoreTest, ProbePasses) {
  EXPECT_TRUE(store_->Probe().ok());
  EXPECT_TRUE(store_->Probe().ok());
  EXPECT_THAT(*store_->Realms(), IsEmpty());
}

TEST(HashChunkTest, IsSha256) {  // FIPS 180-2, appendix B.1
  const ChunkId id = HashChunk("abc");
  EXPECT_EQ(id[0], 0xba);
  EXPECT_EQ(id[1], 0x78);
  EXPECT_EQ(id[31], 0xad);
}

INSTANTIATE_TEST_SUITE_P(Stores, StateStoreTest, ::testing::Values("memory", "rocksdb", "postgres"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace mneme::memstore
