// What only the embedded store promises: one owner, damage is told, kill -9 loses nothing.
#include "memstore/rocksdb_state_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/memstore/store_testing.h"

namespace mneme::memstore {
namespace {

std::unique_ptr<StateStore> MustOpen(const std::string& path) {
  RocksDbOptions options;
  options.path = path;
  auto store = OpenRocksDbStore(options);
  EXPECT_TRUE(store.ok()) << store.status();
  return store.ok() ? *std::move(store) : nullptr;
}

TEST(RocksDbStateStoreTest, ASecondOpenIsRefused) {
  TempDirectory directory;
  auto store = MustOpen(directory.path());
  RocksDbOptions options;
  options.path = directory.path();
  const auto second = OpenRocksDbStore(options);
  EXPECT_TRUE(absl::IsUnavailable(second.status())) << second.status();
  EXPECT_THAT(std::string(second.status().message()), ::testing::HasSubstr("another process"));
  store.reset();
  EXPECT_NE(MustOpen(directory.path()), nullptr);
}

TEST(RocksDbStateStoreTest, AFlippedByteInAChunkIsDataLoss) {
  TempDirectory directory;
  const NewChunk chunk = MakeChunk(std::string(100000, 'q'));
  {
    auto store = MustOpen(directory.path());
    ASSERT_TRUE(store->Commit(PutOf({"t", "s"}, 0, "v", {chunk})).ok());
  }  // closing flushes it to a blob file
  int flipped = 0;
  for (const auto& file : std::filesystem::directory_iterator(directory.path())) {
    if (file.path().extension() != ".blob") continue;
    std::fstream stream(file.path(), std::ios::in | std::ios::out | std::ios::binary);
    stream.seekp(50000);
    stream.put('Q');
    ++flipped;
  }
  ASSERT_EQ(flipped, 1);
  auto store = MustOpen(directory.path());
  const auto bytes = store->GetChunk("t", chunk.id);
  EXPECT_TRUE(absl::IsDataLoss(bytes.status())) << bytes.status();
  EXPECT_EQ(store->Get({"t", "s"})->value, "v");  // the rest is served
  EXPECT_TRUE(store->Commit(DeleteOf({"t", "s"}, 1)).ok());
}

TEST(RocksDbStateStoreTest, AFullDiskRefusesGrowthAndKeepsReadingAndDeleting) {
  TempDirectory directory;
  {
    auto store = MustOpen(directory.path());
    ASSERT_TRUE(store->Commit(PutOf({"t", "s"}, 0, "v")).ok());
  }
  RocksDbInternalOptions options;
  options.store.path = directory.path();
  options.min_free_bytes = uint64_t{1} << 62;  // no disk has this much
  auto store = OpenRocksDbStoreInternal(options);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_TRUE(absl::IsResourceExhausted((*store)->Commit(PutOf({"t", "new"}, 0, "w"))));
  EXPECT_TRUE(absl::IsResourceExhausted(
      (*store)->Commit(PutOf({"t", "s"}, 1, "w", {MakeChunk("more bytes")}))));
  EXPECT_EQ((*store)->Get({"t", "s"})->value, "v");
  // A mark in a record, such as "deleted", is a way to make room.
  EXPECT_TRUE((*store)->Commit(PutOf({"t", "s"}, 1, "w")).ok());
  EXPECT_TRUE((*store)->Commit(DeleteOf({"t", "s"}, 2)).ok());
}

// Not a test: what the process to be killed does.
TEST(RocksDbStateStoreTest, DISABLED_CommitUntilKilled) {
  if (!getenv("MNEME_TEST_STORE")) GTEST_SKIP() << "only started by the next test";
  const int round = atoi(getenv("MNEME_TEST_ROUND"));
  const int acks = atoi(getenv("MNEME_TEST_ACKS"));
  auto store = MustOpen(getenv("MNEME_TEST_STORE"));
  if (!store) _exit(1);
  for (int i = 0;; ++i) {
    const std::string text = absl::StrCat("round ", round, " commit ", i);
    Transaction put = PutOf({"t", text}, 0, text, {MakeChunk(text + std::string(70000, 'x'))});
    put.sync = i % 2 == 0;  // a kill loses no page cache either
    if (!store->Commit(put).ok()) _exit(2);
    if (write(acks, &i, sizeof(i)) != sizeof(i)) _exit(3);
  }
}

TEST(RocksDbStateStoreTest, KillLosesNothingAcknowledged) {
  TempDirectory directory;
  for (int round = 0; round < 5; ++round) {
    int acks[2];
    ASSERT_EQ(pipe(acks), 0);
    setenv("MNEME_TEST_STORE", directory.path().c_str(), 1);
    setenv("MNEME_TEST_ROUND", absl::StrCat(round).c_str(), 1);
    setenv("MNEME_TEST_ACKS", absl::StrCat(acks[1]).c_str(), 1);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      close(acks[0]);
      // Nothing but exec: threads of a forked process that had threads confuse ThreadSanitizer.
      execl("/proc/self/exe", "kill_child", "--gtest_also_run_disabled_tests",
            "--gtest_filter=RocksDbStateStoreTest.DISABLED_CommitUntilKilled", nullptr);
      _exit(4);
    }
    close(acks[1]);
    int last = -1, number = 0;
    while (last < 20 + 7 * round && read(acks[0], &number, sizeof(number)) == sizeof(number)) {
      last = number;
    }
    kill(child, SIGKILL);
    while (read(acks[0], &number, sizeof(number)) == sizeof(number)) last = number;
    close(acks[0]);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "child ended by itself: " << WEXITSTATUS(status);
    ASSERT_GE(last, 20);
    auto store = MustOpen(directory.path());
    ASSERT_NE(store, nullptr);
    for (int i = 0; i <= last; ++i) {
      const std::string text = absl::StrCat("round ", round, " commit ", i);
      const auto record = store->Get({"t", text});
      ASSERT_TRUE(record.ok()) << record.status();
      ASSERT_EQ(record->value, text);
      const auto chunk = store->GetChunk("t", record->chunks[0]);
      ASSERT_TRUE(chunk.ok()) << chunk.status();
    }
  }
}

}  // namespace
}  // namespace mneme::memstore
