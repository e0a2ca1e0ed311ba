// Blocks' bytes on the host: where they lie, or brought there.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "engine/device/memory.h"

namespace mneme::engine {

class BlockReader {
 public:
  // Valid until the next call, or as long as a block on the host.
  std::span<const std::byte> Read(const Block& block, size_t at, size_t size_bytes) {
    if (block.memory()->OnHost()) return {block.data() + at, size_bytes};
    staged_.resize(size_bytes);
    block.memory()->Read(block, at, staged_);
    return staged_;
  }

 private:
  std::vector<std::byte> staged_;
};

}  // namespace mneme::engine
