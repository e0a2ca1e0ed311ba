// --label KEY=VALUE.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/client.h"

namespace mneme::cli {

// kInvalidArgument names a label that is none.
absl::Status AddLabels(const std::vector<std::string>& labels, v1::Session& session);

}  // namespace mneme::cli
