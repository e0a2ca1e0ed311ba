#include "server/core/transcript.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "engine/core/status_macros.h"

namespace mneme::server {
namespace {

static_assert(std::endian::native == std::endian::little, "chunks are little-endian");

std::string Encode(std::span<const int32_t> ids) {
  return std::string(reinterpret_cast<const char*>(ids.data()), ids.size_bytes());
}

absl::Status DecodeInto(const storage::TranscriptChunk& chunk, const ReadChunk& read,
                        std::vector<int32_t>& out) {
  if (chunk.id().size() != 32) return absl::DataLossError("transcript chunk id has a bad length");
  MNEME_ASSIGN_OR_RETURN(const std::string bytes, read(ToChunkId(chunk.id())));
  if (bytes.size() % 4 != 0 || static_cast<int64_t>(bytes.size() / 4) != chunk.num_tokens()) {
    return absl::DataLossError("transcript chunk has a bad length");
  }
  const size_t at = out.size();
  out.resize(at + bytes.size() / 4);
  if (!bytes.empty()) std::memcpy(out.data() + at, bytes.data(), bytes.size());
  return absl::OkStatus();
}

}  // namespace

memstore::ChunkId ToChunkId(const std::string& bytes) {
  memstore::ChunkId id{};
  std::memcpy(id.data(), bytes.data(), std::min(bytes.size(), id.size()));
  return id;
}

std::string FromChunkId(const memstore::ChunkId& id) {
  return std::string(reinterpret_cast<const char*>(id.data()), id.size());
}

absl::Status AppendTranscript(TranscriptList& list, std::span<const int32_t> tokens,
                              const ReadChunk& read, std::vector<memstore::NewChunk>& new_chunks) {
  if (tokens.empty()) return absl::OkStatus();
  int tail = 0;
  while (tail < list.size() && list.Get(list.size() - 1 - tail).num_tokens() < kMaxChunkTokens) {
    ++tail;
  }
  std::vector<int32_t> ids;
  if (tail + 1 > kMaxTailChunks) {
    const int first = list.size() - tail;
    for (int i = first; i < list.size(); ++i) {
      MNEME_RETURN_IF_ERROR(DecodeInto(list.Get(i), read, ids));
    }
    list.DeleteSubrange(first, tail);
  }
  ids.insert(ids.end(), tokens.begin(), tokens.end());
  for (size_t at = 0; at < ids.size(); at += kMaxChunkTokens) {
    const size_t n = std::min<size_t>(kMaxChunkTokens, ids.size() - at);
    memstore::NewChunk chunk;
    chunk.bytes = Encode(std::span(ids).subspan(at, n));
    chunk.id = memstore::HashChunk(chunk.bytes);
    storage::TranscriptChunk* entry = list.Add();
    entry->set_id(FromChunkId(chunk.id));
    entry->set_num_tokens(static_cast<int64_t>(n));
    new_chunks.push_back(std::move(chunk));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> ReadTranscript(const TranscriptList& list, int64_t begin,
                                                    int64_t end, const ReadChunk& read) {
  std::vector<int32_t> out;
  int64_t at = 0;
  for (const storage::TranscriptChunk& chunk : list) {
    const int64_t next = at + chunk.num_tokens();
    if (next > begin && at < end) {
      std::vector<int32_t> ids;
      MNEME_RETURN_IF_ERROR(DecodeInto(chunk, read, ids));
      out.insert(out.end(), ids.begin() + std::max<int64_t>(0, begin - at),
                 ids.begin() + std::min<int64_t>(chunk.num_tokens(), end - at));
    }
    at = next;
  }
  if (static_cast<int64_t>(out.size()) != end - begin) {
    return absl::DataLossError("transcript is shorter than the session's position");
  }
  return out;
}

absl::Status TruncateTranscript(TranscriptList& list, int64_t position, const ReadChunk& read,
                                std::vector<memstore::NewChunk>& new_chunks) {
  int64_t at = 0;
  int keep = 0;
  while (keep < list.size() && at + list.Get(keep).num_tokens() <= position) {
    at += list.Get(keep++).num_tokens();
  }
  std::vector<int32_t> rest;
  if (at < position) {
    MNEME_ASSIGN_OR_RETURN(rest, ReadTranscript(list, at, position, read));
  }
  list.DeleteSubrange(keep, list.size() - keep);
  return AppendTranscript(list, rest, read, new_chunks);
}

int64_t TranscriptTokens(const TranscriptList& list) {
  int64_t n = 0;
  for (const auto& chunk : list) n += chunk.num_tokens();
  return n;
}

}  // namespace mneme::server
