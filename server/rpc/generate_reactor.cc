#include "server/rpc/generate_reactor.h"

#include <grpc/grpc.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "server/core/errors.h"
#include "server/rpc/message_bytes.h"

namespace mneme::server {
namespace {

// How long a slow client may take to read the status, before the stream is cut off.
constexpr std::chrono::seconds kStatusGrace{5};

}  // namespace

GenerateReactor* GenerateReactor::Start(RpcEnvironment& env, const char* method,
                                        grpc::CallbackServerContext* context,
                                        const grpc::ByteBuffer* request, Serve serve) {
  auto* reactor = new GenerateReactor(env, method, context, request, std::move(serve));
  reactor->record_.StartTurn(
      [reactor] { reactor->Run(); },
      [reactor](grpc::Status status) { reactor->Finish(std::move(status)); });
  return reactor;
}

GenerateReactor::GenerateReactor(RpcEnvironment& env, const char* method,
                                 grpc::CallbackServerContext* context,
                                 const grpc::ByteBuffer* request, Serve serve)
    : env_(env),
      context_(context),
      request_(request),
      serve_(std::move(serve)),
      record_(env, method, context),
      queue_(std::chrono::milliseconds(env.config.limits.slow_client_timeout_ms), record_.context(),
             [this](const v1::GenerateResponse* message) {
               outgoing_ = BytesOf(*message);
               StartWrite(&outgoing_);
             }) {}

void GenerateReactor::OnCancel() {
  queue_.Close();
  record_.Cancel();
}

void GenerateReactor::OnDone() {
  std::shared_ptr<Done> done = done_;
  delete this;
  MutexLock lock(&done->mutex);
  done->done = true;
  done->changed.NotifyAll();
}

bool GenerateReactor::Send(v1::GenerateResponse response) {
  if (response.has_final()) record_.set_final(response.final());
  switch (queue_.Push(std::move(response))) {
    case OutputQueue<v1::GenerateResponse>::Result::kOk:
      return true;
    case OutputQueue<v1::GenerateResponse>::Result::kClosed:
      return false;
    case OutputQueue<v1::GenerateResponse>::Result::kSlow:
      break;
  }
  slow_ = true;
  record_.context().RequestCancel(CallContext::Cancel::kSlowConsumer);
  return false;
}

void GenerateReactor::Run() {
  RpcEnvironment& env = env_;
  const absl::Status status = serve_(record_, *request_, *this);
  if (!slow_) {
    slow_ = queue_.Flush() == OutputQueue<v1::GenerateResponse>::Result::kSlow;
  }
  if (slow_) {
    FinishSlow();
  } else {
    Finish(record_.Finish(status));
  }
  --env.running_turns;  // `this` may be gone
}

void GenerateReactor::FinishSlow() {
  // The status queues behind the message that the client does not take, and arrives if it ever
  // wakes up. A client that stays asleep is cut off, so that the stream's memory comes back; only
  // gRPC's C call can do that with a code of our choice.
  queue_.Abandon();
  std::shared_ptr<Done> done = done_;
  const auto grace = std::min<std::chrono::milliseconds>(
      kStatusGrace, std::chrono::milliseconds(env_.config.limits.slow_client_timeout_ms));
  grpc_call* const call = context_->c_call();
  grpc_call_ref(call);
  Finish(record_.Finish(
      Error(absl::StatusCode::kResourceExhausted, reason::kSlowConsumer,
            "the client read nothing for limits.slow_client_timeout; read the stream while it runs",
            {{"timeout_ms", std::to_string(env_.config.limits.slow_client_timeout_ms)}})));
  const auto deadline = std::chrono::steady_clock::now() + grace;
  bool ended = false;
  {
    MutexLock lock(&done->mutex);
    while (!done->done && done->changed.WaitUntil(&done->mutex, deadline)) {
    }
    ended = done->done;
  }
  if (!ended) {
    grpc_call_cancel_with_status(call, GRPC_STATUS_RESOURCE_EXHAUSTED,
                                 "SLOW_CONSUMER: the client did not read the stream", nullptr);
  }
  grpc_call_unref(call);
}

}  // namespace mneme::server
