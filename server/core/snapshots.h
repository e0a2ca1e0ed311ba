// Kept points of sessions.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "mneme/v1/sessions.pb.h"
#include "server/core/parts.h"

namespace mneme::server {

// What a rewind leaves behind.
inline constexpr char kBeforeRewind[] = "before-rewind";

// Keeps the head of `record`, which has no snapshot `id`, as one; `puts` gets its record.
// `manifest`: the head's, if it is at hand.
void AddSnapshot(Parts& parts, SessionRecord& record, const std::string& id, bool automatic,
                 int64_t now_us, std::vector<memstore::Put>& puts,
                 const engine::SnapshotManifest* manifest = nullptr);

// What snapshot_policy keeps by itself at the end of a turn, or of the session's beginning: the
// head as v{version}. Nothing if the policy is off.
void AddAutomaticSnapshot(Parts& parts, SessionRecord& record, int64_t now_us,
                          std::vector<memstore::Put>& puts,
                          const engine::SnapshotManifest* manifest = nullptr);

absl::StatusOr<v1::Snapshot> CreateSnapshot(Parts& parts, CallContext& context,
                                            const v1::CreateSnapshotRequest& request);
absl::StatusOr<v1::Snapshot> GetSnapshot(Parts& parts, CallContext& context,
                                         const v1::GetSnapshotRequest& request);
absl::StatusOr<v1::Snapshot> DeleteSnapshot(Parts& parts, CallContext& context,
                                            const v1::DeleteSnapshotRequest& request);
absl::StatusOr<v1::ListSnapshotsResponse> ListSnapshots(Parts& parts, CallContext& context,
                                                        const v1::ListSnapshotsRequest& request);

}  // namespace mneme::server
