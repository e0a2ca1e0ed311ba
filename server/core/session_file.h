// A session in a file, as ExportSession writes and ImportSession reads it.
//
// The bytes are in docs/state_format.md, "Exported sessions": a preamble, then a header and the
// chunks that it names (the same as in the store), and at the end the SHA-256 of everything before
// it. Writer and reader hold one chunk at a time; what becomes of the chunks is for others to say.
#pragma once

#include <openssl/evp.h>
#include <zstd.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/state/snapshot.h"
#include "memstore/state_store.h"
#include "server/core/storage.pb.h"

namespace mneme::server {

inline constexpr uint32_t kSessionFileFormat = 1;        // that is written
inline constexpr uint32_t kOldestSessionFileFormat = 1;  // that is read
inline constexpr size_t kMaxSessionFileHeaderBytes = 16 << 20;

struct SessionFileHeader {
  std::string model_fingerprint;       // 32 raw bytes
  std::string source_uid;              // of the exported session
  std::string model;                   // models/{model} on the server that wrote it
  std::string written_by;              // that server's numerics_id, "" if it had not the model
  storage::CheckpointInfo checkpoint;  // for people
  std::string schema_text;             // engine::SchemaText; "" if the writer had not the model
  bool has_transcript = false;
  storage::Point point;  // without its epoch

  // Parsed from point.manifest(); null at position 0. Not written.
  std::shared_ptr<const engine::SnapshotManifest> manifest;

  std::string Serialize() const;
  // INVALID_ARGUMENT STATE_CORRUPT, or FORMAT_TOO_NEW for the manifest in it. What is accepted
  // agrees with itself: counts, lengths, fingerprints and the position.
  static absl::StatusOr<SessionFileHeader> Parse(std::string_view bytes);
};

struct FileChunk {
  memstore::ChunkId id;
  int64_t size_bytes = 0;
};
// The chunks of a file in their order: those of the state, then those of the transcript; each once.
std::vector<FileChunk> ChunksInFile(const SessionFileHeader& header);

// INVALID_ARGUMENT STATE_CORRUPT: `what` is wrong with the file.
absl::Status DamagedFile(absl::string_view what);

// SHA-256 of what it is fed.
class Sha256Stream {
 public:
  Sha256Stream();
  void Update(std::string_view bytes);
  std::string Digest();  // 32 bytes; once

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> hash_;
};

// One thread. An error of `write` is returned, and nothing may follow it.
class SessionFileWriter {
 public:
  using Write = std::function<absl::Status(std::string_view bytes)>;  // the file's next
  SessionFileWriter(bool compress, Write write);

  absl::Status Begin(const SessionFileHeader& header);
  // The bytes of each of ChunksInFile(header), in order.
  absl::Status Chunk(std::string_view bytes);
  absl::Status End();

 private:
  absl::Status Put(std::string_view body, bool last);
  absl::Status Emit(std::string_view bytes);

  const Write write_;
  Sha256Stream hash_;
  std::unique_ptr<ZSTD_CStream, decltype(&ZSTD_freeCStream)> zstd_;  // null: not compressed
};

// Takes a file in pieces of any size. One thread. The first error sticks.
class SessionFileReader {
 public:
  // Once, before the first chunk: may refuse the file by what the header says of it, such as how
  // many bytes `chunks` have.
  using OnHeader = std::function<absl::Status(const SessionFileHeader& header,
                                              const std::vector<FileChunk>& chunks)>;
  // A chunk whose bytes are those of its id.
  using OnChunk = std::function<absl::Status(const FileChunk& chunk, std::string bytes)>;
  SessionFileReader(OnHeader on_header, OnChunk on_chunk);

  // INVALID_ARGUMENT STATE_CORRUPT, FORMAT_TOO_NEW, or an error of the callbacks.
  absl::Status Feed(std::string_view bytes);
  // After the last piece: STATE_CORRUPT unless that was the end of the file.
  absl::Status Finish();

 private:
  enum class Stage { kPreamble, kHeader, kChunks, kDigest, kEnd };

  absl::Status TakePreamble();
  // Takes what belongs to header and chunks off the front of `bytes`.
  absl::Status TakeBody(std::string_view& bytes);
  absl::Status TakeHeader();
  absl::Status TakeChunk();
  // The same of a compressed body; a piece of fixed size is inflated at a time.
  absl::Status Inflate(std::string_view& bytes);
  absl::Status FeedUnchecked(std::string_view bytes);
  // Moves bytes into partial_ until it has `wanted`. True when it has.
  bool Gather(std::string_view& bytes, size_t wanted);
  bool BodyIsComplete() const { return stage_ == Stage::kDigest; }

  const OnHeader on_header_;
  const OnChunk on_chunk_;
  Stage stage_ = Stage::kPreamble;
  std::string partial_;  // of preamble, header, chunk or digest
  std::vector<FileChunk> chunks_;
  size_t next_chunk_ = 0;
  Sha256Stream hash_;
  std::unique_ptr<ZSTD_DStream, decltype(&ZSTD_freeDStream)> zstd_;  // null: not compressed
  std::string inflate_buffer_;
  bool inflated_ = false;  // its last byte was seen
  absl::Status status_;
};

}  // namespace mneme::server
