// What one sequence carries between tokens: an ordered list of tensors in one block of fixed size.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/core/dtype.h"
#include "engine/core/rows.h"
#include "engine/device/memory.h"

namespace mneme::engine {

// How many rows of a tensor mean something, and in which order (docs/state_format.md).
enum class StateKind : uint8_t {
  kFixed = 0,  // the whole tensor always
  // Rows per token: the first `sinks` rows hold positions 0..sinks-1; row sinks + (j - sinks) %
  // window holds position j >= sinks. After n tokens, rows of positions < min(n, sinks) and of the
  // last min(n - sinks, window) positions are valid. A row, once written, never changes until it is
  // overwritten by position j + window.
  kRing = 1,
  // Rows per token of every position, in pages of kPageTokens positions that the state gets as it
  // grows; page i holds positions [i * kPageTokens, ...) of all paged tensors. The first dimension
  // is the most positions there may be, the same for all of them.
  kPaged = 2,
};

struct StateTensor {
  int32_t layer = 0;           // -1: of the whole model
  std::string name;            // "k", "v", ...
  DType dtype = DType::kF32;   // kF32 or kF16
  std::vector<int64_t> shape;  // kRing: the first dimension is sinks + window; kPaged: the limit
  StateKind kind = StateKind::kFixed;
  int64_t sinks = 0;   // kRing only
  int64_t window = 0;  // kRing only

  // Derived by StateSchema:
  size_t offset_bytes = 0;  // in the block, or in each page; multiple of kBlockAlignment
  size_t size_bytes = 0;    // kPaged: with all positions

  int64_t rows() const { return shape.empty() ? 1 : shape[0]; }
  size_t row_bytes() const { return rows() == 0 ? 0 : size_bytes / rows(); }
};

// Immutable once built. Computed from the config, so it is known before any token is read.
class StateSchema {
 public:
  StateSchema() = default;
  // Lays the tensors out in order. Sizes must fit in 2^62 bytes.
  explicit StateSchema(std::vector<StateTensor> tensors);

  const std::vector<StateTensor>& tensors() const { return tensors_; }
  // Of the block: constant for the life of a session.
  size_t size_bytes() const { return size_bytes_; }
  // Of a page; 0: the state does not grow.
  size_t page_bytes() const { return page_bytes_; }
  // The most tokens that a state may read; 0: any number.
  int64_t position_limit() const { return position_limit_; }
  // Of a state that has read so many tokens.
  size_t StateBytes(int64_t position) const {
    return size_bytes_ + (position + kPageTokens - 1) / kPageTokens * page_bytes_;
  }
  // SHA-256 of a canonical description: two schemas with equal hashes lay out equal blocks.
  const std::string& hash() const { return hash_; }
  const StateTensor* Find(int32_t layer, std::string_view name) const;
  // For kernels: where tensor `index` lies.
  StateField Field(int64_t index) const {
    const StateTensor& tensor = tensors_[index];
    return {static_cast<int64_t>(tensor.offset_bytes), tensor.dtype,
            tensor.kind == StateKind::kPaged};
  }

 private:
  std::vector<StateTensor> tensors_;
  size_t size_bytes_ = 0;
  size_t page_bytes_ = 0;
  int64_t position_limit_ = 0;
  std::string hash_;
};

// The pages of one state. Clones share them: what is written next is made its own first.
class Pages {
 public:
  int64_t count() const { return static_cast<int64_t>(blocks_.size()); }
  const Block& operator[](int64_t i) const { return *blocks_[i]; }
  Block& operator[](int64_t i) { return *blocks_[i]; }
  // For a StateSlot: valid until Prepare.
  std::byte* const* addresses() const { return addresses_.data(); }

  // Pages of `page_bytes` for positions [first, end), not shared with anybody, and for all before.
  // Throws std::bad_alloc.
  void Prepare(Memory& memory, size_t page_bytes, int64_t first, int64_t end);
  // The same pages, shared.
  Pages Share() const { return *this; }

  Pages() = default;
  Pages(Pages&&) = default;
  Pages& operator=(Pages&&) = default;

 private:
  Pages(const Pages&) = default;

  std::vector<std::shared_ptr<Block>> blocks_;
  std::vector<std::byte*> addresses_;
};

// One sequence's state: the block, the pages and how many tokens it has read. Movable; copying is
// explicit.
struct State {
  Block block;
  Pages pages = {};
  int64_t position = 0;  // tokens fed since the start
  // Of the last token, [D] on the host, if its logits were wanted, else empty: from it they can be
  // had again.
  std::vector<float> hidden = {};

  // Shares the pages, whatever their number.
  State Clone() const;
  size_t size_bytes() const {
    return block.size() + (pages.count() == 0 ? 0 : pages.count() * pages[0].size()) +
           hidden.size() * sizeof(float);
  }
};

}  // namespace mneme::engine
