#include "engine/state/schema.h"

#include <openssl/sha.h>

#include "absl/strings/str_cat.h"
#include "engine/core/aligned_buffer.h"

namespace mneme::engine {

StateSchema::StateSchema(std::vector<StateTensor> tensors) : tensors_(std::move(tensors)) {
  // The canonical description that is hashed; docs/state_format.md shows one.
  std::string description = "mneme-state-1\n";
  for (StateTensor& tensor : tensors_) {
    int64_t elements = 1;
    for (int64_t dim : tensor.shape) elements *= dim;
    tensor.size_bytes = RowBytes(tensor.dtype, elements);
    tensor.offset_bytes = size_bytes_;
    const size_t alignment = kBlockAlignment;
    size_bytes_ += (tensor.size_bytes + alignment - 1) / alignment * alignment;

    const std::string_view dtype = Traits(tensor.dtype).name;
    absl::StrAppend(&description, tensor.layer, " ", tensor.name, " ",
                    absl::string_view(dtype.data(), dtype.size()));
    for (int64_t dim : tensor.shape) absl::StrAppend(&description, " ", dim);
    if (tensor.kind == StateKind::kRing) {
      absl::StrAppend(&description, " ring ", tensor.sinks, "+", tensor.window);
    }
    description += '\n';
  }
  hash_.resize(SHA256_DIGEST_LENGTH);
  SHA256(reinterpret_cast<const uint8_t*>(description.data()), description.size(),
         reinterpret_cast<uint8_t*>(hash_.data()));
}

const StateTensor* StateSchema::Find(int32_t layer, std::string_view name) const {
  for (const StateTensor& tensor : tensors_) {
    if (tensor.layer == layer && tensor.name == name) return &tensor;
  }
  return nullptr;
}

State State::Clone() const {
  State copy;
  copy.block = block.memory()->Allocate(block.size());
  block.memory()->Copy(block, 0, block.size(), copy.block);
  copy.position = position;
  return copy;
}

}  // namespace mneme::engine
