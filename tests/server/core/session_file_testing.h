// Exported sessions in tests: out of a core, into a core, and taken apart to be made wrong.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>

#include "engine/state/crc32c.h"
#include "server/core/session_file.h"
#include "server/core/transcript.h"
#include "tests/server/core/core_test_base.h"

namespace mneme::server {

class CollectingExport : public ExportSink {
 public:
  bool Send(v1::ExportSessionResponse response) override {
    EXPECT_LE(response.data().size(), 1u << 20);
    EXPECT_FALSE(response.data().empty());
    EXPECT_EQ(response.content_bytes() > 0, frames == 0);
    if (frames++ == 0) first = response;
    bytes += response.data();
    return on_frame ? on_frame() : true;
  }
  std::function<bool()> on_frame;
  int frames = 0;
  v1::ExportSessionResponse first;
  std::string bytes;
};

inline absl::StatusOr<std::string> ExportFrom(
    ServerCore& core, const std::string& name,
    const std::function<void(v1::ExportSessionRequest&)>& edit = nullptr) {
  CallContext context;
  v1::ExportSessionRequest request;
  request.set_name(name);
  if (edit) edit(request);
  CollectingExport sink;
  const absl::Status status = core.ExportSession(context, request, sink);
  if (!status.ok()) return status;
  if (!request.compress()) {
    EXPECT_EQ(sink.first.content_bytes(), static_cast<int64_t>(sink.bytes.size()));
  }
  return sink.bytes;
}

inline absl::StatusOr<v1::ImportSessionResponse> ImportInto(
    ServerCore& core, const std::string& id, std::string_view bytes, size_t piece = 1 << 20,
    const std::function<void(v1::ImportSessionRequest::Start&)>& edit = nullptr) {
  CallContext context;
  v1::ImportSessionRequest::Start start;
  start.set_session_id(id);
  if (edit) edit(start);
  auto import = core.StartImport(context, start);
  if (!import.ok()) return import.status();
  for (size_t at = 0; at < bytes.size(); at += piece) {
    if (auto s = (*import)->Write(bytes.substr(at, piece)); !s.ok()) return s;
  }
  return (*import)->Finish();
}

// A file taken apart. Put together again, every checksum is right, whatever was changed.
struct FileInParts {
  SessionFileHeader header;
  std::map<memstore::ChunkId, std::string> chunks;

  static FileInParts Of(std::string_view bytes) {
    FileInParts out;
    SessionFileReader reader(
        [&](const SessionFileHeader& header, const std::vector<FileChunk>&) {
          out.header = header;
          return absl::OkStatus();
        },
        [&](const FileChunk& chunk, std::string content) {
          out.chunks[chunk.id] = std::move(content);
          return absl::OkStatus();
        });
    EXPECT_TRUE(reader.Feed(bytes).ok());
    EXPECT_TRUE(reader.Finish().ok());
    return out;
  }
  std::string File(bool compress = false) const {
    std::string out;
    SessionFileWriter writer(compress, [&](std::string_view bytes) {
      out += bytes;
      return absl::OkStatus();
    });
    EXPECT_TRUE(writer.Begin(header).ok());
    for (const FileChunk& chunk : ChunksInFile(header)) {
      const auto found = chunks.find(chunk.id);
      EXPECT_TRUE(writer.Chunk(found == chunks.end() ? "" : found->second).ok());
    }
    EXPECT_TRUE(writer.End().ok());
    return out;
  }
  void EditManifest(const std::function<void(engine::SnapshotManifest&)>& edit) {
    engine::SnapshotManifest manifest = *header.manifest;
    edit(manifest);
    header.point.set_manifest(manifest.Serialize());
    header.manifest = std::make_shared<const engine::SnapshotManifest>(std::move(manifest));
  }
  // Of the first chunk of `kind`.
  void EditStateChunk(engine::SnapshotChunk::Kind kind,
                      const std::function<void(std::string&)>& edit) {
    EditManifest([&](engine::SnapshotManifest& manifest) {
      for (engine::SnapshotChunk& chunk : manifest.chunks) {
        if (chunk.kind != kind) continue;
        std::string bytes = chunks.at(chunk.hash);
        edit(bytes);
        chunk.hash = memstore::HashChunk(bytes);
        chunk.crc32c = engine::Crc32c(bytes);
        chunk.size_bytes = static_cast<uint32_t>(bytes.size());
        chunks[chunk.hash] = bytes;
        return;
      }
      ADD_FAILURE() << "no such chunk";
    });
  }
  // The first: `edit` gets its ids and its turns.
  void EditTranscriptChunk(
      const std::function<void(std::vector<int32_t>&, storage::StoredTurns&)>& edit) {
    storage::TranscriptChunk& entry = *header.point.mutable_transcript(0);
    const std::string& old = chunks.at(ToChunkId(entry.id()));
    std::vector<int32_t> ids(entry.num_tokens());
    std::memcpy(ids.data(), old.data(), ids.size() * 4);
    storage::StoredTurns turns;
    EXPECT_TRUE(turns.ParseFromString(old.substr(ids.size() * 4)));
    edit(ids, turns);
    std::string bytes(reinterpret_cast<const char*>(ids.data()), ids.size() * 4);
    turns.AppendToString(&bytes);
    const auto id = memstore::HashChunk(bytes);
    entry.set_id(FromChunkId(id));
    entry.set_turn_bytes(static_cast<int64_t>(bytes.size() - ids.size() * 4));
    chunks[id] = bytes;
  }
};

}  // namespace mneme::server
