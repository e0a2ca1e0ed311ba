// Where the embedded store keeps what. One key space, one column family, so that one WriteBatch is
// atomic by construction:
//   'm' + "format"                     u32 store format, then the CRC32C of key and value
//   'm' + "probe"                      what Probe() wrote last
//   'm' + "figures"                    what the store holds in all (record_codec.h)
//   'r' + realm + NUL + name           record      (record_codec.h)
//   'f' + realm + NUL + chunk id       reference count and size of a chunk
//   'c' + realm + NUL + chunk id       the chunk's bytes
//   't' + realm + NUL + digit          total of the kind that the digit says
//   'x' + big-endian expiry_ns ^ sign + realm + NUL + name     empty: the expiry index
// Realms and names hold no NUL, so keys order by (realm, name) and never collide.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "memstore/state_store.h"

namespace mneme::memstore {

inline constexpr char kProbeKey[] = "mprobe";
inline constexpr char kFiguresKey[] = "mfigures";
// Never in the index.
inline constexpr int64_t kNeverExpires = INT64_MAX;

// `kind` as above: what all keys of a realm begin with.
std::string RealmPrefix(char kind, std::string_view realm);
std::string RecordKey(const Key& key);
std::string ReferenceKey(std::string_view realm, const ChunkId& id);
std::string ChunkKey(std::string_view realm, const ChunkId& id);

std::string TotalKey(const std::string& realm, int kind);

// Bytewise order of prefixes is the order of time.
std::string ExpiryPrefix(int64_t expiry_ns);
std::string ExpiryKey(int64_t expiry_ns, const Key& key);

// Of a record's or an index entry's key; nullopt: malformed.
std::optional<Key> KeyOfRecord(std::string_view db_key);
std::optional<Key> KeyOfExpiry(std::string_view db_key);
std::optional<std::pair<std::string, int>> KeyOfTotal(std::string_view db_key);

// The first key after all that begin with `prefix`, one of the above.
std::string PrefixEnd(std::string prefix);

}  // namespace mneme::memstore
