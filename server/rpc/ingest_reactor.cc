#include "server/rpc/ingest_reactor.h"

#include <chrono>
#include <memory>
#include <utility>

#include "engine/core/status_macros.h"
#include "server/core/cancel_status.h"
#include "server/core/errors.h"
#include "server/rpc/message_bytes.h"

namespace mneme::server {
namespace {

absl::Status FrameError(std::string_view field, std::string expected) {
  FieldErrors errors;
  errors.Add(field, std::move(expected), reason::kFieldRequired);
  return errors.ToStatus();
}

}  // namespace

IngestReactor* IngestReactor::Start(RpcEnvironment& env, grpc::CallbackServerContext* context) {
  auto* reactor = new IngestReactor(env, context);
  reactor->record_.StartTurn(
      [reactor] { reactor->Run(); },
      [reactor](grpc::Status status) { reactor->Finish(std::move(status)); });
  return reactor;
}

IngestReactor::IngestReactor(RpcEnvironment& env, grpc::CallbackServerContext* context)
    : env_(env),
      context_(context),
      record_(env, "IngestSession", context),
      queue_(std::chrono::milliseconds(env.config.limits.slow_client_timeout_ms), record_.context(),
             [this](const v1::IngestProgress* message) {
               outgoing_ = BytesOf(*message);
               StartWrite(&outgoing_);
             }),
      input_(record_.context()) {}

void IngestReactor::OnCancel() {
  queue_.Close();
  record_.Cancel();
}

void IngestReactor::Run() {
  RpcEnvironment& env = env_;
  StartRead(input_.buffer());
  absl::Status status = Serve();
  if (queue_.Flush() == OutputQueue<v1::IngestProgress>::Result::kSlow) {
    queue_.Abandon();
    if (status.ok()) {
      status = Error(absl::StatusCode::kResourceExhausted, reason::kSlowConsumer,
                     "everything is durable, but the client did not read the last progress");
    }
    // One small message is all that is unsent: the status may wait behind it until the client
    // reads or its connection ends.
  }
  Finish(record_.Finish(status));
  --env.running_turns;  // `this` may be gone
}

absl::StatusOr<bool> IngestReactor::NextFrame(Ingest* ingest, v1::IngestRequest* frame) {
  grpc::ByteBuffer bytes;
  const CallContext& context = record_.context();
  while (true) {
    const auto commit_due =
        ingest == nullptr ? CallContext::Clock::time_point::max() : ingest->commit_due();
    const InputSlot::Result result = input_.Next(commit_due, &bytes);
    if (result == InputSlot::Result::kFrame) break;
    if (result == InputSlot::Result::kEnd) {
      if (context_->IsCancelled()) return CancelStatus(CallContext::Cancel::kClient);
      return false;
    }
    MNEME_RETURN_IF_ERROR(CancelStatus(context.cancelled()));
    if (ingest == nullptr) continue;
    MNEME_ASSIGN_OR_RETURN(const bool committed, ingest->CommitIfDue());
    if (committed) queue_.PushLatest(ingest->progress());
  }
  StartRead(input_.buffer());
  MNEME_RETURN_IF_ERROR(record_.Parse(bytes, frame));
  return true;
}

absl::Status IngestReactor::Serve() {
  v1::IngestRequest frame;
  MNEME_ASSIGN_OR_RETURN(bool more, NextFrame(nullptr, &frame));
  if (!more || !frame.has_start()) {
    return FrameError("start", "must be the first frame of the stream");
  }
  record_.set_session(frame.start().session());
  MNEME_ASSIGN_OR_RETURN(std::unique_ptr<Ingest> ingest,
                         env_.core.StartIngest(record_.context(), frame.start()));
  queue_.PushLatest(ingest->progress());
  // Done from the beginning if its last answer was lost: the client has nothing more to send.
  while (!ingest->progress().done()) {
    MNEME_ASSIGN_OR_RETURN(more, NextFrame(ingest.get(), &frame));
    if (!more) {
      return FrameError("data.last",
                        "must be set on the final frame; the stream ended without it, and what "
                        "was reported as durable stays");
    }
    if (!frame.has_data()) {
      return FrameError("data", "must be set in every frame after the first");
    }
    MNEME_RETURN_IF_ERROR(ingest->Write(frame.data()));
    queue_.PushLatest(ingest->progress());
    if (frame.data().last()) break;
  }
  return absl::OkStatus();
}

}  // namespace mneme::server
