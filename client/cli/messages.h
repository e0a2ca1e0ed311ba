// The messages of one turn, as chat and generate send them.
#pragma once

#include <string>

#include "mneme/v1/generation.pb.h"

namespace mneme::cli {

struct TurnMessages {
  std::string system;  // none if empty
  std::string user;
  std::string answer_start;  // the answer goes on from here; none if empty
};
void Fill(const TurnMessages& messages, v1::GenerateRequest& request);

}  // namespace mneme::cli
