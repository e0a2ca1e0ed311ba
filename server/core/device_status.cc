#include "server/core/device_status.h"

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "server/core/errors.h"

namespace mneme::server {

absl::Status CheckDevice(const engine::Device& device) {
  const absl::Status fault = device.Fault();
  if (fault.ok()) return fault;
  return Error(absl::StatusCode::kInternal, reason::kBackendFailed,
               absl::StrCat(fault.message(),
                            "; sessions are as at their last commit, and go on from there on "
                            "another device of the model, or once the server has been restarted"));
}

absl::Status EngineFailure(const absl::Status& status, const engine::Device& device) {
  MNEME_RETURN_IF_ERROR(CheckDevice(device));
  if (absl::IsResourceExhausted(status)) return OutOfMemory();
  return Error(absl::StatusCode::kInternal, reason::kBackendFailed,
               absl::StrCat("the engine failed: ", status.message(), "; the session is unchanged"));
}

absl::Status OutOfMemory() {
  return WithRetry(Error(absl::StatusCode::kUnavailable, reason::kOverloaded,
                         "there is no memory for this call now; the session is unchanged, repeat "
                         "the call later"),
                   absl::Seconds(1));
}

}  // namespace mneme::server
