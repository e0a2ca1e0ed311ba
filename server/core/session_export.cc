#include "server/core/session_export.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/state/schema_text.h"
#include "server/core/cancel_status.h"
#include "server/core/errors.h"
#include "server/core/limits.h"
#include "server/core/model_mismatch.h"
#include "server/core/session_file.h"
#include "server/core/session_names.h"
#include "server/core/state_io.h"

namespace mneme::server {
namespace {

// Around header and chunks.
constexpr int64_t kFrameworkBytes = 16 + 32;

absl::StatusOr<SessionFileHeader> HeaderOf(Parts& parts, const SessionRecord& record,
                                           storage::Point point, bool without_transcript) {
  const storage::StoredSession& data = record.data;
  SessionFileHeader header;
  header.model_fingerprint = data.model_fingerprint();
  header.source_uid = data.uid();
  header.model = data.model();
  header.checkpoint = data.checkpoint();
  header.has_transcript = !data.no_transcript() && !without_transcript;
  if (!header.has_transcript) point.clear_transcript();
  header.point = std::move(point);
  if (!header.point.manifest().empty()) {
    auto manifest = engine::SnapshotManifest::Parse(header.point.manifest());
    if (absl::IsFailedPrecondition(manifest.status()) ||
        (manifest.ok() && manifest->format_version != engine::kSnapshotFormat)) {
      return OtherFormat(manifest);
    }
    if (!manifest.ok()) {
      return Error(absl::StatusCode::kDataLoss, reason::kStateCorrupt,
                   "the stored state failed its checks; export a good snapshot");
    }
    header.manifest = std::make_shared<const engine::SnapshotManifest>(*std::move(manifest));
  }
  // The file needs no model; with it at hand the file says more of itself.
  const auto found = parts.models->models().find(data.model());
  if (found != parts.models->models().end()) {
    const engine::Engine& engine = *found->second->engine;
    if (engine.model_fingerprint() == header.model_fingerprint &&
        (header.manifest == nullptr || header.manifest->schema_hash == engine.schema().hash())) {
      header.schema_text = engine::SchemaText(engine.schema().tensors());
      header.written_by = engine.numerics_id();
    }
  }
  return header;
}

// Cuts the file into messages.
class Frames {
 public:
  Frames(CallContext& context, ExportSink& sink, v1::ExportSessionResponse first)
      : context_(context), sink_(sink), next_(std::move(first)) {}

  absl::Status Write(std::string_view bytes) {
    while (!bytes.empty()) {
      std::string& data = *next_.mutable_data();
      const size_t n = std::min(bytes.size(), kMaxFrameBytes - data.size());
      data.append(bytes.substr(0, n));
      bytes.remove_prefix(n);
      if (data.size() == kMaxFrameBytes) MNEME_RETURN_IF_ERROR(Send());
    }
    return absl::OkStatus();
  }
  absl::Status Flush() { return next_.data().empty() ? absl::OkStatus() : Send(); }

 private:
  absl::Status Send() {
    MNEME_RETURN_IF_ERROR(CancelStatus(context_.cancelled()));
    if (!sink_.Send(std::exchange(next_, {}))) {
      MNEME_RETURN_IF_ERROR(CancelStatus(context_.cancelled()));
      return CancelStatus(CallContext::Cancel::kClient);
    }
    return absl::OkStatus();
  }

  CallContext& context_;
  ExportSink& sink_;
  v1::ExportSessionResponse next_;
};

// A chunk could not be read: the session is damaged, or what was there has gone since because there
// was no room for a pin.
absl::Status Unreadable(Parts& parts, const SessionRecord& record, bool is_head,
                        absl::Status status) {
  if (!absl::IsDataLoss(status) || !is_head) return status;
  MNEME_ASSIGN_OR_RETURN(const SessionRecord again, parts.sessions->GetUsable(record.name, true));
  if (again.data.head().version() != record.data.head().version()) {
    return VersionMismatch(again, parts.metrics);
  }
  MarkDamaged(parts, again);
  return status;
}

}  // namespace

absl::Status ExportSession(Parts& parts, CallContext& context,
                           const v1::ExportSessionRequest& request, ExportSink& sink) {
  MNEME_RETURN_IF_ERROR(CheckNotDraining(parts));
  MNEME_ASSIGN_OR_RETURN(const SourceName from,
                         ParseSourceName(request.name(), "name", context.tenant));
  CallRegistry::Call call(parts.calls, context);
  for (int attempt = 0;; ++attempt) {
    // Of a damaged session its good snapshots can still be had.
    MNEME_ASSIGN_OR_RETURN(
        const SessionRecord record,
        parts.sessions->GetUsable(from.session, /*refuse_damaged=*/!from.snapshot.has_value()));
    storage::Point point = record.data.head();
    if (from.snapshot.has_value()) {
      MNEME_ASSIGN_OR_RETURN(const auto stored, parts.sessions->GetSnapshot(*from.snapshot));
      point = stored.point();
    }
    MNEME_ASSIGN_OR_RETURN(const SessionFileHeader header,
                           HeaderOf(parts, record, std::move(point), request.without_transcript()));
    const std::vector<FileChunk> chunks = ChunksInFile(header);
    std::vector<memstore::ChunkId> ids;
    v1::ExportSessionResponse first;
    int64_t content_bytes = kFrameworkBytes + static_cast<int64_t>(header.Serialize().size());
    for (const FileChunk& chunk : chunks) {
      ids.push_back(chunk.id);
      content_bytes += chunk.size_bytes;
    }
    // The session may go on meanwhile, and what only its old head had would leave the store.
    auto pin = parts.sessions->PinChunks(record.name, std::move(ids));
    if (!pin.ok()) {
      if (attempt < 16) continue;
      return Unreadable(parts, record, !from.snapshot.has_value(),
                        Error(absl::StatusCode::kDataLoss, reason::kStateCorrupt,
                              "a part of the stored state is missing; export a good snapshot"));
    }
    first.set_content_bytes(content_bytes);
    first.set_version(header.point.version());
    first.set_position_tokens(header.point.position_tokens());
    Frames frames(context, sink, std::move(first));
    SessionFileWriter writer(request.compress(),
                             [&](std::string_view bytes) { return frames.Write(bytes); });
    MNEME_RETURN_IF_ERROR(writer.Begin(header));
    for (const FileChunk& chunk : chunks) {
      pin->Renew();
      auto bytes = parts.sessions->ReadChunk(context.tenant, chunk.id);
      if (bytes.ok() && static_cast<int64_t>(bytes->size()) != chunk.size_bytes) {
        bytes = Error(absl::StatusCode::kDataLoss, reason::kStateCorrupt,
                      "the stored state contradicts itself; export a good snapshot");
      }
      if (!bytes.ok()) {
        return Unreadable(parts, record, !from.snapshot.has_value(), bytes.status());
      }
      MNEME_RETURN_IF_ERROR(writer.Chunk(*bytes));
    }
    MNEME_RETURN_IF_ERROR(writer.End());
    return frames.Flush();
  }
}

}  // namespace mneme::server
