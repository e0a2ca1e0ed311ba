// Text fields of a request must be UTF-8. Protobuf would send other bytes (complaining on stderr),
// and a server that cannot parse the message cannot say which field is wrong. Internal to the
// library.
#pragma once

#include <google/protobuf/message.h>

#include "absl/status/status.h"

namespace mneme::client {

// INVALID_ARGUMENT with the same details as a server's FIELD_INVALID, naming the first text field
// that is not UTF-8.
absl::Status CheckTextFields(const google::protobuf::Message& request);

}  // namespace mneme::client
