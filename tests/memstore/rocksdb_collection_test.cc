// The bytes of deleted chunks return to the disk while commits go on, and no live chunk suffers.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "memstore/rocksdb_state_store.h"
#include "tests/memstore/store_testing.h"

namespace mneme::memstore {
namespace {

constexpr size_t kChunkBytes = 100'000;  // goes to blob files
constexpr int kRecords = 40, kGenerations = 10;

NewChunk ChunkOf(const std::string& name, int generation) {
  std::string bytes = absl::StrCat(name, " generation ", generation, " ");
  bytes.resize(kChunkBytes, static_cast<char>('a' + generation % 26));
  return MakeChunk(std::move(bytes));
}

uint64_t BlobBytes(const std::string& path) {
  uint64_t bytes = 0;
  for (const auto& file : std::filesystem::directory_iterator(path)) {
    std::error_code gone;  // a file may be deleted meanwhile
    const uint64_t size =
        file.path().extension() == ".blob" ? std::filesystem::file_size(file.path(), gone) : 0;
    if (!gone) bytes += size;
  }
  return bytes;
}

RocksDbInternalOptions SmallOptions(const std::string& path) {
  RocksDbInternalOptions options;
  options.store.path = path;
  options.write_buffer_bytes = 1 << 20;
  options.gc_floor_bytes = 1 << 20;
  options.sync_periods_per_gc_check = 1;
  return options;
}

std::unique_ptr<StateStore> MustOpen(const RocksDbInternalOptions& options) {
  auto store = OpenRocksDbStoreInternal(options);
  EXPECT_TRUE(store.ok()) << store.status();
  return store.ok() ? *std::move(store) : nullptr;
}

// The chunks that the record of `name` refers to: the one of its generation and, for every fourth
// name, one more for each generation so far. So nearly every blob file holds a live chunk, and
// RocksDB, which deletes wholly dead ones by itself, is not what frees the space.
std::vector<NewChunk> ChunksOf(const std::string& name, int number, int generation) {
  std::vector<NewChunk> chunks = {ChunkOf(name, generation)};
  for (int past = 0; number % 4 == 0 && past <= generation; ++past) {
    chunks.push_back(ChunkOf(name + " kept", past));
  }
  return chunks;
}
constexpr uint64_t LiveChunks(int count, int generations) {
  return count + (count + 3) / 4 * generations;
}

void WriteGenerations(StateStore& store, const std::string& prefix, int count, int generations) {
  for (int generation = 0; generation < generations; ++generation) {
    for (int i = 0; i < count; ++i) {
      const std::string name = absl::StrCat(prefix, i);
      Transaction put =
          PutOf({"t", name}, generation, absl::StrCat(generation), ChunksOf(name, i, generation));
      put.sync = i % 8 == 0;
      const absl::Status status = store.Commit(put);
      ASSERT_TRUE(status.ok()) << status;
    }
  }
}

void ExpectGeneration(const StateStore& store, const std::string& prefix, int count,
                      int generation) {
  for (int i = 0; i < count; ++i) {
    const std::string name = absl::StrCat(prefix, i);
    const auto record = store.Get({"t", name});
    ASSERT_TRUE(record.ok()) << record.status();
    ASSERT_EQ(record->value, absl::StrCat(generation));
    for (const NewChunk& chunk : ChunksOf(name, i, generation)) {
      const auto bytes = store.GetChunk("t", chunk.id);
      ASSERT_TRUE(bytes.ok()) << bytes.status();
      ASSERT_TRUE(*bytes == chunk.bytes);
    }
    EXPECT_TRUE(absl::IsNotFound(store.GetChunk("t", ChunkOf(name, generation - 1).id).status()));
  }
}

// What is live, as much again, the floor, and what the churn of the test and the memtables hold.
constexpr uint64_t kEnough = 2 * LiveChunks(kRecords, kGenerations) * kChunkBytes + (4 << 20);

TEST(RocksDbCollectionTest, WithoutACheckDeadBytesStay) {
  // So the next test passes because of the collection, not of RocksDB's ordinary compaction.
  TempDirectory directory;
  RocksDbInternalOptions options = SmallOptions(directory.path());
  options.sync_periods_per_gc_check = 1 << 30;
  auto store = MustOpen(options);
  ASSERT_NE(store, nullptr);
  WriteGenerations(*store, "s", kRecords, kGenerations);
  std::this_thread::sleep_for(std::chrono::seconds(2));
  EXPECT_GT(BlobBytes(directory.path()), kEnough + kEnough / 8);
}

TEST(RocksDbCollectionTest, DeadBytesReturnWhileCommitsGoOn) {
  TempDirectory directory;
  auto store = MustOpen(SmallOptions(directory.path()));
  ASSERT_NE(store, nullptr);
  std::atomic<bool> stop{false};
  int churned = 0;
  std::thread churn([&] {
    for (; !stop && !::testing::Test::HasFatalFailure(); ++churned) {
      // Each round creates, replaces and deletes.
      const std::string prefix = absl::StrCat("churn", churned, "-");
      WriteGenerations(*store, prefix, 2, 2);
      ExpectGeneration(*store, prefix, 2, 1);
      for (int i = 0; i < 2; ++i) {
        EXPECT_TRUE(store->Commit(DeleteOf({"t", absl::StrCat(prefix, i)}, 2)).ok());
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  });
  WriteGenerations(*store, "s", kRecords, kGenerations);
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (BlobBytes(directory.path()) > kEnough && std::chrono::steady_clock::now() < give_up) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  EXPECT_LE(BlobBytes(directory.path()), kEnough);
  ExpectGeneration(*store, "s", kRecords, kGenerations - 1);
  stop = true;
  churn.join();
  EXPECT_GT(churned, 0);
  const auto stats = store->Stats();
  EXPECT_EQ(stats->records, kRecords);
  EXPECT_EQ(stats->chunks, LiveChunks(kRecords, kGenerations));

  // With all deleted, nearly all returns.
  for (int i = 0; i < kRecords; ++i) {
    ASSERT_TRUE(store->Commit(DeleteOf({"t", absl::StrCat("s", i)}, kGenerations)).ok());
  }
  while (BlobBytes(directory.path()) > (2u << 20) && std::chrono::steady_clock::now() < give_up) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  EXPECT_LE(BlobBytes(directory.path()), 2u << 20);
}

TEST(RocksDbCollectionTest, ClosingDoesNotWaitAndLosesNothing) {
  TempDirectory directory;
  for (int round = 0; round < 3; ++round) {
    auto store = MustOpen(SmallOptions(directory.path()));
    ASSERT_NE(store, nullptr);
    const std::string prefix = absl::StrCat("round", round, "-");
    WriteGenerations(*store, prefix, 20, 4);
    std::this_thread::sleep_for(std::chrono::milliseconds(400 + 60 * round));
    store.reset();  // perhaps in the middle of a collection
    store = MustOpen(SmallOptions(directory.path()));
    ASSERT_NE(store, nullptr);
    for (int past = 0; past <= round; ++past) {
      ExpectGeneration(*store, absl::StrCat("round", past, "-"), 20, 3);
    }
  }
}

}  // namespace
}  // namespace mneme::memstore
