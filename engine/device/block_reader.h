// Blocks' bytes on the host: where they lie, or brought there.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/core/status_macros.h"
#include "engine/device/memory.h"

namespace mneme::engine {

class BlockReader {
 public:
  // Valid until the next call, or as long as a block on the host. INTERNAL after a fault of the
  // device.
  absl::StatusOr<std::span<const std::byte>> Read(const Block& block, size_t at,
                                                  size_t size_bytes) {
    if (block.memory()->OnHost()) return std::span(block.data() + at, size_bytes);
    staged_.resize(size_bytes);
    MNEME_RETURN_IF_ERROR(block.memory()->Read(block, at, staged_));
    return std::span<const std::byte>(staged_);
  }

 private:
  std::vector<std::byte> staged_;
};

}  // namespace mneme::engine
