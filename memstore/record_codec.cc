#include "memstore/record_codec.h"

#include <isa-l/crc.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "memstore/validate.h"

namespace mneme::memstore {
namespace {

constexpr uint8_t kEntryFormat = 1;
constexpr size_t kCrcBytes = 4;

template <typename T>
void Append(std::string& out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) {
    out.push_back(static_cast<char>(static_cast<uint64_t>(value) >> (8 * i)));
  }
}

template <typename T>
T Load(const char* bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) {
    value |= static_cast<uint64_t>(static_cast<uint8_t>(bytes[i])) << (8 * i);
  }
  return static_cast<T>(value);
}

class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}

  template <typename T>
  bool Read(T* value) {
    std::string_view bytes;
    if (!Read(sizeof(T), &bytes)) return false;
    *value = Load<T>(bytes.data());
    return true;
  }
  bool Read(size_t size, std::string_view* bytes) {
    if (rest_.size() < size) return false;
    *bytes = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return true;
  }
  size_t size() const { return rest_.size(); }

 private:
  std::string_view rest_;
};

void Seal(std::string_view db_key, std::string& out) {
  Append<uint32_t>(out, Crc32c(Crc32c(0, db_key), out));
}

// Checks the CRC and the format; what is left is the body.
absl::StatusOr<Reader> Unseal(std::string_view db_key, std::string_view bytes) {
  if (bytes.size() < kCrcBytes + 1) return absl::DataLossError("entry is cut short");
  const std::string_view body = bytes.substr(0, bytes.size() - kCrcBytes);
  if (Crc32c(Crc32c(0, db_key), body) != Load<uint32_t>(body.data() + body.size())) {
    return absl::DataLossError("entry does not match its CRC32C");
  }
  if (static_cast<uint8_t>(body[0]) != kEntryFormat) {
    return absl::DataLossError(
        absl::StrCat("entry has the unknown format ", static_cast<uint8_t>(body[0])));
  }
  return Reader(body.substr(1));
}

}  // namespace

uint32_t Crc32c(uint32_t crc, std::string_view bytes) {
  // ISA-L wants the inverted running value and a non-const pointer that it does not write to.
  return ~crc32_iscsi(reinterpret_cast<unsigned char*>(const_cast<char*>(bytes.data())),
                      static_cast<int>(bytes.size()), ~crc);
}

std::string EncodeRecord(std::string_view db_key, const Record& record) {
  std::string out;
  out.reserve(29 + record.chunks.size() * sizeof(ChunkId) + record.value.size());
  Append<uint8_t>(out, kEntryFormat);
  Append<int64_t>(out, record.version);
  Append<int64_t>(out, ExpiryToNanos(record.expire_time));
  Append<uint32_t>(out, record.chunks.size());
  for (const ChunkId& id : record.chunks) {
    out.append(reinterpret_cast<const char*>(id.data()), id.size());
  }
  Append<uint32_t>(out, record.value.size());
  out.append(record.value);
  Seal(db_key, out);
  return out;
}

absl::StatusOr<Record> DecodeRecord(std::string_view db_key, std::string_view bytes) {
  absl::StatusOr<Reader> reader = Unseal(db_key, bytes);
  if (!reader.ok()) return reader.status();
  Record record;
  int64_t expiry_ns = 0;
  uint32_t chunk_count = 0, value_size = 0;
  if (!reader->Read(&record.version) || !reader->Read(&expiry_ns) || !reader->Read(&chunk_count)) {
    return absl::DataLossError("record is cut short");
  }
  if (record.version < 1) {
    return absl::DataLossError(absl::StrCat("record has the version ", record.version));
  }
  if (chunk_count > reader->size() / sizeof(ChunkId)) {
    return absl::DataLossError("record has fewer bytes than its chunk list needs");
  }
  record.expire_time = ExpiryFromNanos(expiry_ns);
  record.chunks.resize(chunk_count);
  for (ChunkId& id : record.chunks) {
    std::string_view raw;
    reader->Read(id.size(), &raw);
    std::memcpy(id.data(), raw.data(), id.size());
  }
  std::string_view value;
  if (!reader->Read(&value_size) || !reader->Read(value_size, &value) || reader->size() != 0) {
    return absl::DataLossError("record does not end where its value does");
  }
  record.value = value;
  return record;
}

std::string EncodeReference(std::string_view db_key, const ChunkReference& reference) {
  std::string out;
  Append<uint8_t>(out, kEntryFormat);
  Append<uint64_t>(out, reference.count);
  Append<uint64_t>(out, reference.size_bytes);
  Seal(db_key, out);
  return out;
}

absl::StatusOr<ChunkReference> DecodeReference(std::string_view db_key, std::string_view bytes) {
  absl::StatusOr<Reader> reader = Unseal(db_key, bytes);
  if (!reader.ok()) return reader.status();
  ChunkReference reference;
  if (!reader->Read(&reference.count) || !reader->Read(&reference.size_bytes) ||
      reader->size() != 0) {
    return absl::DataLossError("chunk reference has a wrong size");
  }
  if (reference.count == 0 || reference.count > (1ull << 62)) {
    return absl::DataLossError(absl::StrCat("chunk has ", reference.count, " references"));
  }
  return reference;
}

std::string EncodeFigures(std::string_view db_key, const Figures& figures) {
  std::string out;
  Append<uint8_t>(out, kEntryFormat);
  Append<uint8_t>(out, figures.totals_kept ? 1 : 0);
  Append<int64_t>(out, figures.stats.records);
  Append<int64_t>(out, figures.stats.chunks);
  Append<int64_t>(out, figures.stats.chunk_bytes);
  Seal(db_key, out);
  return out;
}

absl::StatusOr<Figures> DecodeFigures(std::string_view db_key, std::string_view bytes) {
  absl::StatusOr<Reader> reader = Unseal(db_key, bytes);
  if (!reader.ok()) return reader.status();
  Figures figures;
  uint8_t totals_kept = 0;
  if (!reader->Read(&totals_kept) || !reader->Read(&figures.stats.records) ||
      !reader->Read(&figures.stats.chunks) || !reader->Read(&figures.stats.chunk_bytes) ||
      reader->size() != 0) {
    return absl::DataLossError("the store's figures have a wrong size");
  }
  if (totals_kept > 1) return absl::DataLossError("the store's figures have a wrong flag");
  figures.totals_kept = totals_kept == 1;
  return figures;
}

std::string EncodeTotal(std::string_view db_key, const TotalsTable::Sum& sum) {
  std::string out;
  Append<uint8_t>(out, kEntryFormat);
  Append<int64_t>(out, sum.records);
  Append<int64_t>(out, sum.amount);
  Seal(db_key, out);
  return out;
}

absl::StatusOr<TotalsTable::Sum> DecodeTotal(std::string_view db_key, std::string_view bytes) {
  absl::StatusOr<Reader> reader = Unseal(db_key, bytes);
  if (!reader.ok()) return reader.status();
  TotalsTable::Sum sum;
  if (!reader->Read(&sum.records) || !reader->Read(&sum.amount) || reader->size() != 0) {
    return absl::DataLossError("a total has a wrong size");
  }
  return sum;
}

}  // namespace mneme::memstore
