// What every sequence of a model begins with: made once, copied for each.
#pragma once

#include <vector>

#include "engine/state/schema.h"

namespace mneme::engine {

class InitialState {
 public:
  InitialState() = default;
  // `state` has read nothing. What of it is zero is not copied later: a large window that nobody
  // has written yet costs no memory.
  InitialState(const StateSchema& schema, State state);

  State Copy() const;

 private:
  State state_;
  std::vector<StateTensor> written_;  // the tensors that are not zero
};

}  // namespace mneme::engine
