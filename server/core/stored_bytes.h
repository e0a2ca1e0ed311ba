// How many bytes the store keeps for a session, kept in its record so that nobody has to read its
// snapshots to know.
//
// Each chunk counts once, for the newest point that refers to it: the head, else the last snapshot
// in the record's list that does; SnapshotRef.bytes is what a snapshot has in that sense, with its
// own manifest. So a snapshot that goes as the first of the list takes its bytes along, and what a
// new head no longer refers to falls to the last snapshot, if that was made of the old head. This
// is what turns do. After anything else the snapshots are read and counted.
#pragma once

#include <map>
#include <string>

#include "engine/state/snapshot.h"
#include "server/core/storage.pb.h"

namespace mneme::server {

// What a session with this head and without snapshots has. `manifest`: the head's, if it is at
// hand.
int64_t BytesOf(const storage::Point& head, const engine::SnapshotManifest* manifest = nullptr);

// Sets stored_bytes in `data` and its snapshots' bytes, as they follow from those in `before`,
// which it comes from; of a new session that is an empty one. False, and nothing is set: they do
// not follow.
bool CarryStoredBytes(const storage::StoredSession& before, storage::StoredSession& data,
                      const engine::SnapshotManifest* manifest = nullptr);

// Counts them anew. `snapshots`: the points of the session's snapshots, by id; one that cannot be
// read may be missing.
void CountStoredBytes(storage::StoredSession& data,
                      const std::map<std::string, storage::Point>& snapshots);

}  // namespace mneme::server
