// Encoded states: what is kept of a session at one point. Format: docs/state_format.md.
//
// A snapshot is a small manifest and a list of immutable chunks named by their SHA-256. Rows of
// ring tensors are grouped on an absolute grid of positions, so a later snapshot of the same
// sequence shares every complete group with the earlier one: a short turn adds only the chunks it
// touched, whatever the window's size. Bytes are little-endian and of the in-memory type; nothing
// is re-rounded.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/state/schema.h"
#include "engine/state/state_pool.h"

namespace mneme::engine {

// Except where a single position of a ring is larger.
inline constexpr size_t kMaxChunkBytes = 1 << 20;

using ChunkHash = std::array<uint8_t, 32>;  // SHA-256 of the chunk's bytes

// What a snapshot must agree with before a byte of it reaches an engine.
struct SnapshotIdentity {
  std::string architecture;
  std::string model_fingerprint;  // 32 raw bytes
  std::string numerics_id;        // reported, not required to match
};

struct SnapshotChunk {
  ChunkHash hash = {};
  uint32_t size_bytes = 0;
  uint32_t crc32c = 0;
  enum class Kind : uint8_t {
    kFixed = 1,   // bytes [first, end) of all fixed tensors, concatenated in schema order
    kRing = 2,    // rows of positions [first, end) of every ring tensor of class ring_class
    kHidden = 3,  // bytes [first, end) of the hidden row
  };
  Kind kind = Kind::kFixed;
  uint8_t ring_class = 0;  // kRing: see state_layout.h
  int64_t first = 0;
  int64_t end = 0;
};

// Version 1 held logits in the place of the hidden row. It is parsed, so that its chunks are known,
// but not decoded.
inline constexpr uint32_t kSnapshotFormat = 2;

struct SnapshotManifest {
  uint32_t format_version = kSnapshotFormat;
  SnapshotIdentity identity;
  std::string schema_hash;
  int64_t position = 0;
  int64_t hidden_size = 0;  // of the hidden row; 0: none, as at position 0
  std::vector<SnapshotChunk> chunks;

  std::string Serialize() const;
  // INVALID_ARGUMENT naming the offending field (bad magic, length, checksum, order), or
  // FAILED_PRECONDITION for a format version that is too old or too new.
  static absl::StatusOr<SnapshotManifest> Parse(std::string_view bytes);
};

struct EncodedSnapshot {
  SnapshotManifest manifest;
  // Chunks of the manifest that `base` did not have, in manifest order.
  struct NewChunk {
    ChunkHash hash;
    std::string bytes;
  };
  std::vector<NewChunk> new_chunks;
};

// Encodes `state`. `base`, if given, is an earlier snapshot of the *same sequence* (same tokens up
// to its position): what they share is taken over by name without reading the rows again. INTERNAL
// if the state holds a value that is not finite, or its device has failed.
absl::StatusOr<EncodedSnapshot> EncodeSnapshot(const StateSchema& schema, const State& state,
                                               const SnapshotIdentity& identity,
                                               const SnapshotManifest* base);

// Returns the bytes of a chunk, or an error that is passed on.
using ChunkReader = std::function<absl::StatusOr<std::string>(const ChunkHash&)>;

// Fills a new state of the pool from the manifest's chunks. Rows that the snapshot does not hold
// are zero. Checks format and identity (FAILED_PRECONDITION "model fingerprint ..."), schema hash,
// chunk grid, sizes, checksums and that every float is finite (INVALID_ARGUMENT, naming chunk and
// field; with the payload kNotFinitePayload if that is what is wrong) before anything is returned.
// numerics_id may differ.
inline constexpr char kNotFinitePayload[] = "mneme.engine/not_finite";  // empty
absl::StatusOr<State> DecodeSnapshot(const StatePool& states, const SnapshotIdentity& expected,
                                     const SnapshotManifest& manifest,
                                     const ChunkReader& read_chunk);

}  // namespace mneme::engine
