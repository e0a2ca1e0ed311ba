// Entries of the embedded store. The input is taken as it is (its CRC nearly always wrong) and
// again sealed with the right CRC, so that the decoder behind the check is reached.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "memstore/record_codec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mneme::memstore;
  constexpr std::string_view kKey = "rrealm";
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  std::string sealed(input);
  const uint32_t crc = Crc32c(Crc32c(0, kKey), sealed);
  for (int i = 0; i < 4; ++i) sealed.push_back(static_cast<char>(crc >> (8 * i)));
  for (const std::string_view bytes : {input, std::string_view(sealed)}) {
    // What is accepted encodes to the same bytes.
    if (const auto record = DecodeRecord(kKey, bytes); record.ok()) {
      if (EncodeRecord(kKey, *record) != bytes) std::abort();
    }
    if (const auto reference = DecodeReference(kKey, bytes); reference.ok()) {
      if (EncodeReference(kKey, *reference) != bytes) std::abort();
    }
    if (const auto figures = DecodeFigures(kKey, bytes); figures.ok()) {
      if (EncodeFigures(kKey, *figures) != bytes) std::abort();
    }
    if (const auto sum = DecodeTotal(kKey, bytes); sum.ok()) {
      if (EncodeTotal(kKey, *sum) != bytes) std::abort();
    }
  }
  return 0;
}
