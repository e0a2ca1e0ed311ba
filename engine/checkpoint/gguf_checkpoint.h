// Reads GGUF files (gguf_format.h).
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

struct GgufContent {
  std::map<std::string, MetadataValue, std::less<>> metadata;
  std::map<std::string, Tensor, std::less<>> tensors;  // data points into the parsed bytes
};

// Parses a whole file held in memory; `what` names it in messages. `file` may be unaligned and must
// outlive the tensors. INVALID_ARGUMENT naming field and expectation. Allocates at most a small
// multiple of the size of `file`, and never before the count is bounded by the bytes that remain.
absl::StatusOr<GgufContent> ParseGguf(std::span<const std::byte> file, std::string_view what);

absl::StatusOr<std::shared_ptr<const Checkpoint>> OpenGguf(const std::string& path);

}  // namespace mneme::engine
