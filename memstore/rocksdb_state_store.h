// The embedded store: a queue of commits in front of RocksDB, and the knobs that tests need. What
// lies where: rocksdb_keys.h; how a transaction joins a batch: rocksdb_group.h.
// Callers outside memstore/ and its tests use OpenRocksDbStore() of state_store.h.
//
// Commit is a queue with one leader, as in LevelDB: the first waiter takes those behind it (all
// that want the same durability, up to group_bytes), checks each against the database and the
// accepted ones before it, writes one batch for all with one fsync, and wakes them. The leader is
// the only one that reads versions and reference counts to change them, so a chunk whose count
// reaches zero is deleted in that very batch and nobody can take a reference meanwhile: whoever
// comes later sees that it is gone. Hashing and encoding happen before the queue, in parallel.
//
// Chunks of 64 KiB and more go to blob files, which compaction does not rewrite. RocksDB's own blob
// collection would rewrite the oldest files again at each of the small, frequent compactions of the
// key tree; so it is off, and a background thread collects everything once more than half of the
// blob bytes (and at least gc_floor_bytes) are dead: each live byte is rewritten at most about once
// per byte of new data. The same thread syncs the log of commits with sync = false, twice a second.
//
// A chunk is checked against its SHA-256 on every read. A CRC would find bit rot too, but only the
// hash shows that a chunk is the one asked for; with SHA-NI it costs under 1 ms per MiB.
//
// After a failed write the database is closed and opened anew, before the commit returns; if that
// fails too (a full disk) it is opened for reading, and the next write tries again.
//
// What the store holds in all (StoreStats, totals) is written with every batch, so that no start
// has to count; a store of format 1, which had no such entries, is counted at its first.
//
// What recovery finds after a power loss is a prefix of the commits: rocksdb_database.h.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "memstore/state_store.h"

namespace rocksdb {
class Env;
}

namespace mneme::memstore {

inline constexpr uint32_t kStoreFormat = 2;
inline constexpr uint32_t kOldestStoreFormat = 1;  // becomes kStoreFormat when it is opened

struct RocksDbInternalOptions {
  RocksDbOptions store;
  rocksdb::Env* env = nullptr;  // not owned, outlives the store; nullptr: the system's
  size_t write_buffer_bytes = 64 << 20;
  // A group ends once it has this many bytes: a small commit does not wait for many large ones.
  size_t group_bytes = 8 << 20;
  // New records and chunks are refused when the disk has less free space than this: deleting, and
  // the compaction that frees the space, still need some.
  uint64_t min_free_bytes = 64 << 20;
  uint64_t gc_floor_bytes = 256 << 20;
  int sync_periods_per_gc_check = 60;  // of half a second each
};

absl::StatusOr<std::unique_ptr<StateStore>> OpenRocksDbStoreInternal(
    const RocksDbInternalOptions& options);

}  // namespace mneme::memstore
