// Client::IsServing: grpc.health.v1.Health/Check for the whole process. Its two messages are
// written and read by hand, since generated code for them would clash with gRPC's own in one
// program.
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>

#include <future>
#include <string>
#include <utility>
#include <vector>

#include "client/channel.h"
#include "client/client.h"

namespace mneme::client {
namespace {

// HealthCheckResponse: field 1, an enum in one byte.
constexpr char kServing[] = {0x08, 0x01};

std::string Bytes(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (!buffer.Dump(&slices).ok()) return bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

}  // namespace

absl::StatusOr<bool> Client::IsServing(const CallOptions& call) const {
  const std::string id = call.request_id.empty() ? NewRequestId() : call.request_id;
  grpc::ClientContext context;
  Prepare(context, options(), call.timeout.value_or(options().timeout), id, "");
  const grpc::Slice no_fields;  // service: "", the process
  const grpc::ByteBuffer request(&no_fields, 1);
  grpc::ByteBuffer response;
  std::promise<grpc::Status> done;
  grpc::GenericStub(channel_->grpc)
      .UnaryCall(&context, "/grpc.health.v1.Health/Check", grpc::StubOptions(), &request, &response,
                 [&](grpc::Status result) { done.set_value(std::move(result)); });
  const grpc::Status status = done.get_future().get();
  if (!status.ok()) return FromGrpc(status, id);
  return Bytes(response) == std::string_view(kServing, sizeof(kServing));
}

}  // namespace mneme::client
