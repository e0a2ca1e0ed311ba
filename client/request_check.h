// What is wrong with a request whatever the server: text that is not UTF-8, and more than one
// message can carry. Protobuf would send such text (complaining on stderr) to a server that cannot
// say which field is wrong, and would fail on such a size without saying why. Internal to the
// library.
#pragma once

#include <google/protobuf/message.h>

#include "absl/status/status.h"

namespace mneme::client {

// INVALID_ARGUMENT with the same details as a server's FIELD_INVALID, naming the first text field
// that is not UTF-8; RESOURCE_EXHAUSTED REQUEST_TOO_LARGE (transport_error.h) for its size.
absl::Status CheckRequest(const google::protobuf::Message& request);

// The latter alone.
absl::Status CheckRequestSize(size_t request_bytes);

}  // namespace mneme::client
