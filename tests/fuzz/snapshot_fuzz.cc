// Manifests and chunks from anywhere: parsed as they are, then with the outer fields (magic,
// length, checksum) made right so that the inner checks are reached, then decoded against a small
// schema with chunks whose checksums are made right too. Nothing may crash; what is accepted must
// encode again.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "engine/state/crc32c.h"
#include "engine/state/snapshot.h"

namespace mneme::engine {
namespace {

constexpr size_t kSchemaHashOffset = 48;

const StateSchema& Schema() {
  static const StateSchema schema({
      {.layer = -1, .name = "sum", .dtype = DType::kF32, .shape = {3}},
      {.layer = 0,
       .name = "k",
       .dtype = DType::kF16,
       .shape = {10, 4},
       .kind = StateKind::kRing,
       .sinks = 2,
       .window = 8},
  });
  return schema;
}

SnapshotIdentity Identity() {
  return {.architecture = "toy", .model_fingerprint = std::string(32, 'f'), .numerics_id = "fuzz"};
}

// Makes magic, version, length, schema hash and checksum right.
std::string Repair(std::string bytes) {
  if (bytes.size() < kSchemaHashOffset + 32 + 4) return bytes;
  std::memcpy(bytes.data(), "MNEMSNAP\2\0\0\0", 12);
  const auto total = static_cast<uint32_t>(bytes.size());
  std::memcpy(bytes.data() + 12, &total, 4);
  std::memset(bytes.data() + 16, 'f', 32);
  std::memcpy(bytes.data() + kSchemaHashOffset, Schema().hash().data(), 32);
  const uint32_t crc = Crc32c(std::string_view(bytes).substr(0, bytes.size() - 4));
  std::memcpy(bytes.data() + bytes.size() - 4, &crc, 4);
  return bytes;
}

void Decode(SnapshotManifest manifest) {
  manifest.identity.architecture = "toy";
  std::map<ChunkHash, std::string> stored;
  for (SnapshotChunk& chunk : manifest.chunks) {
    std::string bytes(std::min<uint32_t>(chunk.size_bytes, 4096), '\0');
    for (size_t i = 0; i < bytes.size(); ++i) {
      bytes[i] = static_cast<char>(chunk.hash[i % chunk.hash.size()]);
    }
    chunk.crc32c = Crc32c(bytes);
    stored[chunk.hash] = std::move(bytes);
  }
  auto decoded = DecodeSnapshot(
      StatePool(HostMemory(), Schema()), Identity(), manifest,
      [&](const ChunkHash& hash) -> absl::StatusOr<std::string> { return stored[hash]; });
  if (!decoded.ok()) return;
  auto again = EncodeSnapshot(Schema(), *decoded, Identity(), nullptr);
  if (!again.ok() || again->manifest.position != manifest.position) std::abort();
}

}  // namespace
}  // namespace mneme::engine

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mneme::engine;
  const std::string raw(reinterpret_cast<const char*>(data), size);
  (void)SnapshotManifest::Parse(raw);
  auto manifest = SnapshotManifest::Parse(Repair(raw));
  if (manifest.ok()) Decode(*std::move(manifest));
  return 0;
}
