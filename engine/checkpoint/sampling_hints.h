// How a checkpoint's makers say that tokens should be chosen.
//
// GGUF has them as general.sampling.*, a folder in generation_config.json. What is not said is
// absent. Values are as written: whoever uses them checks their range.
#pragma once

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "engine/checkpoint/checkpoint.h"

namespace mneme::engine {

// By the names of SamplingOptions' members: "temperature", "top_k", ...
using SamplingHints = std::map<std::string, double, std::less<>>;

// INVALID_ARGUMENT naming file or key and what was expected, if one is not a number.
absl::StatusOr<SamplingHints> ReadSamplingHints(const Checkpoint& checkpoint);

}  // namespace mneme::engine
