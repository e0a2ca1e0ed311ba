// The memory store: ordered maps under one lock. The simplest thing that keeps the contract; the
// other stores are compared with it.
#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "memstore/mutex.h"
#include "memstore/state_store.h"
#include "memstore/totals.h"
#include "memstore/validate.h"

namespace mneme::memstore {
namespace {

class MemoryStateStore : public StateStore {
 public:
  absl::StatusOr<Record> Get(const Key& key) const override {
    if (absl::Status status = ValidateKey(key); !status.ok()) return status;
    MutexLock lock(&mutex_);
    const Record* record = Find(key);
    if (!record) return RecordNotFound(key);
    return *record;
  }

  absl::StatusOr<std::string> GetChunk(std::string_view realm, const ChunkId& id) const override {
    if (absl::Status status = ValidateRealm(realm); !status.ok()) return status;
    MutexLock lock(&mutex_);
    const auto it = realms_.find(realm);
    if (it == realms_.end()) return ChunkNotFound(id);
    const auto chunk = it->second.chunks.find(id);
    if (chunk == it->second.chunks.end()) return ChunkNotFound(id);
    if (HashChunk(chunk->second.bytes) != id) return ChunkDamaged(realm, id);
    return chunk->second.bytes;
  }

  absl::Status Commit(const Transaction& transaction) override {
    if (absl::Status status = ValidateTransaction(transaction); !status.ok()) return status;
    if (transaction.puts.empty() && transaction.deletes.empty()) return absl::OkStatus();
    const std::string& realm_name =
        transaction.puts.empty() ? transaction.deletes[0].key.realm : transaction.puts[0].key.realm;
    MutexLock lock(&mutex_);
    // First look, then change: nothing below the checks can fail.
    std::map<ChunkId, int64_t> delta;
    for (const Put& put : transaction.puts) {
      const Record* old = Find(put.key);
      const int64_t found = old ? old->version : 0;
      if (found != put.expected_version) {
        return VersionMismatch(put.key, found, put.expected_version);
      }
      if (old) {
        for (const ChunkId& id : old->chunks) --delta[id];
      }
      for (const ChunkId& id : put.chunks) ++delta[id];
    }
    for (const Delete& del : transaction.deletes) {
      const Record* old = Find(del.key);
      const int64_t found = old ? old->version : 0;
      if (found != del.expected_version) {
        return VersionMismatch(del.key, found, del.expected_version);
      }
      for (const ChunkId& id : old->chunks) --delta[id];
    }
    std::map<ChunkId, const std::string*> offered;
    for (const NewChunk& chunk : transaction.new_chunks) offered[chunk.id] = &chunk.bytes;
    const auto existing = realms_.find(realm_name);
    for (const auto& [id, change] : delta) {
      const bool stored = existing != realms_.end() && existing->second.chunks.contains(id);
      if (!stored && !offered.contains(id)) return ChunkMissing(id);
    }

    Realm& realm = realms_[realm_name];
    for (const Put& put : transaction.puts) {
      Record& record = realm.records[put.key.name];
      Unindex(put.key, record);
      if (put.expected_version > 0) Uncount(put.key, record);
      record.version = put.expected_version + 1;
      record.value = put.value;
      record.chunks = put.chunks;
      record.expire_time = ExpiryFromNanos(ExpiryToNanos(put.expire_time));
      if (record.expire_time != absl::InfiniteFuture()) {
        expiry_.insert({record.expire_time, put.key});
      }
      totals_.Add(put.key.realm, TallyOf(tally_, put.key, record.value));
    }
    for (const Delete& del : transaction.deletes) {
      const auto it = realm.records.find(del.key.name);
      Unindex(del.key, it->second);
      Uncount(del.key, it->second);
      realm.records.erase(it);
    }
    for (const auto& [id, change] : delta) {
      if (change == 0) continue;
      const auto [it, added] = realm.chunks.try_emplace(id);
      if (added) it->second.bytes = *offered[id];
      it->second.references += change;
      if (it->second.references == 0) realm.chunks.erase(it);
    }
    if (realm.records.empty()) realms_.erase(realm_name);
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<ListedRecord>> List(const ListOptions& options) const override {
    if (absl::Status status = ValidateListOptions(options); !status.ok()) return status;
    std::vector<ListedRecord> listed;
    MutexLock lock(&mutex_);
    const auto realm = realms_.find(options.realm);
    if (realm == realms_.end()) return listed;
    const auto& records = realm->second.records;
    auto it = options.start_after < options.prefix ? records.lower_bound(options.prefix)
                                                   : records.upper_bound(options.start_after);
    for (; it != records.end() && absl::StartsWith(it->first, options.prefix) &&
           listed.size() < static_cast<size_t>(options.limit);
         ++it) {
      listed.push_back({it->first, it->second});
    }
    return listed;
  }

  absl::StatusOr<std::vector<Key>> Expired(absl::Time now, int limit) const override {
    std::vector<Key> keys;
    MutexLock lock(&mutex_);
    for (const auto& [time, key] : expiry_) {
      if (time > now || keys.size() >= static_cast<size_t>(std::max(limit, 0))) break;
      keys.push_back(key);
    }
    return keys;
  }

  absl::Status KeepTotals(TallyFn tally) override {
    MutexLock lock(&mutex_);
    tally_ = tally;
    totals_ = {};
    for (const auto& [name, realm] : realms_) {
      for (const auto& [record_name, record] : realm.records) {
        totals_.Add(name, TallyOf(tally, {name, record_name}, record.value));
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<Total>> Totals(const std::string& realm) const override {
    MutexLock lock(&mutex_);
    return totals_.Of(realm);
  }

  absl::StatusOr<std::vector<std::string>> Realms() const override {
    std::vector<std::string> names;
    MutexLock lock(&mutex_);
    for (const auto& [name, realm] : realms_) names.push_back(name);
    return names;
  }

  absl::StatusOr<StoreStats> Stats() const override {
    StoreStats stats;
    MutexLock lock(&mutex_);
    for (const auto& [name, realm] : realms_) {
      stats.records += realm.records.size();
      stats.chunks += realm.chunks.size();
      for (const auto& [id, chunk] : realm.chunks) stats.chunk_bytes += chunk.bytes.size();
    }
    return stats;
  }

  absl::Status Probe() override { return absl::OkStatus(); }

 private:
  struct Chunk {
    std::string bytes;
    int64_t references = 0;
  };
  struct Realm {
    std::map<std::string, Record> records;
    std::map<ChunkId, Chunk> chunks;
  };

  const Record* Find(const Key& key) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto realm = realms_.find(key.realm);
    if (realm == realms_.end()) return nullptr;
    const auto record = realm->second.records.find(key.name);
    return record == realm->second.records.end() ? nullptr : &record->second;
  }

  void Unindex(const Key& key, const Record& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    expiry_.erase({record.expire_time, key});
  }
  void Uncount(const Key& key, const Record& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    totals_.Remove(key.realm, TallyOf(tally_, key, record.value));
  }

  mutable Mutex mutex_;
  // A realm without records is erased.
  std::map<std::string, Realm, std::less<>> realms_ ABSL_GUARDED_BY(mutex_);
  std::set<std::pair<absl::Time, Key>> expiry_ ABSL_GUARDED_BY(mutex_);
  TallyFn tally_ ABSL_GUARDED_BY(mutex_) = nullptr;
  TotalsTable totals_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::unique_ptr<StateStore> CreateMemoryStore() { return std::make_unique<MemoryStateStore>(); }

}  // namespace mneme::memstore
