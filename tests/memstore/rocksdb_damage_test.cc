// Damage on the disk is told, never served, never hides acknowledged commits and never ends the
// process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rocksdb/db.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "memstore/record_codec.h"
#include "memstore/rocksdb_state_store.h"
#include "tests/memstore/store_testing.h"

namespace mneme::memstore {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<std::unique_ptr<StateStore>> Open(const std::string& path) {
  RocksDbOptions options;
  options.path = path;
  return OpenRocksDbStore(options);
}

std::string ChunkDbKey(char kind, const std::string& realm, const ChunkId& id) {
  return absl::StrCat(std::string(1, kind), realm, std::string(1, '\0'),
                      std::string(reinterpret_cast<const char*>(id.data()), id.size()));
}

std::string Hex(const ChunkId& id) {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(id.data()), id.size()));
}

// Changes the closed database by hand.
void Tamper(const std::string& path, const std::function<void(rocksdb::DB&)>& change) {
  std::filesystem::create_directories(path);
  rocksdb::Options options;
  options.create_if_missing = true;
  rocksdb::DB* raw = nullptr;
  const rocksdb::Status opened = rocksdb::DB::Open(options, path, &raw);
  ASSERT_TRUE(opened.ok()) << opened.ToString();
  const std::unique_ptr<rocksdb::DB> db(raw);
  change(*db);
}

std::string RawGet(rocksdb::DB& db, const std::string& key) {
  std::string value;
  EXPECT_TRUE(db.Get(rocksdb::ReadOptions(), key, &value).ok());
  return value;
}
void RawPut(rocksdb::DB& db, const std::string& key, const std::string& value) {
  EXPECT_TRUE(db.Put(rocksdb::WriteOptions(), key, value).ok());
}

std::string FormatValue(uint32_t format) {
  std::string value;
  const auto append = [&](uint32_t number) {
    for (int i = 0; i < 4; ++i) value.push_back(static_cast<char>(number >> (8 * i)));
  };
  append(format);
  append(Crc32c(Crc32c(0, "mformat"), value));
  return value;
}

TEST(RocksDbDamageTest, ADatabaseThatIsNotAStoreIsRefusedAndKept) {
  TempDirectory directory;
  Tamper(directory.path(), [](rocksdb::DB& db) { RawPut(db, "somebody's", "data"); });
  const auto store = Open(directory.path());
  EXPECT_TRUE(absl::IsFailedPrecondition(store.status())) << store.status();
  EXPECT_THAT(std::string(store.status().message()), HasSubstr("not a memstore"));
  EXPECT_THAT(std::string(store.status().message()), HasSubstr(directory.path()));
  Tamper(directory.path(), [](rocksdb::DB& db) { EXPECT_EQ(RawGet(db, "somebody's"), "data"); });
}

TEST(RocksDbDamageTest, AFileInPlaceOfTheDirectoryIsRefused) {
  TempDirectory directory;
  std::ofstream(directory.path()) << "a file";
  const auto store = Open(directory.path());
  EXPECT_TRUE(absl::IsUnavailable(store.status())) << store.status();
  EXPECT_THAT(std::string(store.status().message()), HasSubstr(directory.path()));
}

TEST(RocksDbDamageTest, OtherFormatsAreRefused) {
  TempDirectory directory;
  ASSERT_TRUE(Open(directory.path()).ok());
  Tamper(directory.path(), [](rocksdb::DB& db) {
    EXPECT_EQ(RawGet(db, "mformat"), FormatValue(kStoreFormat));
    RawPut(db, "mformat", FormatValue(kStoreFormat + 1));
  });
  const auto newer = Open(directory.path());
  EXPECT_TRUE(absl::IsFailedPrecondition(newer.status())) << newer.status();
  EXPECT_THAT(std::string(newer.status().message()), HasSubstr("a newer version wrote it"));

  for (const std::string& damaged :
       {std::string(), FormatValue(1).substr(0, 7), FormatValue(1) + '\0', std::string(8, '\0')}) {
    Tamper(directory.path(), [&](rocksdb::DB& db) { RawPut(db, "mformat", damaged); });
    const auto store = Open(directory.path());
    EXPECT_TRUE(absl::IsDataLoss(store.status())) << store.status();
  }
  Tamper(directory.path(),
         [](rocksdb::DB& db) { RawPut(db, "mformat", FormatValue(kStoreFormat)); });
  EXPECT_TRUE(Open(directory.path()).ok());
}

// Its records are counted once; from then on a start reads what the commits have written.
TEST(RocksDbDamageTest, FormatOneAndDamagedFiguresAreCounted) {
  TempDirectory directory;
  {
    auto store = Open(directory.path());
    ASSERT_TRUE(store.ok()) << store.status();
    ASSERT_TRUE((*store)->Commit(PutOf({"t", "a"}, 0, "1..", {MakeChunk("chunk")})).ok());
    ASSERT_TRUE((*store)->Commit(PutOf({"t", "b"}, 0, "2")).ok());
  }
  const std::vector<Total> two = {{"t", 1, 1, 3}, {"t", 2, 1, 1}};
  const auto expect = [&](StateStore& store, const std::vector<Total>& totals) {
    ASSERT_TRUE(store.KeepTotals(TallyOfLength).ok());
    EXPECT_EQ(*store.Totals(""), totals);
    EXPECT_EQ(store.Stats()->records, 2);
    EXPECT_EQ(store.Stats()->chunks, 1);
    EXPECT_EQ(store.Stats()->chunk_bytes, 5);
  };
  Tamper(directory.path(), [](rocksdb::DB& db) {
    RawPut(db, "mformat", FormatValue(1));
    ASSERT_TRUE(db.Delete(rocksdb::WriteOptions(), "mfigures").ok());
    RawPut(db, std::string("tgone\0001", 7), "of another time");
  });
  {
    auto store = Open(directory.path());
    ASSERT_TRUE(store.ok()) << store.status();
    expect(**store, two);
    ASSERT_TRUE((*store)->Commit(PutOf({"t", "b"}, 1, "2.")).ok());
  }
  const std::vector<Total> later = {{"t", 1, 1, 3}, {"t", 2, 1, 2}};
  Tamper(directory.path(), [](rocksdb::DB& db) {
    EXPECT_EQ(RawGet(db, "mformat"), FormatValue(kStoreFormat));
    std::string value;
    EXPECT_TRUE(db.Get(rocksdb::ReadOptions(), std::string("tgone\0001", 7), &value).IsNotFound());
    // Nobody reads the records: this one is of another kind, behind the store's back.
    const std::string key = std::string("rt\0a", 4);
    RawPut(db, key, EncodeRecord(key, {1, "3", {HashChunk("chunk")}, absl::InfiniteFuture()}));
  });
  {
    auto store = Open(directory.path());
    ASSERT_TRUE(store.ok()) << store.status();
    expect(**store, later);
  }
  for (const std::string& key : {std::string("mfigures"), std::string("tt\0002", 4)}) {
    Tamper(directory.path(), [&](rocksdb::DB& db) { RawPut(db, key, RawGet(db, key) + "."); });
    auto store = Open(directory.path());
    ASSERT_TRUE(store.ok()) << store.status();
    expect(**store, {{"t", 2, 1, 2}, {"t", 3, 1, 1}});
    // The next commit writes all of them anew.
    ASSERT_TRUE((*store)->Commit(PutOf({"t", "none"}, 0, "")).ok());
    ASSERT_TRUE((*store)->Commit(DeleteOf({"t", "none"}, 1)).ok());
  }
}

TEST(RocksDbDamageTest, ADamagedRecordIsNamedAndTheRestIsServed) {
  TempDirectory directory;
  const NewChunk chunk = MakeChunk("chunk bytes");
  {
    auto store = Open(directory.path());
    ASSERT_TRUE(store.ok()) << store.status();
    ASSERT_TRUE((*store)->Commit(PutOf({"t", "bad"}, 0, "value", {chunk})).ok());
    ASSERT_TRUE((*store)->Commit(PutOf({"t", "good"}, 0, "value", {chunk})).ok());
  }
  const std::string key = std::string("rt\0bad", 6);
  std::string intact, of_another;
  Tamper(directory.path(), [&](rocksdb::DB& db) {
    intact = RawGet(db, key);
    of_another = RawGet(db, std::string("rt\0good", 7));
  });
  std::vector<std::string> damages = {"",
                                      "x",
                                      intact + "x",
                                      intact.substr(0, intact.size() - 1),
                                      std::string(intact.size(), '\0'),
                                      of_another};
  for (size_t i = 0; i < intact.size(); i += 9) {
    damages.push_back(intact);
    damages.back()[i] ^= 1 << (i % 8);
  }
  for (size_t i = 0; i < damages.size(); ++i) {
    SCOPED_TRACE(absl::StrCat("damage ", i));
    Tamper(directory.path(), [&](rocksdb::DB& db) { RawPut(db, key, damages[i]); });
    auto store = Open(directory.path());
    ASSERT_TRUE(store.ok()) << store.status();
    const absl::Status statuses[] = {
        (*store)->Get({"t", "bad"}).status(),
        (*store)->List({"t", "", "", 10}).status(),
        (*store)->Commit(PutOf({"t", "bad"}, 1, "new")),
        (*store)->Commit(DeleteOf({"t", "bad"}, 1)),
    };
    for (const absl::Status& status : statuses) {
      EXPECT_TRUE(absl::IsDataLoss(status)) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("t/bad"));
    }
    EXPECT_EQ((*store)->Get({"t", "good"})->value, "value");
    EXPECT_EQ(*(*store)->GetChunk("t", chunk.id), chunk.bytes);
  }
}

TEST(RocksDbDamageTest, ADamagedReferenceIsNamedAndTheRestIsServed) {
  TempDirectory directory;
  const NewChunk chunk = MakeChunk("chunk bytes"), other = MakeChunk("other bytes");
  {
    auto store = Open(directory.path());
    ASSERT_TRUE(store.ok()) << store.status();
    ASSERT_TRUE((*store)->Commit(PutOf({"t", "s"}, 0, "value", {chunk})).ok());
  }
  const std::string key = ChunkDbKey('f', "t", chunk.id);
  const std::vector<std::string> damages = {"", "x", std::string(21, '\0'),
                                            EncodeReference("another key", {1, chunk.bytes.size()}),
                                            EncodeReference(key, {0, chunk.bytes.size()})};
  for (size_t i = 0; i <= damages.size(); ++i) {
    SCOPED_TRACE(absl::StrCat("damage ", i));
    Tamper(directory.path(), [&](rocksdb::DB& db) {
      if (i < damages.size()) {
        RawPut(db, key, damages[i]);
      } else {
        EXPECT_TRUE(db.Delete(rocksdb::WriteOptions(), key).ok());  // lost altogether
      }
    });
    auto store = Open(directory.path());
    ASSERT_TRUE(store.ok()) << store.status();
    const absl::Status deleted = (*store)->Commit(DeleteOf({"t", "s"}, 1));
    EXPECT_TRUE(absl::IsDataLoss(deleted)) << deleted;
    EXPECT_THAT(std::string(deleted.message()), HasSubstr(Hex(chunk.id)));
    EXPECT_EQ((*store)->Get({"t", "s"})->version, 1);  // nothing happened
    EXPECT_EQ(*(*store)->GetChunk("t", chunk.id), chunk.bytes);
    const std::string name = absl::StrCat("other", i);
    EXPECT_TRUE((*store)->Commit(PutOf({"t", name}, 0, "v", {other})).ok());
    EXPECT_EQ(*(*store)->GetChunk("t", other.id), other.bytes);
  }
}

TEST(RocksDbDamageTest, AMalformedIndexEntryIsDataLoss) {
  TempDirectory directory;
  ASSERT_TRUE(Open(directory.path()).ok());
  Tamper(directory.path(), [](rocksdb::DB& db) { RawPut(db, "xshort", ""); });
  auto store = Open(directory.path());
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_TRUE(absl::IsDataLoss((*store)->Expired(absl::InfiniteFuture(), 10).status()));
}

// The one log of a directory.
std::string LogOf(const std::string& path) {
  std::string found;
  for (const auto& file : std::filesystem::directory_iterator(path)) {
    if (file.path().extension() != ".log") continue;
    EXPECT_EQ(found, "") << "two logs";
    found = file.path();
  }
  return found;
}

std::string ReadFile(const std::string& name) {
  std::ifstream file(name, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

class LogDamageTest : public ::testing::Test {
 protected:
  static constexpr int kCommits = 60;

  // The directory as a kill would leave it, with all commits in the log only.
  void MakeImage(bool sync, std::chrono::milliseconds pause) {
    auto store = Open(directory_.path());
    ASSERT_TRUE(store.ok()) << store.status();
    for (int i = 0; i < kCommits; ++i) {
      Transaction put = PutOf({"t", absl::StrCat("s", i)}, 0, Value(i));
      put.sync = sync;
      ASSERT_TRUE((*store)->Commit(put).ok());
    }
    std::this_thread::sleep_for(pause);
    std::filesystem::copy(directory_.path(), image_);
    log_ = ReadFile(LogOf(image_));
    ASSERT_GT(log_.size(), 64u << 10);
  }
  static std::string Value(int i) {
    return std::string(50 + 97 * (i % 50), static_cast<char>('a' + i % 26));
  }
  void SetLog(const std::string& bytes) {
    std::filesystem::remove_all(path_);
    std::filesystem::copy(image_, path_);
    std::ofstream(LogOf(path_), std::ios::binary) << bytes;
  }
  // How many commits are there; they must be the first ones.
  static int CountPrefix(const StateStore& store) {
    int count = 0;
    while (store.Get({"t", absl::StrCat("s", count)}).ok()) ++count;
    EXPECT_EQ(store.Stats()->records, count);
    for (int i = 0; i < count; ++i) {
      EXPECT_EQ(store.Get({"t", absl::StrCat("s", i)})->value, Value(i));
    }
    return count;
  }

  TempDirectory directory_;
  const std::string image_ = directory_.path() + ".image";
  const std::string path_ = directory_.path() + ".copy";
  std::string log_;
};

TEST_F(LogDamageTest, AFlippedByteNeverHidesASyncedCommit) {
  MakeImage(/*sync=*/true, std::chrono::milliseconds(1200));  // with the keeper's mark
  if (HasFatalFailure()) return;
  int refused = 0;
  for (size_t i = 0; i < log_.size(); i += 1 + log_.size() / 60) {
    SCOPED_TRACE(absl::StrCat("byte ", i, " of ", log_.size()));
    std::string damaged = log_;
    damaged[i] ^= 0x10;
    SetLog(damaged);
    for (int attempt = 0; attempt < 2; ++attempt) {  // a refusal changes nothing
      const auto store = Open(path_);
      if (store.ok()) {
        EXPECT_EQ(CountPrefix(**store), kCommits);
      } else {
        EXPECT_TRUE(absl::IsDataLoss(store.status())) << store.status();
        EXPECT_THAT(std::string(store.status().message()), HasSubstr("write-ahead log"));
        EXPECT_THAT(std::string(store.status().message()), HasSubstr(path_));
        ++refused;
        EXPECT_EQ(ReadFile(LogOf(path_)), damaged);
      }
    }
  }
  EXPECT_GT(refused, 100);
  SetLog(log_);
  const auto store = Open(path_);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ(CountPrefix(**store), kCommits);
}

TEST_F(LogDamageTest, ATornTailOfUnsyncedCommitsIsNoDamage) {
  MakeImage(/*sync=*/false, std::chrono::milliseconds(0));
  if (HasFatalFailure()) return;
  int last = -1;
  for (int i = 0; i < 20; ++i) {
    const size_t kept = log_.size() * i / 20 + i;
    for (const bool zeros : {false, true}) {  // cut, or as long as before with nothing written
      std::string torn = log_.substr(0, kept);
      if (zeros) torn.resize(log_.size());
      SetLog(torn);
      const auto store = Open(path_);
      ASSERT_TRUE(store.ok()) << kept << ": " << store.status();
      const int count = CountPrefix(**store);
      EXPECT_GE(count, last);
      last = count;
    }
  }
  EXPECT_GT(last, kCommits / 2);
}

}  // namespace
}  // namespace mneme::memstore
