#include "server/core/snapshots.h"

#include "absl/strings/str_cat.h"

namespace mneme::server {

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

}  // namespace mneme::server
