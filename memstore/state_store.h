// Versioned records and content-addressed chunks: what keeps sessions across processes.
//
// A *record* is a small opaque value under a key, with a version, references to chunks, and
// optionally a time at which it expires. A *chunk* is an immutable byte string named by its
// SHA-256; it lives while a record refers to it. Chunks are shared between records of one *realm*
// (a tenant) and never across. The store knows nothing of tensors or RPC.
//
// Thread-safe. Every returned byte is a copy that the caller owns.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace mneme::memstore {

using ChunkId = std::array<uint8_t, 32>;  // SHA-256 of the bytes

// Keys: 1 to 512 bytes, each part printable ASCII. The realm is part of the key, never guessed from
// it.
struct Key {
  std::string realm;
  std::string name;  // ordered bytewise within a realm

  auto operator<=>(const Key&) const = default;
};

struct Record {
  int64_t version = 0;          // 1 for a new record, +1 per put
  std::string value;            // opaque
  std::vector<ChunkId> chunks;  // references, duplicates allowed
  absl::Time expire_time = absl::InfiniteFuture();
};

struct Put {
  Key key;
  int64_t expected_version = 0;  // 0: must not exist
  std::string value;
  std::vector<ChunkId> chunks;
  absl::Time expire_time = absl::InfiniteFuture();
};

struct Delete {
  Key key;
  int64_t expected_version = 0;  // must exist at this version
};

// New bytes for chunks that the transaction's puts refer to.
struct NewChunk {
  ChunkId id;  // must be HashChunk(bytes)
  std::string bytes;
};

// All or nothing. All keys are of one realm; no key occurs twice.
struct Transaction {
  std::vector<Put> puts;
  std::vector<Delete> deletes;
  std::vector<NewChunk> new_chunks;
  bool sync = true;  // durable (fsync) before Commit returns; else soon after
};

struct ListOptions {
  std::string realm;
  std::string prefix;       // of the name
  std::string start_after;  // names strictly greater; empty: from the beginning
  int limit = 1000;         // >= 1
};

struct ListedRecord {
  std::string name;
  Record record;
};

// What a record adds to the totals of its realm.
struct Tally {
  int kind = 0;        // 1 to kMaxTallyKind; 0: nothing
  int64_t amount = 0;  // whatever it is a sum of; at least 0

  bool operator==(const Tally&) const = default;
};
inline constexpr int kMaxTallyKind = 7;
// By what it holds alone: the same at any time and in every process.
using TallyFn = Tally (*)(const Key& key, std::string_view value);

struct Total {
  std::string realm;
  int kind = 0;
  int64_t records = 0;  // of this kind
  int64_t amount = 0;   // in sum

  bool operator==(const Total&) const = default;
};

struct StoreStats {
  int64_t records = 0;
  int64_t chunks = 0;
  int64_t chunk_bytes = 0;
};

class StateStore {
 public:
  virtual ~StateStore() = default;

  // Whether other processes may change what is in it.
  virtual bool shared() const { return false; }

  // NOT_FOUND if absent. A record past its expire_time is still returned: the owner decides what
  // that means, the sweeper removes it.
  virtual absl::StatusOr<Record> Get(const Key& key) const = 0;

  // Those of a realm's records that exist, by name. One round trip, where there are any.
  virtual absl::StatusOr<std::map<std::string, Record>> GetMany(
      const std::string& realm, const std::vector<std::string>& names) const;

  // NOT_FOUND if no record refers to it; DATA_LOSS if the bytes do not match the id.
  virtual absl::StatusOr<std::string> GetChunk(std::string_view realm, const ChunkId& id) const = 0;

  // ABORTED if a version does not match ("key ... has version 7, expected 6"; nothing is written
  // and the found version is in the payload kVersionPayload as decimal text, 0 for an absent key).
  // FAILED_PRECONDITION if a referred chunk is neither stored nor among new_chunks.
  // INVALID_ARGUMENT for malformed keys or mixed realms. Whoever makes a chunk has just hashed it,
  // so that ids are not checked here: GetChunk() does.
  // RESOURCE_EXHAUSTED if the disk is full, UNAVAILABLE if the store cannot be reached or (with the
  // payload kNotDurablePayload) would not keep what it acknowledges; after each of them the
  // transaction happened entirely or not at all. When it returns OK and sync was set, a
  // crash of the machine loses nothing. Of two writers with the same expected version exactly one
  // succeeds.
  virtual absl::Status Commit(const Transaction& transaction) = 0;

  // Ascending by name. A record that exists during the whole listing appears exactly once.
  virtual absl::StatusOr<std::vector<ListedRecord>> List(const ListOptions& options) const = 0;

  // Up to `limit` keys whose expire_time is <= now, earliest first. The caller deletes them by
  // Commit.
  virtual absl::StatusOr<std::vector<Key>> Expired(absl::Time now, int limit) const = 0;

  // From now on each commit changes the totals along with its records, so that they can be told
  // without reading any. Called once, before the first commit, with the same function by everyone
  // who commits to what is stored. The first time ever it reads all records.
  virtual absl::Status KeepTotals(TallyFn tally) = 0;
  // Of one realm, or of each if it is "": those that are not 0, by realm and kind. Takes no longer
  // where there are more records. Empty without KeepTotals().
  virtual absl::StatusOr<std::vector<Total>> Totals(const std::string& realm) const = 0;

  // Realms that have at least one record.
  virtual absl::StatusOr<std::vector<std::string>> Realms() const = 0;

  virtual absl::StatusOr<StoreStats> Stats() const = 0;

  // Writes and reads back a probe; what health checks call.
  virtual absl::Status Probe() = 0;
};

inline constexpr char kVersionPayload[] = "mneme.memstore/found_version";
// Of an UNAVAILABLE; empty.
inline constexpr char kNotDurablePayload[] = "mneme.memstore/not_durable";

// SHA-256, as chunks are named.
ChunkId HashChunk(std::string_view bytes);

// In memory, gone with the process. For tests and for servers without a data directory.
std::unique_ptr<StateStore> CreateMemoryStore();

struct RocksDbOptions {
  std::string path;  // a directory; created if absent. One process owns it (its LOCK).
  size_t block_cache_bytes = 64 << 20;
};
// UNAVAILABLE if another process has it open; DATA_LOSS if it cannot be recovered.
absl::StatusOr<std::unique_ptr<StateStore>> OpenRocksDbStore(const RocksDbOptions& options);

struct PostgresOptions {
  std::string uri;           // postgresql://user@host/database?sslmode=verify-full
  int max_connections = 16;  // of this process, made as they are needed
  // A statement that takes longer is ended by the server. Every wait of the store is bounded by it.
  absl::Duration statement_timeout = absl::Seconds(30);
  // A commit with sync waits for at least so many standbys, by the server's settings.
  int synchronous_standbys = 0;
};
// Shared by any number of processes. Makes its tables, or upgrades them. INVALID_ARGUMENT for the
// URI; UNAVAILABLE if there is no such server, or (kNotDurablePayload) it would not keep what it
// acknowledges; FAILED_PRECONDITION if a newer version has upgraded the tables, or the role lacks
// rights. No message holds a password.
absl::StatusOr<std::unique_ptr<StateStore>> OpenPostgresStore(const PostgresOptions& options);

// By its scheme.
bool IsPostgresUri(std::string_view text);
// With **** for passwords, to be shown. Any other text stays as it is.
std::string MaskPostgresUri(std::string_view uri);

}  // namespace mneme::memstore
