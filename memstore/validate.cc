#include "memstore/validate.h"

#include <openssl/sha.h>

#include <limits>
#include <set>
#include <tuple>

#include "absl/strings/cord.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace mneme::memstore {
namespace {

bool Printable(std::string_view text) {
  for (const char c : text) {
    if (c < 0x20 || c > 0x7e) return false;
  }
  return true;
}

absl::Status ValidatePart(const char* what, std::string_view part) {
  if (part.empty() || part.size() > kMaxKeyPartBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " must have 1 to ", kMaxKeyPartBytes, " bytes, has ", part.size()));
  }
  if (!Printable(part)) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " holds a byte that is not printable ASCII"));
  }
  return absl::OkStatus();
}

// One realm for all keys, no key twice.
class KeyChecker {
 public:
  absl::Status Add(const Key& key) {
    if (absl::Status status = ValidateKey(key); !status.ok()) return status;
    if (!realm_) realm_ = &key.realm;
    if (*realm_ != key.realm) {
      return absl::InvalidArgumentError(absl::StrCat("a transaction must stay in one realm, found ",
                                                     *realm_, " and ", key.realm));
    }
    if (!names_.insert(key.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("key ", KeyText(key), " occurs twice in a transaction"));
    }
    return absl::OkStatus();
  }

 private:
  const std::string* realm_ = nullptr;
  std::set<std::string_view> names_;
};

}  // namespace

absl::Status ValidateRealm(std::string_view realm) { return ValidatePart("realm", realm); }

absl::Status ValidateKey(const Key& key) {
  if (absl::Status status = ValidateRealm(key.realm); !status.ok()) return status;
  return ValidatePart("name", key.name);
}

absl::Status ValidateListOptions(const ListOptions& options) {
  if (absl::Status status = ValidateRealm(options.realm); !status.ok()) return status;
  if (options.prefix.size() > kMaxKeyPartBytes || !Printable(options.prefix)) {
    return absl::InvalidArgumentError("list prefix is longer than a name or not printable ASCII");
  }
  if (options.start_after.size() > kMaxKeyPartBytes || !Printable(options.start_after)) {
    return absl::InvalidArgumentError("list start is longer than a name or not printable ASCII");
  }
  if (options.limit < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("list limit must be at least 1, is ", options.limit));
  }
  return absl::OkStatus();
}

absl::Status ValidateTransaction(const Transaction& transaction) {
  KeyChecker keys;
  for (const Put& put : transaction.puts) {
    if (absl::Status status = keys.Add(put.key); !status.ok()) return status;
    if (put.expected_version < 0 || put.expected_version == std::numeric_limits<int64_t>::max()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "put of ", KeyText(put.key), " expects the impossible version ", put.expected_version));
    }
    // Sizes are kept in 32 bits on disk; far below that a record stops being "small".
    if (put.value.size() > (64u << 20) || put.chunks.size() > (1u << 20)) {
      return absl::InvalidArgumentError(
          absl::StrCat("value or chunk list of ", KeyText(put.key), " is too large"));
    }
  }
  for (const Delete& del : transaction.deletes) {
    if (absl::Status status = keys.Add(del.key); !status.ok()) return status;
    if (del.expected_version < 1) {
      return absl::InvalidArgumentError(absl::StrCat("delete of ", KeyText(del.key),
                                                     " expects the impossible version ",
                                                     del.expected_version));
    }
  }
  return absl::OkStatus();
}

std::string KeyText(const Key& key) { return absl::StrCat(key.realm, "/", key.name); }

std::string ChunkText(const ChunkId& id) {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(id.data()), id.size()));
}

absl::Status VersionMismatch(const Key& key, int64_t found_version, int64_t expected_version) {
  absl::Status status = absl::AbortedError(absl::StrCat(
      "key ", KeyText(key), " has version ", found_version, ", expected ", expected_version));
  status.SetPayload(kVersionPayload, absl::Cord(absl::StrCat(found_version)));
  return status;
}

absl::Status RecordNotFound(const Key& key) {
  return absl::NotFoundError(absl::StrCat("no record ", KeyText(key)));
}

absl::Status ChunkNotFound(const ChunkId& id) {
  return absl::NotFoundError(absl::StrCat("no chunk ", ChunkText(id)));
}

absl::Status ChunkDamaged(std::string_view realm, const ChunkId& id) {
  return absl::DataLossError(absl::StrCat("chunk ", ChunkText(id), " of realm ", std::string(realm),
                                          " does not match its SHA-256"));
}

absl::Status ChunkMissing(const ChunkId& id) {
  return absl::FailedPreconditionError(
      absl::StrCat("chunk ", ChunkText(id), " is neither stored nor part of the transaction"));
}

absl::Status NotDurable(std::string_view why) {
  absl::Status status = absl::UnavailableError(absl::string_view(why.data(), why.size()));
  status.SetPayload(kNotDurablePayload, absl::Cord());
  return status;
}

int64_t ExpiryToNanos(absl::Time time) {
  if (time == absl::InfiniteFuture()) return std::numeric_limits<int64_t>::max();
  if (time == absl::InfinitePast()) return std::numeric_limits<int64_t>::min();
  return absl::ToUnixNanos(time);  // saturates
}

absl::Time ExpiryFromNanos(int64_t nanos) {
  if (nanos == std::numeric_limits<int64_t>::max()) return absl::InfiniteFuture();
  if (nanos == std::numeric_limits<int64_t>::min()) return absl::InfinitePast();
  return absl::FromUnixNanos(nanos);
}

ChunkId HashChunk(std::string_view bytes) {
  ChunkId id;
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), id.data());
  return id;
}

}  // namespace mneme::memstore
