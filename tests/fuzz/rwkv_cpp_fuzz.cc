// rwkv.cpp file parser: any bytes give tensors inside the file or a refusal.
#include <cstdint>
#include <cstdlib>

#include "engine/checkpoint/rwkv_cpp_checkpoint.h"
#include "tests/fuzz/check_tensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mneme::engine;
  const auto file = std::as_bytes(std::span(data, size));
  const auto content = ParseRwkvCpp(file, "fuzz.bin");
  if (!content.ok()) {
    if (content.status().code() != absl::StatusCode::kInvalidArgument) std::abort();
    return 0;
  }
  CheckTensors(file, content->tensors);
  return 0;
}
