// A JSON parser for hostile text: RFC 8259 and nothing beyond it, with bounds.
//
// Refused besides bad syntax: a byte order mark, NUL bytes, invalid UTF-8, unpaired surrogates, a
// key that occurs twice in one object (compared after unescaping: most parsers silently keep one),
// numbers outside double's range, anything after the value, and whatever exceeds `limits`.
#pragma once

#include <cstddef>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace mneme::engine {

struct JsonLimits {
  size_t max_bytes = size_t{16} << 20;        // of the text
  size_t max_depth = 32;                      // of nested objects and arrays
  size_t max_values = size_t{1} << 20;        // scalars, arrays, objects and keys together
  size_t max_string_bytes = size_t{1} << 20;  // of one string or key
};

// `what` names the text in messages ("model/config.json"). INVALID_ARGUMENT otherwise. Integers
// keep 64 bits: is_number_unsigned() is true exactly for those written without sign, fraction and
// exponent. Thread-safe.
absl::StatusOr<nlohmann::json> ParseStrictJson(std::string_view text, std::string_view what,
                                               const JsonLimits& limits = {});

}  // namespace mneme::engine
