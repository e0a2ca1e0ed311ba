#include "engine/arch/fam/config.h"

#include <string_view>

#include "engine/arch/config_reader.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::fam {
namespace {

constexpr int64_t kMaxBlockTokens = int64_t{1} << 24;
constexpr int64_t kMaxMemoryBlocks = int64_t{1} << 16;

constexpr std::string_view kKeys[] = {"block_tokens", "memory_blocks", "fam_tokens",
                                      "fam_query_pos", "fam_feedback_norm"};

}  // namespace

bool Matches(const Checkpoint& checkpoint) { return HasModelType(checkpoint, {"fam"}); }

absl::StatusOr<Config> ParseConfig(const Checkpoint& checkpoint) {
  Config config;
  MNEME_ASSIGN_OR_RETURN(static_cast<HostConfig&>(config),
                         ParseHostConfig(checkpoint, "fam", kKeys));
  MNEME_ASSIGN_OR_RETURN(config.block_tokens,
                         GetIntIn(checkpoint, "block_tokens", 1, kMaxBlockTokens));
  MNEME_ASSIGN_OR_RETURN(config.memory_blocks,
                         GetIntIn(checkpoint, "memory_blocks", 0, kMaxMemoryBlocks));
  MNEME_ASSIGN_OR_RETURN(config.fam_tokens,
                         GetIntIn(checkpoint, "fam_tokens", 0, config.block_tokens));
  MNEME_ASSIGN_OR_RETURN(const int query,
                         GetChoice(checkpoint, "fam_query_pos", "prev", {"prev", "cur"}));
  config.query_at_current = query == 1;
  MNEME_ASSIGN_OR_RETURN(config.feedback_norm, checkpoint.GetBool("fam_feedback_norm", false));
  return config;
}

}  // namespace mneme::engine::fam
