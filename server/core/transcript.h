// The transcript of a session: every token it has read, and its turns, in append-only chunks.
//
// A commit writes only its new ids and its turn. Many short turns would leave many small chunks, so
// that when more than kMaxTailChunks are not full they are merged; a full chunk never changes
// again, unless a rewind cuts into the turn that begins in it. docs/state_format.md has the bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "memstore/state_store.h"
#include "server/core/storage.pb.h"

namespace mneme::server {

inline constexpr int64_t kMaxChunkTokens = 65536;
inline constexpr int kMaxTailChunks = 32;

using TranscriptList = google::protobuf::RepeatedPtrField<storage::TranscriptChunk>;
using ReadChunk = std::function<absl::StatusOr<std::string>(const memstore::ChunkId&)>;

memstore::ChunkId ToChunkId(const std::string& bytes);
std::string FromChunkId(const memstore::ChunkId& id);

// All that reads a list or a chunk returns DATA_LOSS STATE_CORRUPT if its counts cannot be, or a
// chunk has not the length that the list says.

// Appends `tokens` to `list`, `turn` being what they are, and the bytes of new chunks to
// `new_chunks`. `read` is asked only when chunks are merged. No tokens: nothing is appended.
absl::Status AppendTranscript(TranscriptList& list, std::span<const int32_t> tokens,
                              const storage::StoredTurn& turn, const ReadChunk& read,
                              std::vector<memstore::NewChunk>& new_chunks);

// Ids [begin, end) of the transcript.
absl::StatusOr<std::vector<int32_t>> ReadTranscriptIds(const TranscriptList& list, int64_t begin,
                                                       int64_t end, const ReadChunk& read);

// The turns that [begin, end) overlaps, in order; begin < end. What was stored before turns were is
// one turn of one run, without version, time and role.
absl::StatusOr<std::vector<storage::StoredTurn>> ReadTranscriptTurns(const TranscriptList& list,
                                                                     int64_t begin, int64_t end,
                                                                     const ReadChunk& read);

// Cuts `list` after `position` tokens. Chunks that are cut are written anew; the turn that is cut
// ends there, for no reason of its own.
absl::Status TruncateTranscript(TranscriptList& list, int64_t position, const ReadChunk& read,
                                std::vector<memstore::NewChunk>& new_chunks);

// Of a list that the store has, of unchecked counts: any number.
int64_t TranscriptTokens(const TranscriptList& list);
int64_t ChunkBytes(const storage::TranscriptChunk& chunk);
int64_t TurnTokens(const storage::StoredTurn& turn);

}  // namespace mneme::server
