#include "engine/state/schema.h"

#include <openssl/sha.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/core/aligned_buffer.h"
#include "engine/state/schema_text.h"

namespace mneme::engine {

std::string SchemaText(const std::vector<StateTensor>& tensors) {
  std::string text = "mneme-state-1\n";
  for (const StateTensor& tensor : tensors) {
    const std::string_view dtype = Traits(tensor.dtype).name;
    absl::StrAppend(&text, tensor.layer, " ", tensor.name, " ",
                    absl::string_view(dtype.data(), dtype.size()));
    for (int64_t dim : tensor.shape) absl::StrAppend(&text, " ", dim);
    if (tensor.kind == StateKind::kRing) {
      absl::StrAppend(&text, " ring ", tensor.sinks, "+", tensor.window);
    }
    if (tensor.kind == StateKind::kPaged) text += " paged";
    text += '\n';
  }
  return text;
}

std::string SchemaHash(std::string_view text) {
  std::string hash(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const uint8_t*>(text.data()), text.size(),
         reinterpret_cast<uint8_t*>(hash.data()));
  return hash;
}

StateSchema::StateSchema(std::vector<StateTensor> tensors) : tensors_(std::move(tensors)) {
  for (StateTensor& tensor : tensors_) {
    int64_t elements = 1;
    for (int64_t dim : tensor.shape) elements *= dim;
    tensor.size_bytes = RowBytes(tensor.dtype, elements);
    const bool paged = tensor.kind == StateKind::kPaged;
    size_t& end = paged ? page_bytes_ : size_bytes_;
    const size_t bytes = paged ? tensor.row_bytes() * kPageTokens : tensor.size_bytes;
    tensor.offset_bytes = end;
    end += (bytes + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment;
    if (paged) position_limit_ = tensor.rows();
  }
  hash_ = SchemaHash(SchemaText(tensors_));
}

const StateTensor* StateSchema::Find(int32_t layer, std::string_view name) const {
  for (const StateTensor& tensor : tensors_) {
    if (tensor.layer == layer && tensor.name == name) return &tensor;
  }
  return nullptr;
}

void Pages::Prepare(Memory& memory, size_t page_bytes, int64_t first, int64_t end) {
  const int64_t pages = (end + kPageTokens - 1) / kPageTokens;
  for (int64_t i = first / kPageTokens; i < std::min(count(), pages); ++i) {
    if (blocks_[i].use_count() == 1) continue;
    auto own = std::make_shared<Block>(memory.Allocate(page_bytes));
    memory.Copy(*blocks_[i], 0, page_bytes, *own);
    blocks_[i] = std::move(own);
    addresses_[i] = blocks_[i]->address();
  }
  while (count() < pages) {
    blocks_.push_back(std::make_shared<Block>(memory.Allocate(page_bytes)));
    addresses_.push_back(blocks_.back()->address());
  }
}

State State::Clone() const {
  State copy;
  copy.block = block.memory()->Allocate(block.size());
  block.memory()->Copy(block, 0, block.size(), copy.block);
  copy.pages = pages.Share();
  copy.position = position;
  copy.hidden = hidden;
  return copy;
}

}  // namespace mneme::engine
