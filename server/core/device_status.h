// What a call is told when the device, the engine or memory lets it down.
#pragma once

#include "absl/status/status.h"
#include "engine/device/device.h"

namespace mneme::server {

// OK, or INTERNAL BACKEND_FAILED of a device that has failed for good: its models compute nothing
// more until the server is started again.
absl::Status CheckDevice(const engine::Device& device);

// Of a step or a snapshot that failed with `status`, on a device that may have: BACKEND_FAILED, or
// UNAVAILABLE OVERLOADED where memory ran out.
absl::Status EngineFailure(const absl::Status& status, const engine::Device& device);

// UNAVAILABLE OVERLOADED: there was less memory than the limits that were set.
absl::Status OutOfMemory();

}  // namespace mneme::server
