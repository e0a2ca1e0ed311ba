// Files of sessions from anywhere: as they are and in pieces, as the content of a compressed one,
// and as a header whose length and checksum are made right so that its fields are reached. Nothing
// may crash, nothing may be kept that the header did not announce, and a header that is accepted is
// written as the same bytes.
#include <zstd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "engine/state/crc32c.h"
#include "server/core/session_file.h"

namespace mneme::server {
namespace {

constexpr size_t kPreambleBytes = 16;

void Read(std::string_view file, size_t piece) {
  int64_t announced = 0, kept = 0;
  SessionFileReader reader(
      [&](const SessionFileHeader&, const std::vector<FileChunk>& chunks) -> absl::Status {
        for (const FileChunk& chunk : chunks) announced += chunk.size_bytes;
        // As the server refuses what a model's state cannot have.
        return announced > 64 << 20 ? absl::InvalidArgumentError("too much") : absl::OkStatus();
      },
      [&](const FileChunk& chunk, std::string bytes) {
        if (memstore::HashChunk(bytes) != chunk.id) std::abort();
        kept += static_cast<int64_t>(bytes.size());
        return absl::OkStatus();
      });
  absl::Status status;
  for (size_t at = 0; at < file.size() && status.ok(); at += piece) {
    status = reader.Feed(file.substr(at, piece));
  }
  if (kept > announced) std::abort();
  const absl::Status end = reader.Finish();
  if (end.ok() && kept != announced) std::abort();
  if (!status.ok() && end.ok()) std::abort();
}

std::string Preamble(bool compressed) {
  return std::string("MNEMSESS\1\0\0\0", 12) + std::string(compressed ? "\1\0\0\0" : "\0\0\0\0", 4);
}

// Its length and checksum made right.
void Header(std::string bytes) {
  if (bytes.size() < 8) return;
  const auto total = static_cast<uint32_t>(bytes.size());
  std::memcpy(bytes.data(), &total, 4);
  const uint32_t crc = engine::Crc32c(std::string_view(bytes).substr(0, bytes.size() - 4));
  std::memcpy(bytes.data() + bytes.size() - 4, &crc, 4);
  const auto header = SessionFileHeader::Parse(bytes);
  if (header.ok() && header->Serialize() != bytes) std::abort();
  Read(Preamble(false) + bytes, 1 << 20);
}

}  // namespace
}  // namespace mneme::server

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mneme::server;
  const std::string raw(reinterpret_cast<const char*>(data), size);
  Read(raw, 1 << 20);
  Read(raw, 1 + size % 61);
  Header(raw);
  if (size > kPreambleBytes) Header(raw.substr(kPreambleBytes));
  Read(Preamble(true) + raw, 1 + size % 251);
  std::string packed(ZSTD_compressBound(size), '\0');
  packed.resize(ZSTD_compress(packed.data(), packed.size(), raw.data(), raw.size(), 1));
  Read(Preamble(true) + packed, 4096);
  return 0;
}
