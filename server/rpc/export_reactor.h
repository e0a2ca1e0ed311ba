// The ExportSession stream: the pieces of a file, as fast as the client reads and no faster.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "absl/status/status.h"
#include "mneme/v1/sessions.pb.h"
#include "server/core/server_core.h"
#include "server/rpc/call_record.h"
#include "server/rpc/output_queue.h"
#include "server/rpc/rpc_environment.h"

namespace mneme::server {

// The export runs on a worker thread and blocks in Send while the client is slow; one message is
// made ahead. Deletes itself.
class ExportReactor final : public grpc::ServerWriteReactor<grpc::ByteBuffer>, private ExportSink {
 public:
  // `request` lives until the call is done.
  static ExportReactor* Start(RpcEnvironment& env, grpc::CallbackServerContext* context,
                              const grpc::ByteBuffer* request);

  void OnWriteDone(bool ok) override { queue_.OnWriteDone(ok); }
  void OnCancel() override;
  void OnDone() override { delete this; }

 private:
  ExportReactor(RpcEnvironment& env, grpc::CallbackServerContext* context,
                const grpc::ByteBuffer* request);
  void Run();
  absl::Status Export();
  bool Send(v1::ExportSessionResponse response) override;

  RpcEnvironment& env_;
  const grpc::ByteBuffer* const request_;
  CallRecord record_;
  grpc::ByteBuffer outgoing_;  // gRPC's while a write is in flight
  OutputQueue<v1::ExportSessionResponse> queue_;
  bool slow_ = false;
};

}  // namespace mneme::server
