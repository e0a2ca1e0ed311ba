#include "server/rpc/import_reactor.h"

#include <chrono>
#include <memory>
#include <string>

#include "engine/core/status_macros.h"
#include "server/core/cancel_status.h"
#include "server/core/errors.h"
#include "server/core/server_core.h"
#include "server/rpc/message_bytes.h"

namespace mneme::server {
namespace {

absl::Status FrameRequired(std::string_view field, std::string expected) {
  FieldErrors errors;
  errors.Add(field, std::move(expected), reason::kFieldRequired);
  return errors.ToStatus();
}

}  // namespace

ImportReactor* ImportReactor::Start(RpcEnvironment& env, grpc::CallbackServerContext* context,
                                    grpc::ByteBuffer* response) {
  auto* reactor = new ImportReactor(env, context, response);
  reactor->record_.StartTurn(
      [reactor] { reactor->Run(); },
      [reactor](grpc::Status status) { reactor->Finish(std::move(status)); });
  return reactor;
}

ImportReactor::ImportReactor(RpcEnvironment& env, grpc::CallbackServerContext* context,
                             grpc::ByteBuffer* response)
    : env_(env),
      context_(context),
      response_(response),
      record_(env, "ImportSession", context),
      input_(record_.context()) {}

void ImportReactor::Run() {
  RpcEnvironment& env = env_;
  StartRead(input_.buffer());
  Finish(record_.Finish(Serve()));
  --env.running_turns;  // `this` may be gone
}

absl::StatusOr<bool> ImportReactor::NextFrame(v1::ImportSessionRequest* frame) {
  const CallContext& context = record_.context();
  const auto slow_at = CallContext::Clock::now() +
                       std::chrono::milliseconds(env_.config.limits.slow_client_timeout_ms);
  grpc::ByteBuffer bytes;
  while (true) {
    const InputSlot::Result result = input_.Next(slow_at, &bytes);
    if (result == InputSlot::Result::kFrame) break;
    if (result == InputSlot::Result::kEnd) {
      if (context_->IsCancelled()) return CancelStatus(CallContext::Cancel::kClient);
      return false;
    }
    MNEME_RETURN_IF_ERROR(CancelStatus(context.cancelled()));
    if (CallContext::Clock::now() >= slow_at) {
      return Error(absl::StatusCode::kResourceExhausted, reason::kSlowConsumer,
                   "the client sent nothing for limits.slow_client_timeout; send the file while "
                   "the call runs",
                   {{"timeout_ms", std::to_string(env_.config.limits.slow_client_timeout_ms)}});
    }
  }
  StartRead(input_.buffer());
  MNEME_RETURN_IF_ERROR(record_.Parse(bytes, frame));
  return true;
}

absl::Status ImportReactor::Serve() {
  v1::ImportSessionRequest frame;
  MNEME_ASSIGN_OR_RETURN(bool more, NextFrame(&frame));
  if (!more || !frame.has_start()) {
    return FrameRequired("start", "must be the first frame of the stream");
  }
  record_.set_session(frame.start().session_id());
  MNEME_ASSIGN_OR_RETURN(std::unique_ptr<Import> import,
                         env_.core.StartImport(record_.context(), frame.start()));
  while (true) {
    MNEME_ASSIGN_OR_RETURN(more, NextFrame(&frame));
    if (!more) break;
    if (!frame.has_data()) {
      return FrameRequired("data", "must be set in every frame after the first");
    }
    MNEME_RETURN_IF_ERROR(import->Write(frame.data()));
  }
  MNEME_ASSIGN_OR_RETURN(const v1::ImportSessionResponse response, import->Finish());
  *response_ = BytesOf(response);
  return absl::OkStatus();
}

}  // namespace mneme::server
