// Safetensors parsers: weights, config.json and the shard index. The first byte picks one.
#include <cstdint>
#include <cstdlib>

#include "engine/checkpoint/finite.h"
#include "engine/checkpoint/safetensors_checkpoint.h"

namespace {

void Check(const absl::Status& status) {
  if (!status.ok() && status.code() != absl::StatusCode::kInvalidArgument) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mneme::engine;
  if (size == 0) return 0;
  const auto file = std::as_bytes(std::span(data + 1, size - 1));
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 3) {
    case 0: {
      const auto tensors = ParseSafetensors(file, "fuzz.safetensors");
      Check(tensors.status());
      if (!tensors.ok()) break;
      uint64_t total = 0;
      for (const auto& [name, tensor] : *tensors) {
        if (tensor.data < file.data() || tensor.size_bytes > file.size()) std::abort();
        if (tensor.data + tensor.size_bytes > file.data() + file.size()) std::abort();
        AllFinite(tensor.dtype, {tensor.data, tensor.size_bytes});  // reads every value
        total += tensor.size_bytes;
      }
      if (total > file.size()) std::abort();  // overlapping
      break;
    }
    case 1:
      Check(ParseModelConfig(text, "config.json").status());
      break;
    default: {
      const auto index = ParseShardIndex(text, "index.json");
      Check(index.status());
      if (!index.ok()) break;
      for (const auto& [name, shard] : *index) {
        if (shard.find('/') != shard.npos || shard.starts_with(".")) std::abort();
      }
      break;
    }
  }
  return 0;
}
