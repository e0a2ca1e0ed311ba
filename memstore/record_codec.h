// Bytes of the entries that the embedded store keeps. Little-endian, whatever the machine.
//
//   record     u8 1 | i64 version | i64 expiry_ns | u32 chunk count | 32 bytes each |
//              u32 value size | value | u32 CRC32C
//   reference  u8 1 | u64 count >= 1 | u64 chunk size_bytes | u32 CRC32C
//   figures    u8 1 | u8 1 if totals are kept, else 0 | i64 records | i64 chunks |
//              i64 chunk_bytes | u32 CRC32C
//   total      u8 1 | i64 records | i64 amount | u32 CRC32C
//
// The CRC covers the database key followed by all bytes before it, so that a value under a wrong
// key is noticed too. Decoders treat their input as hostile: DATA_LOSS (which does not repeat the
// key; the caller names it), never a crash, and no allocation beyond a small multiple of the input.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "memstore/state_store.h"
#include "memstore/totals.h"

namespace mneme::memstore {

struct ChunkReference {
  uint64_t count = 0;
  uint64_t size_bytes = 0;

  bool operator==(const ChunkReference&) const = default;
};

std::string EncodeRecord(std::string_view db_key, const Record& record);
absl::StatusOr<Record> DecodeRecord(std::string_view db_key, std::string_view bytes);

std::string EncodeReference(std::string_view db_key, const ChunkReference& reference);
absl::StatusOr<ChunkReference> DecodeReference(std::string_view db_key, std::string_view bytes);

// Of the whole store.
struct Figures {
  StoreStats stats;
  bool totals_kept = false;
};
std::string EncodeFigures(std::string_view db_key, const Figures& figures);
absl::StatusOr<Figures> DecodeFigures(std::string_view db_key, std::string_view bytes);

std::string EncodeTotal(std::string_view db_key, const TotalsTable::Sum& sum);
absl::StatusOr<TotalsTable::Sum> DecodeTotal(std::string_view db_key, std::string_view bytes);

uint32_t Crc32c(uint32_t crc, std::string_view bytes);

}  // namespace mneme::memstore
