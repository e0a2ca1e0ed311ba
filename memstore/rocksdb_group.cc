#include "memstore/rocksdb_group.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "memstore/rocksdb_keys.h"
#include "memstore/validate.h"

namespace mneme::memstore {

PreparedTransaction::PreparedTransaction(const Transaction& transaction, TallyFn tally)
    : transaction(&transaction) {
  for (const Put& put : transaction.puts) {
    const Record record{put.expected_version + 1, put.value, put.chunks, put.expire_time};
    std::string db_key = RecordKey(put.key);
    std::string value = EncodeRecord(db_key, record);
    size_bytes += value.size();
    puts.push_back({&put, std::move(db_key), std::move(value), ExpiryToNanos(put.expire_time),
                    TallyOf(tally, put.key, put.value)});
  }
  for (const NewChunk& chunk : transaction.new_chunks) {
    if (offered.emplace(chunk.id, &chunk.bytes).second) size_bytes += chunk.bytes.size();
  }
}

bool PreparedTransaction::Grows() const {
  return !transaction->new_chunks.empty() ||
         std::any_of(transaction->puts.begin(), transaction->puts.end(),
                     [](const Put& put) { return put.expected_version == 0; });
}

absl::Status CommitGroup::Add(const PreparedTransaction& prepared) {
  const Transaction& transaction = *prepared.transaction;
  const std::string& realm =
      transaction.puts.empty() ? transaction.deletes[0].key.realm : transaction.puts[0].key.realm;
  std::vector<RecordHead> old_of_puts, old_of_deletes;
  std::map<ChunkId, int64_t> amounts;
  for (const PreparedTransaction::PreparedPut& put : prepared.puts) {
    absl::StatusOr<RecordHead> old =
        ReplacedHead(put.put->key, put.db_key, put.put->expected_version, amounts);
    if (!old.ok()) return old.status();
    for (const ChunkId& id : put.put->chunks) ++amounts[id];
    old_of_puts.push_back(*std::move(old));
  }
  for (const Delete& del : transaction.deletes) {
    absl::StatusOr<RecordHead> old =
        ReplacedHead(del.key, RecordKey(del.key), del.expected_version, amounts);
    if (!old.ok()) return old.status();
    old_of_deletes.push_back(*std::move(old));
  }
  std::vector<ReferenceChange> changes;
  for (const auto& [id, amount] : amounts) {
    if (amount == 0) continue;  // an old record of this transaction refers to it, so it exists
    absl::StatusOr<ReferenceChange> change = ChangeReference(prepared, realm, id, amount);
    if (!change.ok()) return change.status();
    changes.push_back(*std::move(change));
  }

  for (size_t i = 0; i < prepared.puts.size(); ++i) WritePut(prepared.puts[i], old_of_puts[i]);
  for (size_t i = 0; i < transaction.deletes.size(); ++i) {
    WriteDelete(transaction.deletes[i].key, old_of_deletes[i]);
  }
  for (const ReferenceChange& change : changes) WriteReference(prepared, realm, change);
  return absl::OkStatus();
}

absl::StatusOr<CommitGroup::RecordHead> CommitGroup::ReadHead(const Key& key,
                                                              const std::string& db_key) const {
  if (const auto it = records_.find(db_key); it != records_.end()) return it->second;
  absl::StatusOr<Record> record = stored_.Get(key);
  if (absl::IsNotFound(record.status())) return RecordHead{};
  if (!record.ok()) return record.status();
  return RecordHead{record->version, ExpiryToNanos(record->expire_time), std::move(record->chunks),
                    TallyOf(tally_, key, record->value)};
}

absl::StatusOr<CommitGroup::RecordHead> CommitGroup::ReplacedHead(
    const Key& key, const std::string& db_key, int64_t expected_version,
    std::map<ChunkId, int64_t>& references) const {
  absl::StatusOr<RecordHead> old = ReadHead(key, db_key);
  if (!old.ok()) return old;
  if (old->version != expected_version) {
    return VersionMismatch(key, old->version, expected_version);
  }
  for (const ChunkId& id : old->chunks) --references[id];
  return old;
}

absl::StatusOr<CommitGroup::ReferenceChange> CommitGroup::ChangeReference(
    const PreparedTransaction& prepared, const std::string& realm, const ChunkId& id,
    int64_t amount) const {
  ReferenceChange change{.id = id, .db_key = ReferenceKey(realm, id), .before = {}, .after = {}};
  if (const auto it = references_.find(change.db_key); it != references_.end()) {
    change.before = it->second;
  } else {
    absl::StatusOr<ChunkReference> stored = stored_.GetReference(change.db_key, id);
    if (!stored.ok()) return stored.status();
    change.before = *stored;
  }
  change.after = change.before;
  if (change.before.count == 0) {
    if (amount < 0) {
      return absl::DataLossError(
          absl::StrCat("chunk ", ChunkText(id), " lost its reference count"));
    }
    const auto offered = prepared.offered.find(id);
    if (offered == prepared.offered.end()) return ChunkMissing(id);
    change.after.size_bytes = offered->second->size();
  } else if (amount < 0 && change.before.count < static_cast<uint64_t>(-amount)) {
    return absl::DataLossError(absl::StrCat("chunk ", ChunkText(id), " has ", change.before.count,
                                            " references, ", -amount, " are to go"));
  }
  change.after.count += amount;
  return change;
}

void CommitGroup::WritePut(const PreparedTransaction::PreparedPut& prepared,
                           const RecordHead& old) {
  if (old.version != 0 && old.expiry_ns != kNeverExpires && old.expiry_ns != prepared.expiry_ns) {
    batch_.Delete(ExpiryKey(old.expiry_ns, prepared.put->key));
  }
  if (prepared.expiry_ns != kNeverExpires &&
      (old.version == 0 || old.expiry_ns != prepared.expiry_ns)) {
    batch_.Put(ExpiryKey(prepared.expiry_ns, prepared.put->key), rocksdb::Slice());
  }
  batch_.Put(prepared.db_key, prepared.value);
  if (old.version == 0) ++change_.records;
  totals_change_.Remove(prepared.put->key.realm, old.tally);
  totals_change_.Add(prepared.put->key.realm, prepared.tally);
  records_[prepared.db_key] = {old.version + 1, prepared.expiry_ns, prepared.put->chunks,
                               prepared.tally};
}

void CommitGroup::WriteDelete(const Key& key, const RecordHead& old) {
  if (old.expiry_ns != kNeverExpires) batch_.Delete(ExpiryKey(old.expiry_ns, key));
  const std::string db_key = RecordKey(key);
  batch_.Delete(db_key);
  --change_.records;
  totals_change_.Remove(key.realm, old.tally);
  records_[db_key] = RecordHead{};
}

void CommitGroup::WriteReference(const PreparedTransaction& prepared, const std::string& realm,
                                 const ReferenceChange& change) {
  const auto size_bytes = static_cast<int64_t>(change.after.size_bytes);
  if (change.after.count == 0) {
    batch_.Delete(change.db_key);
    batch_.Delete(ChunkKey(realm, change.id));
    --change_.chunks;
    change_.chunk_bytes -= size_bytes;
  } else {
    batch_.Put(change.db_key, EncodeReference(change.db_key, change.after));
    if (change.before.count == 0) {
      batch_.Put(ChunkKey(realm, change.id), *prepared.offered.at(change.id));
      ++change_.chunks;
      change_.chunk_bytes += size_bytes;
    }
  }
  references_[change.db_key] = change.after;
}

}  // namespace mneme::memstore
