// Reads rwkv.cpp's .bin files.
//
//   u32 magic 0x67676d66, u32 version (100 or 101), u32 vocabulary, u32 width, u32 layers, u32
//   type, records to the end of the file:
//     u32 dimensions (1 to 3), u32 bytes of the name, u32 type, u32 x dimensions (fastest first),
//     name, tensor bytes; no padding anywhere
// Little-endian. Version 100 has another form of the block types, which is refused. Source:
// rwkv.cpp's document of the format.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/checkpoint/checkpoint.h"

namespace mneme::engine {

struct RwkvCppContent {
  int64_t version = 0;  // of the file
  int64_t vocab_size = 0;
  int64_t width = 0;
  int64_t num_layers = 0;
  std::map<std::string, Tensor, std::less<>> tensors;  // data points into the parsed bytes
};

// Parses a whole file held in memory; `what` names it in messages. `file` may be unaligned and must
// outlive the tensors. INVALID_ARGUMENT naming field and expectation.
absl::StatusOr<RwkvCppContent> ParseRwkvCpp(std::span<const std::byte> file, std::string_view what);

// Metadata: "file_version", "vocab_size", "hidden_size" and "num_hidden_layers" from the header,
// and the keys of a config.json beside the file, if there is one; the header's win.
absl::StatusOr<std::shared_ptr<const Checkpoint>> OpenRwkvCpp(const std::string& path);

}  // namespace mneme::engine
