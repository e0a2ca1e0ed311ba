// SnapshotManifest <-> bytes. Layout: docs/state_format.md, "Manifest".

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/state/crc32c.h"
#include "engine/state/little_endian.h"
#include "engine/state/snapshot.h"

namespace mneme::engine {
namespace {

constexpr char kWhat[] = "snapshot manifest";
constexpr char kMagic[8] = {'M', 'N', 'E', 'M', 'S', 'N', 'A', 'P'};
constexpr size_t kMaxManifestBytes = 64 << 20;
constexpr size_t kChunkEntryBytes = 64;

absl::Status Corrupt(std::string_view field, std::string_view expected) {
  return LittleEndianCursor(kWhat, "").Corrupt(field, expected);
}

// Messages show it, and must be text.
absl::StatusOr<std::string> ReadName(LittleEndianCursor& cursor, std::string_view field) {
  MNEME_ASSIGN_OR_RETURN(std::string name, cursor.Name(field));
  const auto is_printable = [](char c) { return c >= ' ' && c <= '~'; };
  if (!std::ranges::all_of(name, is_printable)) return Corrupt(field, "is not printable ASCII");
  return name;
}

absl::StatusOr<SnapshotChunk> ReadChunk(LittleEndianCursor& cursor) {
  SnapshotChunk chunk;
  MNEME_ASSIGN_OR_RETURN(const uint8_t kind, cursor.Read<uint8_t>("chunk kind"));
  if (kind < 1 || kind > 3) return Corrupt("chunk kind", "must be 1, 2 or 3");
  chunk.kind = static_cast<SnapshotChunk::Kind>(kind);
  MNEME_ASSIGN_OR_RETURN(chunk.ring_class, cursor.Read<uint8_t>("chunk ring_class"));
  MNEME_ASSIGN_OR_RETURN(const uint16_t reserved, cursor.Read<uint16_t>("chunk reserved"));
  MNEME_ASSIGN_OR_RETURN(chunk.size_bytes, cursor.Read<uint32_t>("chunk size_bytes"));
  MNEME_ASSIGN_OR_RETURN(chunk.crc32c, cursor.Read<uint32_t>("chunk crc32c"));
  MNEME_ASSIGN_OR_RETURN(const uint32_t reserved2, cursor.Read<uint32_t>("chunk reserved"));
  if (reserved != 0 || reserved2 != 0) return Corrupt("chunk reserved", "must be 0");
  MNEME_ASSIGN_OR_RETURN(chunk.first, cursor.Read<int64_t>("chunk first"));
  MNEME_ASSIGN_OR_RETURN(chunk.end, cursor.Read<int64_t>("chunk end"));
  if (chunk.first < 0 || chunk.end <= chunk.first) {
    return Corrupt("chunk first, end", "must satisfy 0 <= first < end");
  }
  MNEME_ASSIGN_OR_RETURN(const std::string hash, cursor.Bytes(chunk.hash.size(), "chunk hash"));
  std::memcpy(chunk.hash.data(), hash.data(), hash.size());
  return chunk;
}

}  // namespace

std::string SnapshotManifest::Serialize() const {
  std::string out(kMagic, sizeof(kMagic));
  AppendLittle(out, format_version);
  AppendLittle(out, uint32_t{0});  // total size, filled in below
  out += identity.model_fingerprint;
  out += schema_hash;
  AppendLittle(out, position);
  AppendLittle(out, hidden_size);
  AppendName(out, identity.architecture);
  AppendName(out, identity.numerics_id);
  AppendLittle(out, static_cast<uint32_t>(chunks.size()));
  for (const SnapshotChunk& chunk : chunks) {
    AppendLittle(out, static_cast<uint8_t>(chunk.kind));
    AppendLittle(out, chunk.ring_class);
    AppendLittle(out, uint16_t{0});
    AppendLittle(out, chunk.size_bytes);
    AppendLittle(out, chunk.crc32c);
    AppendLittle(out, uint32_t{0});
    AppendLittle(out, chunk.first);
    AppendLittle(out, chunk.end);
    out.append(reinterpret_cast<const char*>(chunk.hash.data()), chunk.hash.size());
  }
  const auto total = static_cast<uint32_t>(out.size() + sizeof(uint32_t));
  std::memcpy(out.data() + 12, &total, sizeof(total));
  AppendLittle(out, Crc32c(out));
  return out;
}

absl::StatusOr<SnapshotManifest> SnapshotManifest::Parse(std::string_view bytes) {
  if (bytes.size() > kMaxManifestBytes) return Corrupt("size", "larger than 64 MiB");
  LittleEndianCursor cursor(kWhat, bytes);
  MNEME_ASSIGN_OR_RETURN(const std::string magic, cursor.Bytes(sizeof(kMagic), "magic"));
  if (std::memcmp(magic.data(), kMagic, sizeof(kMagic)) != 0) {
    return Corrupt("magic", "expected \"MNEMSNAP\": this is not a snapshot");
  }
  MNEME_ASSIGN_OR_RETURN(const uint32_t version, cursor.Read<uint32_t>("format_version"));
  if (version < 1 || version > kSnapshotFormat) {
    return absl::FailedPreconditionError(absl::StrCat("snapshot manifest: format_version ", version,
                                                      " is too ", version < 1 ? "old" : "new",
                                                      "; this build reads ", kSnapshotFormat));
  }
  MNEME_ASSIGN_OR_RETURN(const uint32_t total, cursor.Read<uint32_t>("manifest_bytes"));
  if (total != bytes.size()) {
    return Corrupt("manifest_bytes", absl::StrCat("says ", total, ", found ", bytes.size()));
  }
  uint32_t crc = 0;
  std::memcpy(&crc, bytes.data() + bytes.size() - sizeof(crc), sizeof(crc));
  if (crc != Crc32c(bytes.substr(0, bytes.size() - sizeof(crc)))) {
    return Corrupt("crc32c", "checksum does not match the content");
  }

  SnapshotManifest manifest;
  manifest.format_version = version;
  MNEME_ASSIGN_OR_RETURN(manifest.identity.model_fingerprint,
                         cursor.Bytes(32, "model_fingerprint"));
  MNEME_ASSIGN_OR_RETURN(manifest.schema_hash, cursor.Bytes(32, "schema_hash"));
  MNEME_ASSIGN_OR_RETURN(manifest.position, cursor.Read<int64_t>("position"));
  MNEME_ASSIGN_OR_RETURN(manifest.hidden_size, cursor.Read<int64_t>("hidden_size"));
  if (manifest.position < 0) return Corrupt("position", "must not be negative");
  if (manifest.hidden_size < 0) return Corrupt("hidden_size", "must not be negative");
  MNEME_ASSIGN_OR_RETURN(manifest.identity.architecture, ReadName(cursor, "architecture"));
  MNEME_ASSIGN_OR_RETURN(manifest.identity.numerics_id, ReadName(cursor, "numerics_id"));
  MNEME_ASSIGN_OR_RETURN(const uint32_t count, cursor.Read<uint32_t>("chunk_count"));
  if (cursor.remaining() != count * uint64_t{kChunkEntryBytes} + sizeof(crc)) {
    return Corrupt("chunk_count", absl::StrCat(count, " entries do not fill the manifest"));
  }
  manifest.chunks.reserve(count);
  for (uint32_t i = 0; i < count; ++i) {
    MNEME_ASSIGN_OR_RETURN(SnapshotChunk chunk, ReadChunk(cursor));
    manifest.chunks.push_back(chunk);
  }
  return manifest;
}

}  // namespace mneme::engine
