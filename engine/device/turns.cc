#include "engine/device/turns.h"

namespace mneme::engine {

void Turns::Take() {
  MutexLock lock(&mutex_);
  const uint64_t ticket = next_ticket_++;
  while (serving_ != ticket) changed_.Wait(&mutex_);
}

void Turns::Pass() {
  MutexLock lock(&mutex_);
  ++serving_;
  changed_.NotifyAll();
}

}  // namespace mneme::engine
