#include "memstore/rocksdb_keys.h"

#include <utility>

namespace mneme::memstore {
namespace {

constexpr size_t kExpiryPrefixBytes = 9;

std::string ChunkIdKey(char kind, std::string_view realm, const ChunkId& id) {
  std::string key = RealmPrefix(kind, realm);
  key.append(reinterpret_cast<const char*>(id.data()), id.size());
  return key;
}

// realm + NUL + name behind `prefix_bytes`.
std::optional<Key> KeyBehind(std::string_view db_key, size_t prefix_bytes) {
  if (db_key.size() < prefix_bytes) return std::nullopt;
  db_key.remove_prefix(prefix_bytes);
  const size_t separator = db_key.find('\0');
  if (separator == std::string_view::npos) return std::nullopt;
  return Key{std::string(db_key.substr(0, separator)), std::string(db_key.substr(separator + 1))};
}

}  // namespace

std::string RealmPrefix(char kind, std::string_view realm) {
  std::string key(1, kind);
  key.append(realm);
  key.push_back('\0');
  return key;
}

std::string RecordKey(const Key& key) { return RealmPrefix('r', key.realm) + key.name; }

std::string ReferenceKey(std::string_view realm, const ChunkId& id) {
  return ChunkIdKey('f', realm, id);
}

std::string ChunkKey(std::string_view realm, const ChunkId& id) {
  return ChunkIdKey('c', realm, id);
}

std::string TotalKey(const std::string& realm, int kind) {
  return RealmPrefix('t', realm) + static_cast<char>('0' + kind);
}

std::string ExpiryPrefix(int64_t expiry_ns) {
  // Big-endian with the sign bit flipped.
  const uint64_t ordered = static_cast<uint64_t>(expiry_ns) ^ (1ull << 63);
  std::string key(1, 'x');
  for (int shift = 56; shift >= 0; shift -= 8) key.push_back(static_cast<char>(ordered >> shift));
  return key;
}

std::string ExpiryKey(int64_t expiry_ns, const Key& key) {
  std::string db_key = ExpiryPrefix(expiry_ns);
  db_key.append(key.realm);
  db_key.push_back('\0');
  db_key.append(key.name);
  return db_key;
}

std::optional<Key> KeyOfRecord(std::string_view db_key) { return KeyBehind(db_key, 1); }

std::optional<Key> KeyOfExpiry(std::string_view db_key) {
  return KeyBehind(db_key, kExpiryPrefixBytes);
}

std::optional<std::pair<std::string, int>> KeyOfTotal(std::string_view db_key) {
  std::optional<Key> key = KeyBehind(db_key, 1);
  if (!key || key->name.size() != 1 || key->name[0] < '1' || key->name[0] > '0' + kMaxTallyKind) {
    return std::nullopt;
  }
  return std::pair(std::move(key->realm), key->name[0] - '0');
}

std::string PrefixEnd(std::string prefix) {
  prefix.back() = static_cast<char>(static_cast<unsigned char>(prefix.back()) + 1);  // never 0xff
  return prefix;
}

}  // namespace mneme::memstore
