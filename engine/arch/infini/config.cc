#include "engine/arch/infini/config.h"

#include <string_view>

#include "engine/arch/config_reader.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::infini {
namespace {

constexpr int64_t kMaxSegment = int64_t{1} << 24;

constexpr std::string_view kKeys[] = {"segment_tokens", "memory_update", "value_head_dim",
                                      "memory_eps", "first_segment"};

}  // namespace

bool Matches(const Checkpoint& checkpoint) { return HasModelType(checkpoint, {"infini"}); }

absl::StatusOr<Config> ParseConfig(const Checkpoint& checkpoint) {
  Config config;
  MNEME_ASSIGN_OR_RETURN(static_cast<HostConfig&>(config),
                         ParseHostConfig(checkpoint, "infini", kKeys));
  MNEME_ASSIGN_OR_RETURN(
      config.value_head_dim,
      GetIntIn(checkpoint, "value_head_dim", 1, kMaxHeadWidth / config.heads, config.head_dim));
  MNEME_ASSIGN_OR_RETURN(config.segment_tokens,
                         GetIntIn(checkpoint, "segment_tokens", 1, kMaxSegment));
  MNEME_ASSIGN_OR_RETURN(const double eps, GetPositiveDouble(checkpoint, "memory_eps", 1e-6, 1e6));
  config.memory_eps = static_cast<float>(eps);
  MNEME_ASSIGN_OR_RETURN(const int update, GetChoice(checkpoint, "memory_update", std::nullopt,
                                                     {"linear", "linear_delta"}));
  config.delta = update == 1;
  MNEME_ASSIGN_OR_RETURN(const int first, GetChoice(checkpoint, "first_segment", "gated_zero",
                                                    {"gated_zero", "local"}));
  config.first_segment_local = first == 1;
  return config;
}

}  // namespace mneme::engine::infini
