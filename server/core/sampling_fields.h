// The numbers of v1.Sampling: names, ranges and this API's defaults, written once for requests,
// settings and what checkpoints recommend.
#pragma once

#include <cmath>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"

namespace mneme::server {

struct SamplingField {
  const char* name;  // of the field in v1.Sampling and of the setting sampling.<name>
  double low, high;
  double fallback;  // where nobody says otherwise; the comments of v1.Sampling state it
  bool low_open = false;
  bool whole = false;

  // NaN is in no range.
  bool Accepts(double value) const {
    const bool above = low_open ? value > low : value >= low;
    return above && value <= high && (!whole || value == std::floor(value));
  }
  std::string Expected() const {
    const std::string kind = whole ? "a whole number " : "";
    if (high >= std::numeric_limits<int32_t>::max()) {
      return absl::StrCat("must be ", kind, "of at least ", low);
    }
    return absl::StrCat("must be ", kind, "in ", low_open ? "(" : "[", low, ", ", high, "]");
  }
};

// Small models wander off without a cut: of eight answers of SmolLM2-135M to simple questions two
// were on topic at temperature 1 without one, five with these.
inline constexpr SamplingField kSamplingFields[] = {
    {.name = "temperature", .low = 0, .high = 10, .fallback = 0.8},
    {.name = "top_p", .low = 0, .high = 1, .fallback = 0.95, .low_open = true},
    {.name = "top_k",
     .low = 0,
     .high = std::numeric_limits<int32_t>::max(),
     .fallback = 40,
     .whole = true},
    {.name = "min_p", .low = 0, .high = 1, .fallback = 0.05},
    {.name = "repetition_penalty", .low = 0, .high = 10, .fallback = 1, .low_open = true},
    {.name = "presence_penalty", .low = -2, .high = 2, .fallback = 0},
    {.name = "frequency_penalty", .low = -2, .high = 2, .fallback = 0},
    {.name = "penalty_window_tokens", .low = 0, .high = 8192, .fallback = 64, .whole = true},
};

}  // namespace mneme::server
