// The states of one model: where they are made, and what every sequence begins with.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "engine/device/memory.h"
#include "engine/state/schema.h"

namespace mneme::engine {

// Thread-safe once the initial state is set. `memory` and `schema` must outlive it.
class StatePool {
 public:
  StatePool(Memory& memory, const StateSchema& schema) : memory_(memory), schema_(schema) {}

  const StateSchema& schema() const { return schema_; }
  // Zeros. Throws std::bad_alloc, as New.
  State Blank() const;
  // What New() copies, a state of this pool that has read nothing; zeros without this call. What of
  // it is zero is not copied: a large window that nobody has written yet costs no memory. INTERNAL
  // after a fault of the device.
  absl::Status SetInitial(State state);
  State New() const;
  // Room in `state` for so many more tokens: pages, its own from its position on. Throws
  // std::bad_alloc.
  void Reserve(State& state, int64_t tokens) const;
  // Pages for positions below `end`, as they are.
  void ReserveTo(State& state, int64_t end) const;

 private:
  Memory& memory_;
  const StateSchema& schema_;
  State initial_;
  std::vector<const StateTensor*> written_;  // the tensors of `initial_` that are not zero
};

}  // namespace mneme::engine
