// The IngestSession stream: frames in, one at a time with one read ahead; newest progress out.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "absl/status/status.h"
#include "mneme/v1/sessions.pb.h"
#include "server/core/server_core.h"
#include "server/rpc/call_record.h"
#include "server/rpc/input_slot.h"
#include "server/rpc/output_queue.h"
#include "server/rpc/rpc_environment.h"

namespace mneme::server {

// The session's writer is held from the first frame to the end of the stream. Not reading the next
// frame is the backpressure: HTTP/2 stops the client. Deletes itself.
class IngestReactor final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  static IngestReactor* Start(RpcEnvironment& env, grpc::CallbackServerContext* context);

  void OnReadDone(bool ok) override { input_.OnReadDone(ok); }
  void OnWriteDone(bool ok) override { queue_.OnWriteDone(ok); }
  void OnCancel() override;
  void OnDone() override { delete this; }

 private:
  IngestReactor(RpcEnvironment& env, grpc::CallbackServerContext* context);
  void Run();
  absl::Status Serve();
  // False when the client sends no more. While none comes, `ingest` (may be null) commits when due.
  absl::StatusOr<bool> NextFrame(Ingest* ingest, v1::IngestRequest* frame);

  RpcEnvironment& env_;
  grpc::CallbackServerContext* const context_;
  CallRecord record_;
  grpc::ByteBuffer outgoing_;  // gRPC's while a write is in flight
  OutputQueue<v1::IngestProgress> queue_;
  InputSlot input_;
};

}  // namespace mneme::server
