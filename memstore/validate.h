// What every store checks before it looks at its data, so that all refuse the same input alike.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "memstore/state_store.h"

namespace mneme::memstore {

inline constexpr size_t kMaxKeyPartBytes = 512;

// INVALID_ARGUMENT unless 1 to 512 bytes of printable ASCII (0x20 to 0x7e). So neither part of a
// key holds a NUL, which stores may use as a separator.
absl::Status ValidateRealm(std::string_view realm);
absl::Status ValidateKey(const Key& key);
absl::Status ValidateListOptions(const ListOptions& options);

// Keys, realms, duplicates and versions. A new chunk that no put refers to is legal and is not
// stored.
absl::Status ValidateTransaction(const Transaction& transaction);

// "realm/name" for messages.
std::string KeyText(const Key& key);
std::string ChunkText(const ChunkId& id);  // lower-case hex

absl::Status VersionMismatch(const Key& key, int64_t found_version, int64_t expected_version);
absl::Status RecordNotFound(const Key& key);
absl::Status ChunkNotFound(const ChunkId& id);
absl::Status ChunkDamaged(std::string_view realm, const ChunkId& id);
absl::Status ChunkMissing(const ChunkId& id);   // FAILED_PRECONDITION of a commit
absl::Status NotDurable(std::string_view why);  // UNAVAILABLE with kNotDurablePayload

// Expiry times are kept in whole nanoseconds since 1970, as int64: INT64_MAX is never. Times beyond
// the years 1677 to 2262 become InfinitePast and InfiniteFuture.
int64_t ExpiryToNanos(absl::Time time);
absl::Time ExpiryFromNanos(int64_t nanos);

}  // namespace mneme::memstore
