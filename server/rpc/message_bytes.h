// Messages as the bytes of a call. The services take their requests raw and parse them here: gRPC
// itself answers a request that does not parse with UNIMPLEMENTED, without a reason, a request id
// or a line in the log, and a text field that is not UTF-8 is enough for that.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"

namespace mneme::server {

// INVALID_ARGUMENT FIELD_INVALID that names the first text field that is not UTF-8, or no field if
// the bytes are no message of this type at all.
absl::Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message* message);

grpc::ByteBuffer BytesOf(const google::protobuf::Message& message);

}  // namespace mneme::server
