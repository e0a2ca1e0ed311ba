// Hyper-parameters of TransformerFAM and of its baseline BSWA, from config.json
// (docs/checkpoint_format.md).
//
// Letters beside those of the host block: B tokens of a block, m past blocks that stay visible, f
// rows of the feedback memory.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/arch/host_config.h"
#include "engine/checkpoint/checkpoint.h"

namespace mneme::engine::fam {

struct Config : HostConfig {
  int64_t block_tokens = 0;   // B
  int64_t memory_blocks = 0;  // m
  int64_t fam_tokens = 0;     // f, at most B; 0: no feedback memory, BSWA
  // Memory rows query at the last f positions of the block that ends, else of the one before, where
  // their keys are.
  bool query_at_current = false;
  bool feedback_norm = false;  // rows of the memory are normalised after each update

  int64_t ring_rows() const { return (memory_blocks + 1) * block_tokens; }
};

// Whether the metadata names a TransformerFAM or BSWA model. Looks at nothing else.
bool Matches(const Checkpoint& checkpoint);

// NOT_FOUND, INVALID_ARGUMENT or UNIMPLEMENTED name the key that is missing, unknown, of another
// type or out of range.
absl::StatusOr<Config> ParseConfig(const Checkpoint& checkpoint);

}  // namespace mneme::engine::fam
