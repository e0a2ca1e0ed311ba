// Hyper-parameters of an Infini-attention model, from config.json (docs/checkpoint_format.md).
//
// Letters beside those of the host block: dk and dv key and value width of a head, N tokens of a
// segment.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/arch/host_config.h"
#include "engine/checkpoint/checkpoint.h"

namespace mneme::engine::infini {

// `theta` is in radians per position of the segment.
struct Config : HostConfig {
  int64_t value_head_dim = 0;        // dv
  int64_t segment_tokens = 0;        // N
  float memory_eps = 0;              // added to the denominators of read and delta
  bool delta = false;                // memory_update is linear_delta
  bool first_segment_local = false;  // the first segment is not gated
};

// Whether the metadata names an Infini-attention model. Looks at nothing else.
bool Matches(const Checkpoint& checkpoint);

// NOT_FOUND, INVALID_ARGUMENT or UNIMPLEMENTED name the key that is missing, unknown, of another
// type or out of range.
absl::StatusOr<Config> ParseConfig(const Checkpoint& checkpoint);

}  // namespace mneme::engine::infini
