// The reactor of every unary RPC: one blocking core call on a worker thread.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <functional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "engine/core/status_macros.h"
#include "server/rpc/call_record.h"
#include "server/rpc/message_bytes.h"
#include "server/rpc/rpc_environment.h"

namespace mneme::server {

template <typename Request, typename Response>
class UnaryCall final : public grpc::ServerUnaryReactor {
 public:
  using Handler = std::function<absl::StatusOr<Response>(CallRecord&, const Request&)>;

  // `is_turn`: may compute or wait for long. `bytes` and `response` live until the call is done.
  // Deletes itself.
  static grpc::ServerUnaryReactor* Start(RpcEnvironment& env, const char* method, bool is_turn,
                                         grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* bytes, grpc::ByteBuffer* response,
                                         Handler handler) {
    auto* call = new UnaryCall(env, method, is_turn, context, bytes, response, std::move(handler));
    WorkerPool& pool = is_turn ? env.turns : env.lookups;
    if (is_turn) ++env.running_turns;
    const absl::Status status = call->record_.Submit(pool, [call] { call->Run(); });
    if (!status.ok()) call->Answer(status);
    return call;
  }

  void OnCancel() override { record_.Cancel(); }
  void OnDone() override { delete this; }

 private:
  UnaryCall(RpcEnvironment& env, const char* method, bool is_turn,
            grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
            grpc::ByteBuffer* response, Handler handler)
      : env_(env),
        is_turn_(is_turn),
        record_(env, method, context),
        bytes_(bytes),
        response_(response),
        handler_(std::move(handler)) {}

  void Run() { Answer(Handle()); }

  absl::Status Handle() {
    Request request;
    MNEME_RETURN_IF_ERROR(record_.Parse(*bytes_, &request));
    MNEME_ASSIGN_OR_RETURN(const Response response, handler_(record_, request));
    *response_ = BytesOf(response);
    return absl::OkStatus();
  }

  void Answer(const absl::Status& status) {
    RpcEnvironment& env = env_;
    const bool is_turn = is_turn_;
    Finish(record_.Finish(status));  // `this` may be gone
    if (is_turn) --env.running_turns;
  }

  RpcEnvironment& env_;
  const bool is_turn_;
  CallRecord record_;
  const grpc::ByteBuffer* const bytes_;
  grpc::ByteBuffer* const response_;
  const Handler handler_;
};

// `method` of the core, on a thread for short calls. `session_of` names the session for the log.
template <typename Request, typename Response>
grpc::ServerUnaryReactor* StartUnary(
    RpcEnvironment& env, const char* name,
    absl::StatusOr<Response> (ServerCore::*method)(CallContext&, const Request&),
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes, grpc::ByteBuffer* response,
    std::string (*session_of)(const Request&) = nullptr, bool is_turn = false) {
  return UnaryCall<Request, Response>::Start(
      env, name, is_turn, context, bytes, response,
      [&env, method, session_of](CallRecord& record, const Request& request) {
        if (session_of != nullptr) record.set_session(session_of(request));
        return (env.core.*method)(record.context(), request);
      });
}

}  // namespace mneme::server
