// Snapshots: what comes back equals what was kept, at any position, through any chain of bases, and
// a turn writes only what it added. Hostile manifests and chunks are refused by name.
#include "engine/state/snapshot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <map>
#include <random>

#include "engine/state/state_layout.h"

namespace mneme::engine {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kHidden = 11;

StateSchema MakeSchema(int64_t sinks, int64_t window, int64_t width = 24) {
  return StateSchema({
      {.layer = -1, .name = "sum", .dtype = DType::kF32, .shape = {7}},
      {.layer = 0,
       .name = "k",
       .dtype = DType::kF16,
       .shape = {sinks + window, width},
       .kind = StateKind::kRing,
       .sinks = sinks,
       .window = window},
      {.layer = 0,
       .name = "v",
       .dtype = DType::kF32,
       .shape = {sinks + window, 3},
       .kind = StateKind::kRing,
       .sinks = sinks,
       .window = window},
      // A second class: another window in the same model.
      {.layer = 1,
       .name = "k",
       .dtype = DType::kF32,
       .shape = {sinks + 2 * window, 5},
       .kind = StateKind::kRing,
       .sinks = sinks,
       .window = 2 * window},
  });
}

SnapshotIdentity Identity() {
  return {
      .architecture = "toy", .model_fingerprint = std::string(32, 'f'), .numerics_id = "test/1"};
}

// A pretend model: every row is a function of its position, the fixed tensor of all that was read.
class Sequence {
 public:
  explicit Sequence(const StateSchema& schema) : schema_(schema), layout_(schema) {
    state_.block = HostMemory().Allocate(schema.size_bytes());
  }

  void Feed(int64_t count) {
    StatePool(HostMemory(), schema_).Reserve(state_, count);
    for (; count > 0; --count, ++state_.position) {
      const int64_t p = state_.position;
      for (const RingClass& ring : layout_.rings) {
        for (const StateTensor* tensor : ring.tensors) {
          const bool paged = tensor->kind == StateKind::kPaged;
          std::byte* row = (paged ? state_.pages[p / kPageTokens].data() : state_.block.data()) +
                           tensor->offset_bytes +
                           (paged ? p % kPageTokens : ring.RowOf(p)) * tensor->row_bytes();
          for (size_t i = 0; i < tensor->row_bytes(); ++i) {
            // 0x3B as high byte keeps f16 and f32 finite.
            row[i] = i % 2 == 1 ? std::byte{0x3B}
                                : static_cast<std::byte>(p * 31 + i * 7 + (p >> 8) * (i + 1));
          }
        }
      }
      float* sum = state_.block.as<float>(schema_.tensors()[0].offset_bytes);
      for (int i = 0; i < 7; ++i) sum[i] = sum[i] * 0.5f + static_cast<float>(p + i);
      state_.hidden.resize(kHidden);
      for (int64_t i = 0; i < kHidden; ++i) state_.hidden[i] = static_cast<float>(p * i);
    }
  }

  const State& state() const { return state_; }
  State& state() { return state_; }

 private:
  const StateSchema& schema_;
  StateLayout layout_;
  State state_;
};

// A fixed tensor, and keys and values of every position.
StateSchema PagedSchema(int64_t limit, int64_t width) {
  std::vector<StateTensor> tensors = {{.layer = -1, .name = "sum", .shape = {7}}};
  for (const char* name : {"k", "v"}) {
    tensors.push_back({.layer = 0,
                       .name = name,
                       .dtype = DType::kF16,
                       .shape = {limit, width},
                       .kind = StateKind::kPaged});
  }
  return StateSchema(std::move(tensors));
}

// Where chunks live in these tests.
class Chunks {
 public:
  size_t Add(const EncodedSnapshot& snapshot) {
    size_t bytes = 0;
    for (const auto& chunk : snapshot.new_chunks) {
      bytes += chunk.bytes.size();
      chunks_[chunk.hash] = chunk.bytes;
    }
    return bytes;
  }
  ChunkReader Reader() {
    return [this](const ChunkHash& hash) -> absl::StatusOr<std::string> {
      auto found = chunks_.find(hash);
      if (found == chunks_.end()) return absl::NotFoundError("no such chunk");
      return found->second;
    };
  }
  std::map<ChunkHash, std::string>& map() { return chunks_; }

 private:
  std::map<ChunkHash, std::string> chunks_;
};

// Rows outside the window hold whatever was there; only valid rows, fixed tensors and the hidden
// row count. The block of a restored state equals the original where the original's rows are valid
// and is zero elsewhere, and every row of a full ring is valid, so blocks are compared through a
// second encoding.
std::string Canonical(const StateSchema& schema, const State& state) {
  auto snapshot = EncodeSnapshot(schema, state, Identity(), nullptr);
  EXPECT_TRUE(snapshot.ok()) << snapshot.status();
  std::string all = snapshot->manifest.Serialize();
  for (const auto& chunk : snapshot->new_chunks) all += chunk.bytes;
  return all;
}

TEST(SnapshotTest, EveryPositionComesBackThroughAnyChainOfBases) {
  for (const auto& [sinks, window, width] :
       {std::tuple{4, 9, 24}, {0, 16, 24}, {2, 1, 24}, {4, 60, 60000}}) {
    SCOPED_TRACE(absl::StrCat("S=", sinks, " R=", window, " width=", width));
    const StateSchema schema = MakeSchema(sinks, window, width);
    std::mt19937 random(20251121);
    Chunks chunks;
    Sequence sequence(schema);
    std::optional<SnapshotManifest> base;
    for (int turn = 0; turn < 40; ++turn) {
      auto snapshot = EncodeSnapshot(schema, sequence.state(), Identity(), base ? &*base : nullptr);
      ASSERT_TRUE(snapshot.ok()) << snapshot.status();
      chunks.Add(*snapshot);
      auto parsed = SnapshotManifest::Parse(snapshot->manifest.Serialize());
      ASSERT_TRUE(parsed.ok()) << parsed.status();
      auto restored =
          DecodeSnapshot(StatePool(HostMemory(), schema), Identity(), *parsed, chunks.Reader());
      ASSERT_TRUE(restored.ok()) << "position " << sequence.state().position << ": "
                                 << restored.status();
      EXPECT_EQ(restored->position, sequence.state().position);
      EXPECT_EQ(Canonical(schema, *restored), Canonical(schema, sequence.state()));
      base = *parsed;
      sequence.Feed(1 + random() % (turn % 3 == 0 ? 2 : 2 * window));
    }
  }
}

TEST(SnapshotTest, ShortTurnWritesOnlyWhatItAdded) {
  const StateSchema schema = MakeSchema(4, 4000, 512);  // about 4 MB of ring
  const StateLayout layout(schema);
  size_t position_bytes = 0;
  for (const RingClass& ring : layout.rings) position_bytes += ring.position_bytes;
  Sequence sequence(schema);
  sequence.Feed(3000);
  auto base = EncodeSnapshot(schema, sequence.state(), Identity(), nullptr);
  ASSERT_TRUE(base.ok());
  Chunks chunks;
  const size_t whole = chunks.Add(*base);
  EXPECT_GE(whole, 3000 * position_bytes);
  for (int64_t added : {1, 3, 40}) {
    sequence.Feed(added);
    auto next = EncodeSnapshot(schema, sequence.state(), Identity(), &base->manifest);
    ASSERT_TRUE(next.ok());
    const size_t expected = added * position_bytes + layout.fixed_bytes + kHidden * sizeof(float);
    EXPECT_EQ(chunks.Add(*next), expected) << added << " tokens";
    base = std::move(next);
  }
}

TEST(SnapshotTest, ManySmallTurnsKeepTheManifestSmall) {
  const StateSchema schema = MakeSchema(4, 512);
  Sequence sequence(schema);
  std::optional<SnapshotManifest> base;
  size_t most = 0;
  for (int turn = 0; turn < 1500; ++turn) {
    sequence.Feed(1);
    auto snapshot = EncodeSnapshot(schema, sequence.state(), Identity(), base ? &*base : nullptr);
    ASSERT_TRUE(snapshot.ok());
    base = std::move(snapshot->manifest);
    most = std::max(most, base->chunks.size());
  }
  EXPECT_LE(most, 40u);
}

TEST(SnapshotTest, RefusesWhatIsNotFinite) {
  const StateSchema schema = MakeSchema(2, 8);
  Sequence sequence(schema);
  sequence.Feed(5);
  sequence.state().hidden[3] = std::numeric_limits<float>::quiet_NaN();
  auto snapshot = EncodeSnapshot(schema, sequence.state(), Identity(), nullptr);
  EXPECT_EQ(snapshot.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(snapshot.status().message(), HasSubstr("hidden row"));

  sequence.state().hidden[3] = 0;
  const StateTensor* v = schema.Find(0, "v");
  sequence.state().block.as<float>(v->offset_bytes)[0] = std::numeric_limits<float>::infinity();
  snapshot = EncodeSnapshot(schema, sequence.state(), Identity(), nullptr);
  EXPECT_EQ(snapshot.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(snapshot.status().message(), HasSubstr("v of layer 0"));
}

class HostileSnapshotTest : public ::testing::Test {
 protected:
  HostileSnapshotTest() : schema_(MakeSchema(4, 9)), sequence_(schema_) {
    sequence_.Feed(30);
    auto snapshot = EncodeSnapshot(schema_, sequence_.state(), Identity(), nullptr);
    chunks_.Add(*snapshot);
    manifest_ = snapshot->manifest;
  }
  absl::Status Decode() {
    return DecodeSnapshot(StatePool(HostMemory(), schema_), Identity(), manifest_, chunks_.Reader())
        .status();
  }

  StateSchema schema_;
  Sequence sequence_;
  Chunks chunks_;
  SnapshotManifest manifest_;
};

TEST_F(HostileSnapshotTest, ForeignIdentity) {
  ASSERT_TRUE(Decode().ok()) << Decode();
  auto original = manifest_;
  manifest_.identity.model_fingerprint = std::string(32, 'x');
  EXPECT_EQ(Decode().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Decode().message(), HasSubstr("fingerprint"));
  manifest_ = original;
  manifest_.identity.architecture = "other";
  EXPECT_EQ(Decode().code(), absl::StatusCode::kFailedPrecondition);
  manifest_ = original;
  manifest_.schema_hash[0] ^= 1;
  EXPECT_EQ(Decode().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Decode().message(), HasSubstr("schema hash"));
  manifest_ = original;
  manifest_.format_version = 1;
  EXPECT_EQ(Decode().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Decode().message(), HasSubstr("format 1"));
  manifest_ = original;
  manifest_.identity.numerics_id = "elsewhere";
  EXPECT_TRUE(Decode().ok());
}

TEST_F(HostileSnapshotTest, EveryMissingChunkIsNoticed) {
  for (size_t i = 0; i < manifest_.chunks.size(); ++i) {
    auto original = manifest_;
    manifest_.chunks.erase(manifest_.chunks.begin() + i);
    EXPECT_EQ(Decode().code(), absl::StatusCode::kInvalidArgument) << "without chunk " << i;
    manifest_ = original;
  }
}

TEST_F(HostileSnapshotTest, EveryFlippedChunkByteIsNoticed) {
  for (auto& [hash, bytes] : chunks_.map()) {
    for (size_t at : {size_t{0}, bytes.size() / 2, bytes.size() - 1}) {
      bytes[at] ^= 0x10;
      EXPECT_THAT(Decode().message(), HasSubstr("crc32c"));
      bytes[at] ^= 0x10;
    }
    std::string truncated = bytes.substr(1);
    std::swap(bytes, truncated);
    EXPECT_THAT(Decode().message(), HasSubstr("stored with"));
    std::swap(bytes, truncated);
  }
}

TEST_F(HostileSnapshotTest, RangesOffTheGridOrOutOfOrder) {
  auto original = manifest_;
  for (SnapshotChunk& chunk : manifest_.chunks) {
    if (chunk.kind == SnapshotChunk::Kind::kRing) chunk.end += int64_t{1} << 40;
  }
  EXPECT_EQ(Decode().code(), absl::StatusCode::kInvalidArgument);
  manifest_ = original;
  manifest_.chunks.back().ring_class = 9;
  manifest_.chunks.back().kind = SnapshotChunk::Kind::kRing;
  EXPECT_THAT(Decode().message(), HasSubstr("ring_class"));
  manifest_ = original;
  manifest_.position = std::numeric_limits<int64_t>::max();
  EXPECT_FALSE(Decode().ok());
  manifest_ = original;
  manifest_.hidden_size = std::numeric_limits<int64_t>::max();
  EXPECT_FALSE(Decode().ok());
}

class PagedSnapshotTest : public testing::Test {
 protected:
  // After so many tokens, a commit at a time.
  void Commit(int64_t count) {
    sequence_.Feed(count);
    auto snapshot = EncodeSnapshot(schema_, sequence_.state(), Identity(),
                                   manifest_.position > 0 ? &manifest_ : nullptr);
    ASSERT_TRUE(snapshot.ok()) << snapshot.status();
    added_ = chunks_.Add(*snapshot);
    manifest_ = snapshot->manifest;
  }
  absl::StatusOr<State> Decode(const SnapshotManifest& manifest) {
    return DecodeSnapshot(StatePool(HostMemory(), schema_), Identity(), manifest, chunks_.Reader());
  }

  const StateSchema schema_ = PagedSchema(1000, 24);
  Sequence sequence_{schema_};
  Chunks chunks_;
  SnapshotManifest manifest_;
  size_t added_ = 0;
};

TEST_F(PagedSnapshotTest, ACommitWritesTheNewRowsAndARestoreHasThemAll) {
  constexpr size_t kRow = 2 * 24 * 2;
  int64_t position = 0;
  for (const int64_t count : {1, 62, 3, 130, 64, 740}) {
    Commit(count);
    position += count;
    // Besides the rows: fixed tensor and hidden row; and a group that is written once more as a
    // whole.
    EXPECT_LE(added_, count * kRow + 7 * 4 + kHidden * sizeof(float) + 1000);
    auto restored = Decode(manifest_);
    ASSERT_TRUE(restored.ok()) << restored.status();
    ASSERT_EQ(restored->position, position);
    ASSERT_EQ(restored->pages.count(), sequence_.state().pages.count());
    for (int64_t i = 0; i < restored->pages.count(); ++i) {
      EXPECT_EQ(std::memcmp(restored->pages[i].data(), sequence_.state().pages[i].data(),
                            schema_.page_bytes()),
                0)
          << "page " << i << " after " << position;
    }
  }
}

TEST_F(PagedSnapshotTest, RefusesPositionsBeyondTheLimitAndMissingRows) {
  Commit(200);
  SnapshotManifest beyond = manifest_;
  beyond.position = 1001;
  const absl::Status status = Decode(beyond).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("limit of 1000"));
  // A manifest that claims more tokens than it has rows for.
  SnapshotManifest hollow = manifest_;
  hollow.position = 900;
  EXPECT_FALSE(Decode(hollow).ok());
}

}  // namespace
}  // namespace mneme::engine
