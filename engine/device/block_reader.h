// A block's bytes on the host: where they lie, or brought there.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "engine/device/memory.h"

namespace mneme::engine {

// `block` must outlive it.
class BlockReader {
 public:
  explicit BlockReader(const Block& block) : block_(block) {}

  // Valid until the next call.
  std::span<const std::byte> Read(size_t at, size_t size_bytes) {
    if (block_.memory()->OnHost()) return {block_.data() + at, size_bytes};
    staged_.resize(size_bytes);
    block_.memory()->Read(block_, at, staged_);
    return staged_;
  }

 private:
  const Block& block_;
  std::vector<std::byte> staged_;
};

}  // namespace mneme::engine
