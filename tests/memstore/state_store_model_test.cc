// Random operations, faults and power losses against std::map.
//
// Every commit is mirrored in a model. After a power loss the store must equal the model as of the
// last synced acknowledgement or of a later commit: a prefix of what was done, each transaction
// entirely or not at all. Chunks and counts are compared too, so a wrong reference count shows.
#include <gtest/gtest.h>
#include <rocksdb/env.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "memstore/rocksdb_state_store.h"
#include "memstore/state_store.h"
#include "memstore/totals.h"
#include "tests/memstore/store_testing.h"
#include "tests/support/fault_file_system.h"
#include "tests/support/postgres_proxy.h"
#include "tests/support/postgres_server.h"

namespace mneme::memstore {
namespace {

using Model = std::map<Key, Record>;

constexpr int kNames = 12, kChunks = 24;
const char* const kRealms[] = {"tenant-a", "tenant-b"};

std::string ChunkBytes(int number) {
  // Small ones, and some above the size from which chunks go to blob files.
  const size_t size = number % 4 == 0 ? 70000 + number : 10 + 37 * number;
  std::string bytes = absl::StrCat("chunk ", number, " ");
  bytes.resize(size, static_cast<char>('a' + number % 26));
  return bytes;
}

bool SameRecord(const Record& a, const Record& b) {
  return a.version == b.version && a.value == b.value && a.chunks == b.chunks &&
         a.expire_time == b.expire_time;
}

bool SameModel(const Model& a, const Model& b) {
  return a.size() == b.size() &&
         std::equal(a.begin(), a.end(), b.begin(), [](const auto& x, const auto& y) {
           return x.first == y.first && SameRecord(x.second, y.second);
         });
}

void Apply(const Transaction& transaction, Model& model) {
  for (const Put& put : transaction.puts) {
    model[put.key] = {put.expected_version + 1, put.value, put.chunks, put.expire_time};
  }
  for (const Delete& del : transaction.deletes) model.erase(del.key);
}

class Driver {
 public:
  explicit Driver(uint64_t seed) : random_(seed) {
    for (int i = 0; i < kChunks; ++i) chunks_.push_back(MakeChunk(ChunkBytes(i)));
  }

  uint64_t Pick(uint64_t n) { return random_() % n; }

  Transaction RandomTransaction(const Model& model) {
    Transaction transaction;
    const std::string realm = kRealms[Pick(2)];
    std::set<std::string> used;
    const int keys = 1 + Pick(3);
    for (int i = 0; i < keys; ++i) {
      Key key{realm, absl::StrCat("name", Pick(kNames))};
      if (!used.insert(key.name).second) continue;
      const auto old = model.find(key);
      int64_t version = old == model.end() ? 0 : old->second.version;
      if (Pick(12) == 0) version += 1;  // a wrong one
      if (version > 0 && Pick(4) == 0) {
        transaction.deletes.push_back({key, version});
        continue;
      }
      Put put{key,
              version,
              std::string(Pick(200), static_cast<char>('0' + Pick(12))),
              {},
              Pick(3) == 0 ? absl::FromUnixSeconds(1000 + Pick(50)) : absl::InfiniteFuture()};
      const int count = Pick(5);
      for (int c = 0; c < count; ++c) {
        const NewChunk& chunk = chunks_[Pick(kChunks)];
        put.chunks.push_back(chunk.id);
        if (Pick(8) != 0) transaction.new_chunks.push_back(chunk);  // else it must be there
      }
      transaction.puts.push_back(std::move(put));
    }
    transaction.sync = Pick(3) == 0;
    return transaction;
  }

  // What a transaction must answer.
  absl::StatusCode Expected(const Transaction& transaction, const Model& model) {
    std::set<ChunkId> known;
    const std::string realm = RealmOf(transaction);
    for (const auto& [key, record] : model) {
      if (key.realm == realm) known.insert(record.chunks.begin(), record.chunks.end());
    }
    for (const NewChunk& chunk : transaction.new_chunks) known.insert(chunk.id);
    const auto version = [&](const Key& key) {
      const auto it = model.find(key);
      return it == model.end() ? 0 : it->second.version;
    };
    for (const Put& put : transaction.puts) {
      if (version(put.key) != put.expected_version) return absl::StatusCode::kAborted;
    }
    for (const Delete& del : transaction.deletes) {
      if (version(del.key) != del.expected_version) return absl::StatusCode::kAborted;
    }
    for (const Put& put : transaction.puts) {
      for (const ChunkId& id : put.chunks) {
        if (!known.contains(id)) return absl::StatusCode::kFailedPrecondition;
      }
    }
    return absl::StatusCode::kOk;
  }

  static std::string RealmOf(const Transaction& transaction) {
    return transaction.puts.empty() ? transaction.deletes[0].key.realm
                                    : transaction.puts[0].key.realm;
  }

  static void ReadAll(const StateStore& store, Model* model) {
    const auto realms = store.Realms();
    ASSERT_TRUE(realms.ok()) << realms.status();
    for (const std::string& realm : *realms) {
      const auto listed = store.List({realm, "", "", 1000});
      ASSERT_TRUE(listed.ok()) << listed.status();
      for (const ListedRecord& entry : *listed) (*model)[{realm, entry.name}] = entry.record;
    }
  }

  // Chunks, counts, totals and the expiry index against the records.
  void CheckInside(const StateStore& store, const Model& model) {
    std::set<std::pair<std::string, ChunkId>> referred;
    std::set<Key> expiring;
    for (const auto& [key, record] : model) {
      for (const ChunkId& id : record.chunks) referred.insert({key.realm, id});
      if (record.expire_time != absl::InfiniteFuture()) expiring.insert(key);
    }
    int64_t chunk_bytes = 0;
    for (const char* realm : kRealms) {
      for (const NewChunk& chunk : chunks_) {
        const auto bytes = store.GetChunk(realm, chunk.id);
        if (referred.contains({realm, chunk.id})) {
          ASSERT_TRUE(bytes.ok()) << bytes.status();
          ASSERT_TRUE(*bytes == chunk.bytes);
          chunk_bytes += bytes->size();
        } else {
          ASSERT_TRUE(absl::IsNotFound(bytes.status())) << bytes.status();
        }
      }
    }
    const auto stats = store.Stats();
    ASSERT_TRUE(stats.ok());
    EXPECT_EQ(stats->records, static_cast<int64_t>(model.size()));
    EXPECT_EQ(stats->chunks, static_cast<int64_t>(referred.size()));
    EXPECT_EQ(stats->chunk_bytes, chunk_bytes);
    TotalsTable totals;
    for (const auto& [key, record] : model) {
      totals.Add(key.realm, TallyOfLength(key, record.value));
    }
    const auto kept = store.Totals("");
    ASSERT_TRUE(kept.ok()) << kept.status();
    EXPECT_EQ(*kept, totals.Of(""));
    const auto expired = store.Expired(absl::FromUnixSeconds(2000), 1000);
    ASSERT_TRUE(expired.ok());
    EXPECT_EQ(std::set<Key>(expired->begin(), expired->end()), expiring);
    EXPECT_EQ(expired->size(), expiring.size());
  }

 private:
  std::mt19937_64 random_;
  std::vector<NewChunk> chunks_;
};

void ExpectEqualToTheModel(StateStore& store, int steps) {
  constexpr uint64_t kSeed = 20240701;
  SCOPED_TRACE(absl::StrCat("seed ", kSeed));
  Driver driver(kSeed);
  Model model;
  ASSERT_TRUE(store.KeepTotals(TallyOfLength).ok());
  for (int i = 0; i < steps; ++i) {
    const Transaction transaction = driver.RandomTransaction(model);
    ASSERT_EQ(store.Commit(transaction).code(), driver.Expected(transaction, model)) << i;
    if (driver.Expected(transaction, model) == absl::StatusCode::kOk) Apply(transaction, model);
    if (i % 500 == 499) {
      Model found;
      Driver::ReadAll(store, &found);
      ASSERT_TRUE(SameModel(found, model)) << i;
      driver.CheckInside(store, model);
    }
  }
}

TEST(StateStoreModelTest, MemoryStoreEqualsTheModel) {
  ExpectEqualToTheModel(*CreateMemoryStore(), 5000);
}

TEST(StateStoreModelTest, PostgresStoreEqualsTheModel) {
  auto store = OpenPostgresStore({.uri = mneme::test::PostgresServer::Shared().NewDatabase()});
  ASSERT_TRUE(store.ok()) << store.status();
  ExpectEqualToTheModel(**store, 1500);
}

// A place for a store, which can fail writes and lose power.
struct FaultyDisk {
  explicit FaultyDisk(uint64_t seed)
      : fs(std::make_shared<mneme::testing::FaultFileSystem>(seed)),
        env(mneme::testing::NewFaultEnv(fs)) {
    options.store.path = directory.path();
    options.env = env.get();
    options.write_buffer_bytes = 256 << 10;  // so that flushes and compactions happen
  }

  TempDirectory directory;
  std::shared_ptr<mneme::testing::FaultFileSystem> fs;
  std::unique_ptr<rocksdb::Env> env;
  RocksDbInternalOptions options;
};

class CrashTest : public ::testing::TestWithParam<uint64_t> {};

TEST_P(CrashTest, PowerLossKeepsAPrefixWithAllThatWasSynced) {
  const uint64_t seed = GetParam();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  Driver driver(seed);
  const FaultyDisk disk(seed);

  Model model;
  // What may be on the disk: the last synced state and each one since.
  std::vector<Model> possible = {model};
  int committed = 0, failed = 0, crashes = 0, losses = 0;
  std::unique_ptr<StateStore> store;
  for (int step = 0; step < 1500; ++step) {
    if (!store) {
      auto opened = OpenRocksDbStoreInternal(disk.options);
      ASSERT_TRUE(opened.ok()) << "step " << step << ": " << opened.status();
      store = *std::move(opened);
      ASSERT_TRUE(store->KeepTotals(TallyOfLength).ok());
      Model found;
      Driver::ReadAll(*store, &found);
      bool known = false;
      for (const Model& candidate : possible) known = known || SameModel(found, candidate);
      ASSERT_TRUE(known) << "step " << step << ": not one of the " << possible.size()
                         << " states that the disk may hold";

      driver.CheckInside(*store, found);
      if (HasFatalFailure()) return;
      if (!SameModel(found, model)) ++losses;
      model = found;
      possible = {model};
    }
    const Transaction transaction = driver.RandomTransaction(model);
    const absl::StatusCode expected = driver.Expected(transaction, model);
    const absl::Status status = store->Commit(transaction);
    if (status.code() == expected) {
      if (status.ok()) {
        ++committed;
        Apply(transaction, model);
        if (transaction.sync) possible.clear();
        possible.push_back(model);
      }
    } else {
      // A fault: entirely or not at all, and reads go on.
      ASSERT_TRUE(absl::IsUnavailable(status) || absl::IsResourceExhausted(status))
          << "step " << step << ": " << status << ", expected " << static_cast<int>(expected);
      ++failed;
      Model applied = model;
      if (expected == absl::StatusCode::kOk) Apply(transaction, applied);
      possible.push_back(applied);
      Model found;
      Driver::ReadAll(*store, &found);
      ASSERT_TRUE(SameModel(found, model) || SameModel(found, applied)) << "step " << step;
      if (SameModel(found, applied)) model = applied;
      if (driver.Pick(3) == 0) disk.fs->Heal();
    }
    switch (driver.Pick(40)) {
      case 0:
        disk.fs->FailWritesAfter(1 + driver.Pick(12),
                                 driver.Pick(2) ? rocksdb::IOStatus::NoSpace("disk full")
                                                : rocksdb::IOStatus::IOError("disk broken"));
        break;
      case 1:
        disk.fs->PowerOff();
        store.reset();
        disk.fs->LoseUnsynced();
        ++crashes;
        break;
      case 2:
        disk.fs->Heal();
        store.reset();  // an orderly end
        // Close flushes, so the newest state stays; nothing is asserted beyond `possible`.
        break;
      default:
        break;
    }
  }
  store.reset();
  // The test must have met what it is about.
  EXPECT_GT(committed, 500);
  EXPECT_GT(failed, 10);
  EXPECT_GT(crashes, 15);
  // Some commit without sync was really lost: the power losses are not mere restarts.
  EXPECT_GT(losses, 0);
}

// RocksDB begins a new log with each memtable. A power loss before the old one's memtable became a
// table must not keep a commit of the new log and lose one of the old.
TEST(LogOrderTest, PowerLossBetweenTwoLogsKeepsAPrefix) {
  constexpr int kCommits = 12;
  int partial = 0;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    const FaultyDisk disk(seed);
    auto store = OpenRocksDbStoreInternal(disk.options);
    ASSERT_TRUE(store.ok()) << store.status();
    disk.fs->StallTables();
    for (int i = 0; i < kCommits; ++i) {  // 480 KiB: two memtables
      Transaction transaction;
      transaction.sync = false;
      transaction.puts.push_back({{"realm", absl::StrCat("name", 10 + i)},
                                  0,
                                  std::string(40 << 10, 'v'),
                                  {},
                                  absl::InfiniteFuture()});
      ASSERT_TRUE((*store)->Commit(transaction).ok());
    }
    disk.fs->PowerOff();
    store->reset();
    disk.fs->LoseUnsynced();
    store = OpenRocksDbStoreInternal(disk.options);
    ASSERT_TRUE(store.ok()) << store.status();
    const auto listed = (*store)->List({"realm", "", "", 100});
    ASSERT_TRUE(listed.ok()) << listed.status();
    for (size_t i = 0; i < listed->size(); ++i) {
      ASSERT_EQ((*listed)[i].name, absl::StrCat("name", 10 + i)) << "an earlier commit is gone";
    }
    if (!listed->empty() && listed->size() < kCommits) ++partial;
  }
  EXPECT_GT(partial, 5);  // commits were lost and kept: the logs were cut
}

// One store over all the faults of its server and of the network between them. Unlike RocksDB's, a
// commit has the answer that it would have without the fault, unless the server is gone for long.
TEST(PostgresFaultTest, FaultsChangeNoAnswerAndLoseNothingSynced) {
  using mneme::test::PostgresProxy;
  constexpr uint64_t kSeed = 20261129;
  SCOPED_TRACE(absl::StrCat("seed ", kSeed));
  Driver driver(kSeed);
  mneme::test::PostgresServer& server = mneme::test::PostgresServer::Shared();
  const std::string uri = server.NewDatabase();
  PostgresProxy proxy(server.socket());
  const std::string database = uri.substr(uri.rfind('/', uri.find('?')) + 1);
  auto opened = OpenPostgresStore(
      {.uri = proxy.Uri(database.substr(0, database.find('?'))), .max_connections = 3});
  ASSERT_TRUE(opened.ok()) << opened.status();
  StateStore& store = **opened;
  ASSERT_TRUE(store.KeepTotals(TallyOfLength).ok());

  Model model;
  std::vector<Model> possible = {model};  // what a crash may leave: see CrashTest
  int committed = 0, kills = 0, kills_in_mid_commit = 0, cuts = 0, losses = 0;
  const auto check = [&](int step) {
    Model found;
    Driver::ReadAll(store, &found);
    bool known = false;
    for (const Model& candidate : possible) known = known || SameModel(found, candidate);
    ASSERT_TRUE(known) << "step " << step << ": not one of the " << possible.size()
                       << " states that the server may hold";
    driver.CheckInside(store, found);
    if (!SameModel(found, model)) ++losses;
    model = found;
    possible = {model};
  };
  for (int step = 0; step < 160; ++step) {
    const Transaction transaction = driver.RandomTransaction(model);
    const absl::StatusCode expected = driver.Expected(transaction, model);
    std::optional<std::chrono::microseconds> kill_after;
    // Each of the kills at least once, whatever the crashes make of the rest.
    switch (step == 50 ? 1 : step == 110 ? 0 : driver.Pick(70)) {
      case 0:
        server.Kill();
        ASSERT_TRUE(server.Run().ok());
        ++kills;
        check(step);
        if (HasFatalFailure()) return;
        continue;
      case 1:
        // Everything before is durable, so that what is left to know is this commit alone.
        ASSERT_TRUE(store.Probe().ok());
        kill_after = std::chrono::microseconds(driver.Pick(3000));
        break;
      case 2:
        proxy.Reset();
        ++cuts;
        break;
      case 3:
      case 4:
        // Either the end of the writes, or COMMIT itself, or the answer to them is lost.
        proxy.FailAt(
            driver.Pick(2) ? "COMMIT" : "mneme_next_token",
            driver.Pick(2) ? PostgresProxy::Fault::kLost : PostgresProxy::Fault::kNoAnswer);
        ++cuts;
        break;
      default:
        break;
    }
    absl::Status status;
    if (kill_after) {
      // The server ends with the thread that started it: so this one does.
      std::thread committer([&] { status = store.Commit(transaction); });
      std::this_thread::sleep_for(*kill_after);
      server.Kill();
      const absl::Status up = server.Run();
      committer.join();
      ASSERT_TRUE(up.ok()) << up;
      ++kills_in_mid_commit;
      Model applied = model;
      if (expected == absl::StatusCode::kOk) Apply(transaction, applied);
      const bool unreachable = absl::IsUnavailable(status);  // in the middle of the restart
      ASSERT_TRUE(unreachable || status.code() == expected) << "step " << step << ": " << status;
      possible = status.ok() && transaction.sync ? std::vector<Model>{applied}
                                                 : std::vector<Model>{model, applied};
      check(step);
      if (HasFatalFailure()) return;
      continue;
    }
    status = store.Commit(transaction);
    ASSERT_EQ(status.code(), expected) << "step " << step << ": " << status;
    if (status.ok()) {
      ++committed;
      Apply(transaction, model);
      if (transaction.sync) possible.clear();
      possible.push_back(model);
    }
  }
  check(160);
  EXPECT_GT(committed, 80);
  EXPECT_GT(kills, 0);
  EXPECT_GT(kills_in_mid_commit, 0);
  EXPECT_GT(cuts, 3);
  EXPECT_GT(losses, 0);  // commits without sync were lost: the kills are not mere restarts
}

INSTANTIATE_TEST_SUITE_P(Seeds, CrashTest, ::testing::Values(1, 2, 3));

}  // namespace
}  // namespace mneme::memstore
