// The ImportSession stream: the pieces of a file in, one at a time with one read ahead.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "mneme/v1/sessions.pb.h"
#include "server/rpc/call_record.h"
#include "server/rpc/input_slot.h"
#include "server/rpc/rpc_environment.h"

namespace mneme::server {

// Not reading the next frame is the backpressure. A client that sends nothing for
// limits.slow_client_timeout is told so and gone: it holds memory. Deletes itself.
class ImportReactor final : public grpc::ServerReadReactor<grpc::ByteBuffer> {
 public:
  // `response` lives until the call is done.
  static ImportReactor* Start(RpcEnvironment& env, grpc::CallbackServerContext* context,
                              grpc::ByteBuffer* response);

  void OnReadDone(bool ok) override { input_.OnReadDone(ok); }
  void OnCancel() override { record_.Cancel(); }
  void OnDone() override { delete this; }

 private:
  ImportReactor(RpcEnvironment& env, grpc::CallbackServerContext* context,
                grpc::ByteBuffer* response);
  void Run();
  absl::Status Serve();
  // False when the client sends no more.
  absl::StatusOr<bool> NextFrame(v1::ImportSessionRequest* frame);

  RpcEnvironment& env_;
  grpc::CallbackServerContext* const context_;
  grpc::ByteBuffer* const response_;
  CallRecord record_;
  InputSlot input_;
};

}  // namespace mneme::server
