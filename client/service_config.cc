#include "client/service_config.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace mneme::client {

std::string ServiceConfigJson(bool health_check) {
  // Generate and Complete are absent on purpose: on a session they write.
  constexpr const char* kReads[][2] = {
      {"Sessions", "GetSession"},      {"Sessions", "ListSessions"},
      {"Sessions", "ListSnapshots"},   {"Sessions", "ReadTranscript"},
      {"Sessions", "GetSnapshot"},     {"Admin", "GetServerInfo"},
      {"Admin", "GetLoads"},           {"Models", "ListModels"},
      {"Models", "GetModel"},          {"Generation", "Tokenize"},
      {"Generation", "Detokenize"},    {"Generation", "Score"},
      {"Generation", "GetGeneration"}, {"Generation", "CancelGeneration"},  // idempotent
  };
  std::string names;
  for (const auto& read : kReads) {
    absl::StrAppend(&names, names.empty() ? "" : ",", R"({"service":"mneme.v1.)", read[0],
                    R"(","method":")", read[1], R"("})");
  }
  return absl::StrCat(R"({"methodConfig":[{"name":[)", names, R"(],"retryPolicy":{"maxAttempts":)",
                      kMaxAttempts, R"(,"initialBackoff":")",
                      absl::ToDoubleSeconds(kInitialBackoff), R"(s","maxBackoff":")",
                      absl::ToDoubleSeconds(kMaxBackoff),
                      R"(s","backoffMultiplier":2,"retryableStatusCodes":["UNAVAILABLE"]}}],)",
                      R"("retryThrottling":{"maxTokens":100,"tokenRatio":0.1})",
                      health_check ? R"(,"loadBalancingConfig":[{"round_robin":{}}],)"
                                     R"("healthCheckConfig":{"serviceName":""})"
                                   : "",
                      "}");
}

absl::Duration Backoff(int attempt) {
  absl::Duration delay = kInitialBackoff;
  for (int i = 2; i < attempt && delay < kMaxBackoff; ++i) delay *= 2;
  return std::min(delay, kMaxBackoff);
}

}  // namespace mneme::client
