// The transcript of a session: every token it has read, in append-only chunks.
//
// A commit writes only its new ids. Many short turns would leave many small chunks, so that when
// more than kMaxTailChunks are not full they are merged; a full chunk never changes again.
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

// Appends `tokens` to `list` and the bytes of new chunks to `new_chunks`. `read` is asked only when
// chunks are merged.
absl::Status AppendTranscript(TranscriptList& list, std::span<const int32_t> tokens,
                              const ReadChunk& read, std::vector<memstore::NewChunk>& new_chunks);

// Ids [begin, end) of the transcript. DATA_LOSS if a chunk has not the length that the list says.
absl::StatusOr<std::vector<int32_t>> ReadTranscript(const TranscriptList& list, int64_t begin,
                                                    int64_t end, const ReadChunk& read);

// Cuts `list` after `position` tokens; a chunk that is cut is written anew.
absl::Status TruncateTranscript(TranscriptList& list, int64_t position, const ReadChunk& read,
                                std::vector<memstore::NewChunk>& new_chunks);

int64_t TranscriptTokens(const TranscriptList& list);

}  // namespace mneme::server
