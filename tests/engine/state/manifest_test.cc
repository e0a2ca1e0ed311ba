#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "engine/state/snapshot.h"

namespace mneme::engine {
namespace {

using ::testing::HasSubstr;

SnapshotManifest Example() {
  SnapshotManifest manifest;
  manifest.identity = {.architecture = "llama",
                       .model_fingerprint = std::string(32, 'm'),
                       .numerics_id = "0.1.0/cpu/avx2/int8"};
  manifest.schema_hash = std::string(32, 's');
  manifest.position = 77;
  manifest.hidden_size = 5;
  for (int i = 0; i < 3; ++i) {
    SnapshotChunk chunk{.size_bytes = 100u + i,
                        .crc32c = 9u,
                        .kind = SnapshotChunk::Kind::kRing,
                        .first = 10 * i,
                        .end = 10 * i + 10};
    chunk.hash.fill(static_cast<uint8_t>(i));
    manifest.chunks.push_back(chunk);
  }
  return manifest;
}

TEST(SnapshotManifestTest, RoundTrip) {
  const std::string bytes = Example().Serialize();
  auto parsed = SnapshotManifest::Parse(bytes);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->Serialize(), bytes);
  EXPECT_EQ(parsed->position, 77);
  EXPECT_EQ(parsed->identity.architecture, "llama");
  EXPECT_EQ(parsed->chunks[2].first, 20);
}

TEST(SnapshotManifestTest, EveryTruncationIsRefused) {
  const std::string bytes = Example().Serialize();
  for (size_t size = 0; size < bytes.size(); ++size) {
    auto parsed = SnapshotManifest::Parse(std::string_view(bytes).substr(0, size));
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << size;
  }
}

TEST(SnapshotManifestTest, EveryFlippedBitIsRefused) {
  const std::string bytes = Example().Serialize();
  for (size_t i = 0; i < bytes.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = bytes;
      flipped[i] ^= static_cast<char>(1 << bit);
      EXPECT_FALSE(SnapshotManifest::Parse(flipped).ok()) << "byte " << i << " bit " << bit;
    }
  }
}

TEST(SnapshotManifestTest, OtherVersionsAreNamed) {
  std::string bytes = Example().Serialize();
  bytes[8] = 3;
  EXPECT_EQ(SnapshotManifest::Parse(bytes).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(SnapshotManifest::Parse(bytes).status().message(), HasSubstr("too new"));
  bytes[8] = 0;
  EXPECT_THAT(SnapshotManifest::Parse(bytes).status().message(), HasSubstr("too old"));
}

// So that whoever rewrites its record does not lose its chunks.
TEST(SnapshotManifestTest, AnOlderVersionKeepsItsChunks) {
  SnapshotManifest old = Example();
  old.format_version = 1;
  auto parsed = SnapshotManifest::Parse(old.Serialize());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->format_version, 1u);
  EXPECT_EQ(parsed->chunks.size(), old.chunks.size());
  EXPECT_EQ(parsed->Serialize(), old.Serialize());
}

TEST(SnapshotManifestTest, WrongMagicIsNamed) {
  std::string bytes = Example().Serialize();
  bytes[0] = 'X';
  EXPECT_THAT(SnapshotManifest::Parse(bytes).status().message(), HasSubstr("magic"));
}

}  // namespace
}  // namespace mneme::engine
