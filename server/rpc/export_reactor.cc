#include "server/rpc/export_reactor.h"

#include <chrono>
#include <string>
#include <utility>

#include "engine/core/status_macros.h"
#include "server/core/errors.h"
#include "server/rpc/message_bytes.h"

namespace mneme::server {

ExportReactor* ExportReactor::Start(RpcEnvironment& env, grpc::CallbackServerContext* context,
                                    const grpc::ByteBuffer* request) {
  auto* reactor = new ExportReactor(env, context, request);
  reactor->record_.StartTurn(
      [reactor] { reactor->Run(); },
      [reactor](grpc::Status status) { reactor->Finish(std::move(status)); });
  return reactor;
}

ExportReactor::ExportReactor(RpcEnvironment& env, grpc::CallbackServerContext* context,
                             const grpc::ByteBuffer* request)
    : env_(env),
      request_(request),
      record_(env, "ExportSession", context),
      queue_(std::chrono::milliseconds(env.config.limits.slow_client_timeout_ms), record_.context(),
             [this](const v1::ExportSessionResponse* message) {
               outgoing_ = BytesOf(*message);
               StartWrite(&outgoing_);
             }) {}

void ExportReactor::OnCancel() {
  queue_.Close();
  record_.Cancel();
}

bool ExportReactor::Send(v1::ExportSessionResponse response) {
  const auto result = queue_.Push(std::move(response));
  if (result == OutputQueue<v1::ExportSessionResponse>::Result::kSlow) {
    slow_ = true;
    record_.context().RequestCancel(CallContext::Cancel::kSlowConsumer);
  }
  return result == OutputQueue<v1::ExportSessionResponse>::Result::kOk;
}

absl::Status ExportReactor::Export() {
  v1::ExportSessionRequest request;
  MNEME_RETURN_IF_ERROR(record_.Parse(*request_, &request));
  record_.set_session(request.name());
  return env_.core.ExportSession(record_.context(), request, *this);
}

void ExportReactor::Run() {
  RpcEnvironment& env = env_;
  absl::Status status = Export();
  if (!slow_) slow_ = queue_.Flush() == OutputQueue<v1::ExportSessionResponse>::Result::kSlow;
  if (slow_) {
    // What is in flight is one message: the status may wait behind it until the client reads or its
    // connection ends.
    queue_.Abandon();
    status = Error(
        absl::StatusCode::kResourceExhausted, reason::kSlowConsumer,
        "the client read nothing for limits.slow_client_timeout; read the stream while it runs",
        {{"timeout_ms", std::to_string(env.config.limits.slow_client_timeout_ms)}});
  }
  Finish(record_.Finish(status));
  --env.running_turns;  // `this` may be gone
}

}  // namespace mneme::server
