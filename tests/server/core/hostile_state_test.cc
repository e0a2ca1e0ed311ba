// Exported and stored sessions that somebody has changed, at random, with every checksum made right
// again or not. Nothing may crash; what is refused is refused with its reason and leaves nothing
// behind; and another session of the same server goes on bit for bit as if nothing had been.
//
//   server_core_hostile_state_test --mutations 1000000 --seed 7
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/stubs/logging.h"
#include "server/core/errors.h"
#include "tests/server/core/session_file_testing.h"

namespace mneme::server {
namespace {

int mutations = 2000;
uint64_t seed = 20261130;

constexpr size_t kPreambleBytes = 16;
constexpr size_t kDigestBytes = 32;

class Mutator {
 public:
  explicit Mutator(uint64_t first) : random_(first) {}

  size_t Below(size_t n) { return n == 0 ? 0 : random_() % n; }

  // One to four changes within `size` bytes from `at` on; their number may change.
  void Change(std::string& bytes, size_t at, size_t size) {
    for (size_t i = 1 + Below(4); i > 0 && size > 0; --i) size = ChangeOnce(bytes, at, size);
  }
  void Change(std::string& bytes) { Change(bytes, 0, bytes.size()); }
  // As many as before.
  void ChangeInPlace(std::string& bytes) {
    const size_t size = bytes.size();
    Change(bytes);
    bytes.resize(size);
  }

 private:
  size_t ChangeOnce(std::string& bytes, size_t at, size_t size) {
    const size_t where = at + Below(size);
    const size_t room = at + size - where;
    switch (Below(6)) {
      case 0:
        bytes[where] = static_cast<char>(bytes[where] ^ (1 << Below(8)));
        return size;
      case 1:
        bytes[where] = static_cast<char>(random_());
        return size;
      case 2: {  // a number that code tends not to expect: of counts, of positions, of floats
        static constexpr uint64_t kNumbers[] = {0,
                                                1,
                                                0xFF,
                                                0x7FFFFFFF,
                                                0x80000000,
                                                0xFFFFFFFF,
                                                0x7FFFFFFFFFFFFFFF,
                                                ~uint64_t{0},
                                                uint64_t{1} << 40,
                                                1 << 20,
                                                (1 << 20) + 1,  // sizes
                                                0x7FC00000,
                                                0x7F800000,
                                                0x7F7FFFFF,  // f32
                                                0x7E00,
                                                0x7C00,
                                                0xFC00};
        const uint64_t number = kNumbers[Below(std::size(kNumbers))];
        std::memcpy(bytes.data() + where, &number, std::min(room, size_t{1} << Below(4)));
        return size;
      }
      case 3: {
        const size_t count = 1 + Below(std::min(room, size_t{64}));
        bytes.erase(where, count);
        return size - count;
      }
      case 4: {
        const size_t count = 1 + Below(64);
        bytes.insert(where, count, static_cast<char>(random_()));
        return size + count;
      }
      default: {  // again what is there
        const std::string again = bytes.substr(where, 1 + Below(std::min(room, size_t{64})));
        bytes.insert(where, again);
        return size + again.size();
      }
    }
  }

  std::mt19937_64 random_;
};

// Length, at `length_at`, and checksum at the end made right: of a file's header and of a manifest.
void Seal(std::string& part, size_t length_at) {
  if (part.size() < length_at + 8) return;
  const auto total = static_cast<uint32_t>(part.size());
  std::memcpy(part.data() + length_at, &total, sizeof(total));
  const uint32_t crc =
      engine::Crc32c(std::string_view(part).substr(0, part.size() - sizeof(total)));
  std::memcpy(part.data() + part.size() - sizeof(crc), &crc, sizeof(crc));
}

class HostileStateTest : public CoreTest {
 protected:
  // A server of `model` with the session "a", which others must not change.
  void Begin(const std::string& model) {
    config.models = {{"tiny", absl::StrCat(MNEME_TINY_DIR, "/", model)}};
    store = std::make_shared<TestStore::Shared>();
    Start();
    Create("a");
    Say("a", "Once upon a time", 20);
    Say("a", " there was", 30);
    expected_ = Continued();
    auto file = ExportFrom(*core, Name("a"));
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = *file;
    parts_ = FileInParts::Of(file_);
  }
  // What "a" would say next, with its bits.
  std::string Continued() {
    CallContext context;
    v1::ForkSessionRequest fork;
    fork.set_name(Name("a"));
    fork.add_session_ids("next");
    auto forked = core->ForkSession(context, fork);
    EXPECT_TRUE(forked.ok()) << forked.status();
    v1::GenerateRequest request = Request("next", " and then", 6);
    request.set_logprobs(2);
    const CollectingSink said = MustGenerate(request);
    Purge("next");
    std::string all = said.text;
    for (const v1::Logprobs& logprobs : said.logprobs) all += logprobs.SerializeAsString();
    return all;
  }
  void Purge(const std::string& id) {
    CallContext context;
    v1::DeleteSessionRequest request;
    request.set_name(Name(id));
    request.set_purge(true);
    const auto deleted = core->DeleteSession(context, request);
    EXPECT_TRUE(deleted.ok()) << deleted.status();
  }
  // A turn of a session that may be anything: it answers.
  absl::Status Turn(const std::string& id) {
    CollectingSink sink;
    const absl::Status status = Generate(Request(id, " so", 2), sink);
    EXPECT_EQ(status.ok(), sink.has_final);
    EXPECT_TRUE(status.ok() || !ReasonOf(status).empty()) << status;
    return status;
  }
  void ReportTrials(int count, int taken) {
    RecordProperty("trials", count);
    const std::string figure =
        absl::StrCat(taken, " of ", count, " were taken, and answered a turn; 0 crashes");
    RecordProperty("figure", figure);
    std::printf("%s\n", figure.c_str());
  }

  std::string MutatedFile(Mutator& mutator);

  std::string expected_, file_;
  FileInParts parts_;
};

std::string HostileStateTest::MutatedFile(Mutator& mutator) {
  const std::string header = parts_.header.Serialize();
  const size_t body = kPreambleBytes + header.size();
  const auto assemble = [&](const std::string& new_header) {
    std::string file = file_.substr(0, kPreambleBytes) + new_header +
                       file_.substr(body, file_.size() - kDigestBytes - body);
    Sha256Stream hash;
    hash.Update(file);
    return file + hash.Digest();
  };
  FileInParts parts = parts_;
  switch (mutator.Below(6)) {
    case 0: {  // as a disk or a cable does it
      std::string file = file_;
      mutator.Change(file);
      return file;
    }
    case 1: {
      std::string bad = header;
      mutator.Change(bad);
      Seal(bad, 0);
      return assemble(bad);
    }
    case 2: {
      std::string manifest = parts.header.point.manifest();
      mutator.Change(manifest, 16, manifest.size() - 20);
      Seal(manifest, 12);
      parts.header.point.set_manifest(manifest);
      return assemble(parts.header.Serialize());
    }
    case 3:
      parts.EditManifest([&](engine::SnapshotManifest& manifest) {
        std::vector<engine::SnapshotChunk>& chunks = manifest.chunks;
        const size_t i = mutator.Below(chunks.size()), j = mutator.Below(chunks.size());
        switch (mutator.Below(4)) {
          case 0:
            std::swap(chunks[i], chunks[j]);
            break;
          case 1:
            chunks[i].hash = chunks[j].hash;
            break;
          case 2:
            chunks.erase(chunks.begin() + static_cast<std::ptrdiff_t>(i));
            break;
          default:
            manifest.position += static_cast<int64_t>(mutator.Below(9)) - 4;
        }
      });
      return assemble(parts.header.Serialize());
    case 4: {
      const auto& chunks = parts.header.manifest->chunks;
      parts.EditStateChunk(chunks[mutator.Below(chunks.size())].kind,
                           [&](std::string& bytes) { mutator.ChangeInPlace(bytes); });
      return parts.File();
    }
    default:
      parts.EditTranscriptChunk([&](std::vector<int32_t>& ids, storage::StoredTurns& turns) {
        if (mutator.Below(2) == 0) {
          ids[mutator.Below(ids.size())] = static_cast<int32_t>(mutator.Below(1 << 20)) - 1000;
          return;
        }
        std::string bytes = turns.SerializeAsString();
        mutator.Change(bytes);
        storage::StoredTurns changed;
        if (changed.ParseFromString(bytes)) turns = changed;
      });
      return parts.File();
  }
}

TEST_F(HostileStateTest, FilesOfOthersHarmNobody) {
  Mutator mutator(seed);
  int done = 0, taken = 0;
  for (const char* model : {"tiny-llama-q.gguf", "tiny-rwkv7-a", "tiny-infini-delta"}) {
    SCOPED_TRACE(model);
    ASSERT_NO_FATAL_FAILURE(Begin(model));
    const auto before = *store->store->Stats();
    for (const int end = done + mutations / 3; done < end && !HasFailure(); ++done) {
      SCOPED_TRACE(absl::StrCat("mutation ", done));
      const std::string file = MutatedFile(mutator);
      const auto imported = ImportInto(*core, "b", file);
      if (imported.ok()) {
        ++taken;
        Turn("b").IgnoreError();
        Purge("b");
      } else {
        EXPECT_FALSE(ReasonOf(imported.status()).empty()) << imported.status();
        EXPECT_TRUE(absl::IsInvalidArgument(imported.status()) ||
                    absl::IsFailedPrecondition(imported.status()))
            << imported.status();
      }
      if (done % 256 != 0) continue;
      EXPECT_EQ(Continued(), expected_);
      EXPECT_EQ(store->store->Stats()->records, before.records);
      EXPECT_EQ(store->store->Stats()->chunks, before.chunks);
    }
    EXPECT_EQ(Continued(), expected_);
    EXPECT_EQ(store->store->Stats()->chunks, before.chunks);
    EXPECT_TRUE(Turn("a").ok());
  }
  EXPECT_GT(taken, 0);
  ReportTrials(done, taken);
}

// As if the database were somebody else's. Chunks are still what their ids say: the store checks.
TEST_F(HostileStateTest, StoredSessionsOfOthersHarmNobody) {
  Mutator mutator(seed + 1);
  int done = 0, taken = 0;
  for (const char* model : {"tiny-llama-q.gguf", "tiny-rwkv7-a", "tiny-infini-delta"}) {
    SCOPED_TRACE(model);
    ASSERT_NO_FATAL_FAILURE(Begin(model));
    const memstore::Record good = *store->store->Get({"default", "sessions/a"});
    storage::StoredSession session;
    ASSERT_TRUE(session.ParseFromString(good.value));
    for (const int end = done + mutations / 3; done < end && !HasFailure(); ++done) {
      SCOPED_TRACE(absl::StrCat("mutation ", done));
      // Under changing names, since a state in memory is not read again.
      const std::string id = absl::StrCat("b", done % 16);
      const memstore::Key key{"default", absl::StrCat("sessions/", id)};
      memstore::Put put{.key = key, .value = good.value, .chunks = good.chunks};
      if (const auto there = store->store->Get(key); there.ok()) {
        put.expected_version = there->version;
      }
      std::vector<memstore::NewChunk> chunks;
      switch (mutator.Below(3)) {
        case 0:
          mutator.Change(put.value);
          break;
        case 1: {
          storage::StoredSession bad = session;
          std::string& manifest = *bad.mutable_head()->mutable_manifest();
          mutator.Change(manifest, 16, manifest.size() - 20);
          Seal(manifest, 12);
          put.value = bad.SerializeAsString();
          break;
        }
        default: {
          storage::StoredSession bad = session;
          FileInParts parts = parts_;
          const auto& all = parts.header.manifest->chunks;
          parts.EditStateChunk(all[mutator.Below(all.size())].kind,
                               [&](std::string& bytes) { mutator.ChangeInPlace(bytes); });
          bad.mutable_head()->set_manifest(parts.header.point.manifest());
          put.value = bad.SerializeAsString();
          for (const auto& [hash, bytes] : parts.chunks) {
            if (parts_.chunks.contains(hash)) continue;
            chunks.push_back({hash, bytes});
            put.chunks.push_back(hash);
          }
        }
      }
      ASSERT_TRUE(store->store->Commit({.puts = {put}, .new_chunks = chunks}).ok());
      TryGet(id).IgnoreError();
      taken += Turn(id).ok();
      ExportFrom(*core, Name(id)).IgnoreError();
      CallContext context;
      v1::ReadTranscriptRequest read;
      read.set_name(Name(id));
      core->ReadTranscript(context, read).IgnoreError();
      v1::RewindSessionRequest rewind;
      rewind.set_name(Name(id));
      rewind.set_position_tokens(3);
      core->RewindSession(context, rewind).IgnoreError();
      if (done % 256 != 0) continue;
      v1::ListSessionsRequest list;
      list.set_parent("tenants/default");
      EXPECT_TRUE(core->ListSessions(context, list).ok());
      EXPECT_EQ(Continued(), expected_);
    }
    EXPECT_EQ(Continued(), expected_);
    EXPECT_TRUE(Turn("a").ok());
  }
  EXPECT_GT(taken, 0);
  ReportTrials(done, taken);
}

bool ParseArguments(int argc, char** argv) {
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const bool good = name == "--mutations" ? absl::SimpleAtoi(argv[i + 1], &mutations)
                      : name == "--seed"    ? absl::SimpleAtoi(argv[i + 1], &seed)
                                            : false;
    if (!good) return false;
  }
  return argc % 2 == 1 && mutations >= 3;
}

}  // namespace
}  // namespace mneme::server

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  google::protobuf::SetLogHandler(nullptr);  // which tells of every record that it cannot read
  if (!mneme::server::ParseArguments(argc, argv)) {
    std::fprintf(stderr, "usage: %s [--mutations N] [--seed S]\n", argv[0]);
    return 2;
  }
  return RUN_ALL_TESTS();
}
