// Early return on a failed absl::Status or absl::StatusOr.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define MNEME_RETURN_IF_ERROR(expr)                                                     \
  do {                                                                                  \
    if (absl::Status mneme_status_ = (expr); !mneme_status_.ok()) return mneme_status_; \
  } while (false)

#define MNEME_CONCAT_INNER_(a, b) a##b
#define MNEME_CONCAT_(a, b) MNEME_CONCAT_INNER_(a, b)

// MNEME_ASSIGN_OR_RETURN(auto x, F());
#define MNEME_ASSIGN_OR_RETURN(lhs, expr)                                \
  auto MNEME_CONCAT_(mneme_statusor_, __LINE__) = (expr);                \
  if (!MNEME_CONCAT_(mneme_statusor_, __LINE__).ok())                    \
    return std::move(MNEME_CONCAT_(mneme_statusor_, __LINE__)).status(); \
  lhs = *std::move(MNEME_CONCAT_(mneme_statusor_, __LINE__))
