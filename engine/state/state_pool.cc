#include "engine/state/state_pool.h"

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

#include "engine/device/block_reader.h"

namespace mneme::engine {

State StatePool::Blank() const { return {.block = memory_.Allocate(schema_.size_bytes())}; }

void StatePool::SetInitial(State state) {
  initial_ = std::move(state);
  written_.clear();
  BlockReader reader(initial_.block);
  for (const StateTensor& tensor : schema_.tensors()) {
    const std::span bytes = reader.Read(tensor.offset_bytes, tensor.size_bytes);
    if (std::ranges::any_of(bytes, [](std::byte b) { return b != std::byte{0}; })) {
      written_.push_back(&tensor);
    }
  }
}

State StatePool::New() const {
  State state = Blank();
  for (const StateTensor* tensor : written_) {
    memory_.Copy(initial_.block, tensor->offset_bytes, tensor->size_bytes, state.block);
  }
  return state;
}

}  // namespace mneme::engine
