// Where a generation's events go.
#pragma once

#include "mneme/v1/generation.pb.h"

namespace mneme::server {

// Receives events in order. Called on the thread of the call that reads, never on the engine's.
class TurnSink {
 public:
  virtual ~TurnSink() = default;
  // May block while the client is slow. False: the client is gone or too slow (the context has been
  // cancelled with the cause); nothing more will be sent.
  virtual bool Send(v1::GenerateResponse response) = 0;
};

}  // namespace mneme::server
