// rwkv.cpp file parser: any bytes give tensors inside the file or a refusal.
#include <cstdint>
#include <cstdlib>

#include "engine/checkpoint/finite.h"
#include "engine/checkpoint/rwkv_cpp_checkpoint.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mneme::engine;
  const auto file = std::as_bytes(std::span(data, size));
  const auto content = ParseRwkvCpp(file, "fuzz.bin");
  if (!content.ok()) {
    if (content.status().code() != absl::StatusCode::kInvalidArgument) std::abort();
    return 0;
  }
  for (const auto& [name, tensor] : content->tensors) {
    if (name != tensor.name || tensor.data < file.data() || tensor.size_bytes > size) std::abort();
    if (tensor.data + tensor.size_bytes > file.data() + size) std::abort();
    int64_t rows = 1;
    for (size_t i = 0; i + 1 < tensor.shape.size(); ++i) rows *= tensor.shape[i];
    if (RowBytes(tensor.dtype, tensor.shape.back()) * rows != tensor.size_bytes) std::abort();
    AllFinite(tensor.dtype, {tensor.data, tensor.size_bytes});  // reads every block
  }
  return 0;
}
