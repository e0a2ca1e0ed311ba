// The stream of a generation: the core's events, sent as fast as the client reads and no faster.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <functional>
#include <memory>

#include "mneme/v1/generation.pb.h"
#include "server/core/server_core.h"
#include "server/rpc/call_record.h"
#include "server/rpc/output_queue.h"
#include "server/rpc/rpc_environment.h"

namespace mneme::server {

// Reads on a worker thread, which blocks in Send while the client is slow. Backpressure ends in
// SLOW_CONSUMER. Deletes itself.
class GenerateReactor final : public grpc::ServerWriteReactor<grpc::ByteBuffer>, private TurnSink {
 public:
  // What the core does: sends events to the sink until they end.
  using Serve = std::function<absl::Status(CallRecord&, const grpc::ByteBuffer&, TurnSink&)>;
  // `request` lives until the call is done, `method` for ever.
  static GenerateReactor* Start(RpcEnvironment& env, const char* method,
                                grpc::CallbackServerContext* context,
                                const grpc::ByteBuffer* request, Serve serve);

  void OnWriteDone(bool ok) override { queue_.OnWriteDone(ok); }
  void OnCancel() override;
  void OnDone() override;

 private:
  // Outlives the reactor, for the thread that waits for its end.
  struct Done {
    Mutex mutex;
    CondVar changed;
    bool done ABSL_GUARDED_BY(mutex) = false;
  };

  GenerateReactor(RpcEnvironment& env, const char* method, grpc::CallbackServerContext* context,
                  const grpc::ByteBuffer* request, Serve serve);
  void Run();
  bool Send(v1::GenerateResponse response) override;
  void FinishSlow();

  RpcEnvironment& env_;
  grpc::CallbackServerContext* const context_;
  const grpc::ByteBuffer* const request_;
  const Serve serve_;
  CallRecord record_;
  grpc::ByteBuffer outgoing_;  // gRPC's while a write is in flight
  OutputQueue<v1::GenerateResponse> queue_;
  bool slow_ = false;
  std::shared_ptr<Done> done_ = std::make_shared<Done>();
};

}  // namespace mneme::server
