#include "engine/state/initial_state.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <utility>

namespace mneme::engine {

InitialState::InitialState(const StateSchema& schema, State state) : state_(std::move(state)) {
  for (const StateTensor& tensor : schema.tensors()) {
    const std::span bytes(std::as_const(state_.block).data() + tensor.offset_bytes,
                          tensor.size_bytes);
    if (std::ranges::any_of(bytes, [](std::byte b) { return b != std::byte{0}; })) {
      written_.push_back(tensor);
    }
  }
}

State InitialState::Copy() const {
  State copy{.block = AlignedBuffer(state_.block.size())};
  for (const StateTensor& tensor : written_) {
    std::memcpy(copy.block.data() + tensor.offset_bytes, state_.block.data() + tensor.offset_bytes,
                tensor.size_bytes);
  }
  return copy;
}

}  // namespace mneme::engine
