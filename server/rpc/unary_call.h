// The reactor of every unary RPC: one blocking core call on a worker thread.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <functional>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "server/rpc/call_record.h"
#include "server/rpc/rpc_environment.h"

namespace mneme::server {

// The status of a call that finds its pool full.
absl::Status NoWorkerLeft();

template <typename Response>
class UnaryCall final : public grpc::ServerUnaryReactor {
 public:
  using Handler = std::function<absl::StatusOr<Response>(CallRecord&)>;

  // `is_turn`: may compute or wait for long. Deletes itself.
  static grpc::ServerUnaryReactor* Start(RpcEnvironment& env, const char* method, bool is_turn,
                                         grpc::CallbackServerContext* context,
                                         std::string_view session, Response* response,
                                         Handler handler) {
    auto* call = new UnaryCall(env, method, is_turn, context, response, std::move(handler));
    call->record_.set_session(session);
    WorkerPool& pool = is_turn ? env.turns : env.lookups;
    if (is_turn) ++env.running_turns;
    if (!pool.Submit([call] { call->Run(); })) call->Answer(NoWorkerLeft());
    return call;
  }

  void OnCancel() override { record_.Cancel(); }
  void OnDone() override { delete this; }

 private:
  UnaryCall(RpcEnvironment& env, const char* method, bool is_turn,
            grpc::CallbackServerContext* context, Response* response, Handler handler)
      : env_(env),
        is_turn_(is_turn),
        record_(env, method, context),
        response_(response),
        handler_(std::move(handler)) {}

  void Run() {
    absl::StatusOr<Response> result = handler_(record_);
    if (result.ok()) *response_ = *std::move(result);
    Answer(result.status());
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
  Response* const response_;
  const Handler handler_;
};

// `method` of the core with this request, on a thread for short calls.
template <typename Request, typename Response>
grpc::ServerUnaryReactor* StartUnary(RpcEnvironment& env, const char* name,
                                     absl::StatusOr<Response> (ServerCore::*method)(CallContext&,
                                                                                    const Request&),
                                     grpc::CallbackServerContext* context, const Request* request,
                                     Response* response, std::string_view session = "",
                                     bool is_turn = false) {
  return UnaryCall<Response>::Start(env, name, is_turn, context, session, response,
                                    [&env, method, request](CallRecord& record) {
                                      return (env.core.*method)(record.context(), *request);
                                    });
}

}  // namespace mneme::server
