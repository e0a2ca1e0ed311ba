#include "server/core/stored_bytes.h"

#include <algorithm>

#include "server/core/transcript.h"

namespace mneme::server {
namespace {

using Refs = google::protobuf::RepeatedPtrField<storage::SnapshotRef>;
using Sizes = std::map<std::string, int64_t>;  // bytes by id

Sizes SizesOf(const storage::Point& point, const engine::SnapshotManifest* manifest = nullptr) {
  Sizes chunks;
  absl::StatusOr<engine::SnapshotManifest> parsed;
  if (manifest == nullptr && !point.manifest().empty()) {
    parsed = engine::SnapshotManifest::Parse(point.manifest());
    if (parsed.ok()) manifest = &*parsed;
  }
  if (manifest != nullptr) {
    for (const auto& chunk : manifest->chunks) chunks[FromChunkId(chunk.hash)] = chunk.size_bytes;
  }
  for (const auto& chunk : point.transcript()) chunks[chunk.id()] = ChunkBytes(chunk);
  return chunks;
}

int64_t Sum(const Sizes& chunks) {
  int64_t bytes = 0;
  for (const auto& [id, size] : chunks) bytes += size;
  return bytes;
}

int64_t ManifestBytes(const storage::Point& point) {
  return static_cast<int64_t>(point.manifest().size());
}

bool Same(const storage::SnapshotRef& a, const storage::SnapshotRef& b) {
  return a.id() == b.id() && a.record_version() == b.record_version() && a.version() == b.version();
}

// How many of `before` have gone from its beginning, the rest being what `after` begins with; -1 if
// that is not how one becomes the other.
int GoneFromBeginning(const Refs& before, const Refs& after) {
  int gone = 0;
  while (gone < before.size() && (after.empty() || !Same(before[gone], after[0]))) ++gone;
  const int left = before.size() - gone;
  if (left > after.size() ||
      !std::equal(before.begin() + gone, before.end(), after.begin(), after.begin() + left, Same)) {
    return -1;
  }
  return gone;
}

}  // namespace

int64_t BytesOf(const storage::Point& head, const engine::SnapshotManifest* manifest) {
  return Sum(SizesOf(head, manifest)) + ManifestBytes(head);
}

bool CarryStoredBytes(const storage::StoredSession& before, storage::StoredSession& data,
                      const engine::SnapshotManifest* manifest) {
  const bool is_new = before.uid().empty();
  if (!is_new && !before.has_stored_bytes()) return false;
  const storage::Point &old_head = before.head(), &head = data.head();
  const int gone = GoneFromBeginning(before.snapshots(), data.snapshots());
  if (gone < 0) return false;
  const int left = before.snapshots_size() - gone;
  // A rewind brings chunks back that older snapshots have.
  if (before.rewind_version() != data.rewind_version() && left > 0) return false;
  for (int i = left; i < data.snapshots_size(); ++i) {
    if (data.snapshots(i).version() != head.version()) return false;
  }
  const bool moved = is_new || old_head.version() != head.version();
  if (!moved && gone == 0 && left == data.snapshots_size()) return true;

  const Sizes chunks = SizesOf(head, manifest);
  int64_t dropped = 0;  // by the head
  if (moved && left > 0) {
    if (before.snapshots(before.snapshots_size() - 1).version() != old_head.version()) {
      return false;
    }
    for (const auto& [id, size] : SizesOf(old_head)) {
      if (!chunks.contains(id)) dropped += size;
    }
  }
  int64_t bytes = Sum(chunks) + ManifestBytes(head);
  for (int i = 0; i < data.snapshots_size(); ++i) {
    storage::SnapshotRef& ref = *data.mutable_snapshots(i);
    if (i >= left) ref.set_bytes(ManifestBytes(head));  // all its chunks are the head's
    if (i == left - 1) ref.set_bytes(ref.bytes() + dropped);
    bytes += ref.bytes();
  }
  data.set_stored_bytes(bytes);
  return true;
}

void CountStoredBytes(storage::StoredSession& data,
                      const std::map<std::string, storage::Point>& snapshots) {
  Sizes seen = SizesOf(data.head());
  int64_t bytes = Sum(seen) + ManifestBytes(data.head());
  for (int i = data.snapshots_size() - 1; i >= 0; --i) {
    storage::SnapshotRef& ref = *data.mutable_snapshots(i);
    int64_t own = 0;
    if (const auto point = snapshots.find(ref.id()); point != snapshots.end()) {
      own = ManifestBytes(point->second);
      for (const auto& [id, size] : SizesOf(point->second)) {
        if (seen.try_emplace(id, size).second) own += size;
      }
    }
    ref.set_bytes(own);
    bytes += own;
  }
  data.set_stored_bytes(bytes);
}

}  // namespace mneme::server
