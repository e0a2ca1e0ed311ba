// How the engine benches time their work, so that their figures mean the same.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"

namespace mneme::bench {

// The middle value, or the mean of the two in the middle. `values` is not empty.
double Median(std::vector<double> values);

// From an empty context: one prompt token, then `tokens` greedy ones, one by one. Seconds of those.
absl::StatusOr<double> DecodeSeconds(engine::Engine& engine, int64_t tokens);

// Into an empty context, logits of the last token only, as a turn's input is read.
absl::StatusOr<double> PrefillSeconds(engine::Engine& engine, int64_t tokens);

}  // namespace mneme::bench
