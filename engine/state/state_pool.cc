#include "engine/state/state_pool.h"

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

#include "engine/core/status_macros.h"
#include "engine/device/block_reader.h"

namespace mneme::engine {

State StatePool::Blank() const { return {.block = memory_.Allocate(schema_.size_bytes())}; }

absl::Status StatePool::SetInitial(State state) {
  initial_ = std::move(state);
  written_.clear();
  BlockReader reader;
  for (const StateTensor& tensor : schema_.tensors()) {
    if (tensor.kind == StateKind::kPaged) continue;  // no tokens, no pages
    MNEME_ASSIGN_OR_RETURN(const std::span bytes,
                           reader.Read(initial_.block, tensor.offset_bytes, tensor.size_bytes));
    if (std::ranges::any_of(bytes, [](std::byte b) { return b != std::byte{0}; })) {
      written_.push_back(&tensor);
    }
  }
  return absl::OkStatus();
}

State StatePool::New() const {
  State state = Blank();
  for (const StateTensor* tensor : written_) {
    memory_.Copy(initial_.block, tensor->offset_bytes, tensor->size_bytes, state.block);
  }
  return state;
}

void StatePool::ReserveTo(State& state, int64_t end) const {
  if (schema_.page_bytes() == 0) return;
  state.pages.Prepare(memory_, schema_.page_bytes(), end, end);
}

void StatePool::Reserve(State& state, int64_t tokens) const {
  if (schema_.page_bytes() == 0) return;
  state.pages.Prepare(memory_, schema_.page_bytes(), state.position, state.position + tokens);
}

}  // namespace mneme::engine
