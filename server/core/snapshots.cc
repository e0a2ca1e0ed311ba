#include "server/core/snapshots.h"

#include <algorithm>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/state/snapshot.h"
#include "server/core/errors.h"
#include "server/core/limits.h"
#include "server/core/resource_id.h"
#include "server/core/session_fields.h"
#include "server/core/session_names.h"
#include "server/core/transcript.h"

namespace mneme::server {
namespace {

// Ids that the server gives by itself.
bool IsReserved(std::string_view id) {
  return id == kBeforeRewind ||
         (id.size() > 1 && id[0] == 'v' &&
          std::all_of(id.begin() + 1, id.end(), [](char c) { return c >= '0' && c <= '9'; }));
}

v1::Snapshot ToProto(const SnapshotName& name, const storage::StoredSnapshot& stored) {
  const storage::Point& point = stored.point();
  v1::Snapshot out;
  out.set_name(name.str());
  out.set_version(point.version());
  out.set_position_tokens(point.position_tokens());
  out.set_automatic(stored.automatic());
  SetTimestamp(stored.create_time_us(), out.mutable_create_time());
  int64_t bytes = 0;
  if (auto manifest = engine::SnapshotManifest::Parse(point.manifest()); manifest.ok()) {
    for (const auto& chunk : manifest->chunks) bytes += chunk.size_bytes;
  }
  for (const auto& chunk : point.transcript()) bytes += ChunkBytes(chunk);
  out.set_stored_bytes(bytes);
  return out;
}

}  // namespace

void AddSnapshot(Parts& parts, SessionRecord& record, const std::string& id, bool automatic,
                 int64_t now_us, std::vector<memstore::Put>& puts,
                 const engine::SnapshotManifest* manifest) {
  const storage::Point& head = record.data.head();
  storage::StoredSnapshot snapshot;
  *snapshot.mutable_point() = head;
  snapshot.set_create_time_us(now_us);
  snapshot.set_automatic(automatic);
  storage::SnapshotRef& ref = *record.data.add_snapshots();
  ref.set_id(id);
  ref.set_record_version(1);
  ref.set_version(head.version());
  ref.set_position_tokens(head.position_tokens());
  ref.set_automatic(automatic);
  puts.push_back(SessionStore::SnapshotPut(parts.sessions->SnapshotKey({record.name, id}), 0,
                                           snapshot, manifest));
}

void AddAutomaticSnapshot(Parts& parts, SessionRecord& record, int64_t now_us,
                          std::vector<memstore::Put>& puts,
                          const engine::SnapshotManifest* manifest) {
  const storage::StoredSession& data = record.data;
  if (!data.snapshot_at_turn_end() || data.snapshot_max_count() == 0) return;
  AddSnapshot(parts, record, absl::StrCat("v", data.head().version()), /*automatic=*/true, now_us,
              puts, manifest);
}

// Beside whoever writes the session, as all that leaves its head alone: both write its record, and
// the store lets one of them come first.
absl::StatusOr<v1::Snapshot> CreateSnapshot(Parts& parts, CallContext& context,
                                            const v1::CreateSnapshotRequest& request) {
  MNEME_RETURN_IF_ERROR(CheckNotDraining(parts));
  MNEME_ASSIGN_OR_RETURN(const SessionName name,
                         ParseSessionName(request.parent(), "parent", context.tenant));
  FieldErrors errors;
  std::string id = request.snapshot_id();
  if (!id.empty() && !IsValidId(id)) {
    errors.Add("snapshot_id", "must match ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$");
  } else if (IsReserved(id)) {
    errors.Add("snapshot_id", "must not be before-rewind, nor v and a number");
  }
  CheckExpectedVersion(request.expected_version(), errors);
  MNEME_RETURN_IF_ERROR(errors.ToStatus());
  MNEME_RETURN_IF_ERROR(parts.storage->CheckBytes(context));
  if (id.empty()) id = MakeSnapshotId();
  const SnapshotName full{name, id};
  const auto add = [&](SessionRecord& record, SessionStore::Change& change) -> absl::Status {
    MNEME_RETURN_IF_ERROR(parts.sessions->GetUsable(name, /*refuse_damaged=*/true).status());
    MNEME_RETURN_IF_ERROR(CheckVersion(request.expected_version(), record, parts.metrics));
    int pinned = 0;
    for (const storage::SnapshotRef& ref : record.data.snapshots()) {
      pinned += !ref.automatic();
      if (ref.id() == id) {
        return WithResource(Error(absl::StatusCode::kAlreadyExists, reason::kSnapshotExists,
                                  "the session has a snapshot with this id; choose another id"),
                            "mneme.v1.Snapshot", full.str());
      }
    }
    if (pinned >= kMaxKeptSnapshots) {
      FieldErrors many;
      many.Add("parent", absl::StrCat("has ", pinned, " kept snapshots, the most there may be"),
               reason::kFieldOutOfRange);
      return many.ToStatus();
    }
    const int64_t now = NowMicros();
    AddSnapshot(parts, record, id, /*automatic=*/false, now, change.puts);
    AddRequestMark(context, {name}, 0, change.puts, id);
    record.data.set_update_time_us(now);
    return absl::OkStatus();
  };
  MNEME_RETURN_IF_ERROR(parts.sessions->Update(name, add).status());
  MNEME_ASSIGN_OR_RETURN(const auto stored, parts.sessions->GetSnapshot(full));
  return ToProto(full, stored);
}

absl::StatusOr<v1::Snapshot> GetSnapshot(Parts& parts, CallContext& context,
                                         const v1::GetSnapshotRequest& request) {
  MNEME_ASSIGN_OR_RETURN(const SnapshotName name,
                         ParseSnapshotName(request.name(), "name", context.tenant));
  MNEME_RETURN_IF_ERROR(parts.sessions->Get(name.session).status());
  MNEME_ASSIGN_OR_RETURN(const auto stored, parts.sessions->GetSnapshot(name));
  return ToProto(name, stored);
}

absl::StatusOr<v1::Snapshot> DeleteSnapshot(Parts& parts, CallContext& context,
                                            const v1::DeleteSnapshotRequest& request) {
  MNEME_RETURN_IF_ERROR(CheckNotDraining(parts));
  MNEME_ASSIGN_OR_RETURN(const SnapshotName name,
                         ParseSnapshotName(request.name(), "name", context.tenant));
  v1::Snapshot deleted;
  const auto remove = [&](SessionRecord& record, SessionStore::Change& change) -> absl::Status {
    MNEME_RETURN_IF_ERROR(parts.sessions->GetUsable(name.session, false).status());
    MNEME_ASSIGN_OR_RETURN(const auto stored, parts.sessions->GetSnapshot(name));
    deleted = ToProto(name, stored);
    auto& refs = *record.data.mutable_snapshots();
    const auto ref = std::find_if(refs.begin(), refs.end(), [&](const storage::SnapshotRef& r) {
      return r.id() == name.snapshot;
    });
    // The record was read before the snapshot: this one is newer, and the next attempt sees it.
    if (ref == refs.end()) return VersionMismatch(record, parts.metrics);
    change.deletes.push_back({parts.sessions->SnapshotKey(name), ref->record_version()});
    refs.erase(ref);
    AddRequestMark(context, {name.session}, 0, change.puts, name.snapshot);
    record.data.set_update_time_us(NowMicros());
    return absl::OkStatus();
  };
  MNEME_RETURN_IF_ERROR(parts.sessions->Update(name.session, remove).status());
  return deleted;
}

absl::StatusOr<v1::ListSnapshotsResponse> ListSnapshots(Parts& parts, CallContext& context,
                                                        const v1::ListSnapshotsRequest& request) {
  MNEME_ASSIGN_OR_RETURN(const SessionName name,
                         ParseSessionName(request.parent(), "parent", context.tenant));
  MNEME_ASSIGN_OR_RETURN(const int page_size, PageSize(request.page_size()));
  const std::string scope = absl::StrCat("snapshots ", name.str());
  std::string after;
  if (!request.page_token().empty()) {
    MNEME_ASSIGN_OR_RETURN(after, ReadPageToken(scope, request.page_token()));
  }
  MNEME_ASSIGN_OR_RETURN(const SessionRecord record, parts.sessions->Get(name));
  std::vector<storage::SnapshotRef> refs(record.data.snapshots().begin(),
                                         record.data.snapshots().end());
  // Newest first; of one version there may be several.
  const auto order = [](const storage::SnapshotRef& r) {
    return absl::StrCat(absl::Dec(INT64_MAX - r.version(), absl::kZeroPad20), r.id());
  };
  std::sort(refs.begin(), refs.end(),
            [&](const auto& a, const auto& b) { return order(a) < order(b); });
  v1::ListSnapshotsResponse response;
  std::string last;
  for (const storage::SnapshotRef& ref : refs) {
    if (order(ref) <= after) continue;
    if (response.snapshots_size() == page_size) {
      response.set_next_page_token(MakePageToken(scope, last));
      break;
    }
    const SnapshotName snapshot_name{name, ref.id()};
    auto stored = parts.sessions->GetSnapshot(snapshot_name);
    if (absl::IsNotFound(stored.status())) continue;  // pruned since
    if (!stored.ok()) return stored.status();
    *response.add_snapshots() = ToProto(snapshot_name, *stored);
    last = order(ref);
  }
  return response;
}

}  // namespace mneme::server
