// A lock that serves those who wait in the order they came: two models that step all the time get
// one pass each in turn, however long the other's are.
#pragma once

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "engine/core/mutex.h"

namespace mneme::engine {

class Turns {
 public:
  // Holds the turn.
  class Hold {
   public:
    explicit Hold(Turns& turns) : turns_(turns) { turns_.Take(); }
    ~Hold() { turns_.Pass(); }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

   private:
    Turns& turns_;
  };

 private:
  void Take();
  void Pass();

  Mutex mutex_;
  CondVar changed_;
  uint64_t next_ticket_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t serving_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace mneme::engine
