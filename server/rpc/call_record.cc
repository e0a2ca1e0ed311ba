#include "server/rpc/call_record.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/core/status_macros.h"
#include "server/core/errors.h"
#include "server/core/resource_id.h"
#include "server/core/session_names.h"
#include "server/rpc/message_bytes.h"
#include "server/rpc/status_mapping.h"

namespace mneme::server {
namespace {

// Lookups take a fraction of a millisecond, long turns minutes.
const prometheus::Histogram::BucketBoundaries kDurationBounds{
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1,      2.5,   5,      10,    30,   60,    120,  300, 600,  1800};

std::string NewRequestId() {
  thread_local std::mt19937_64 random = [] {
    std::random_device device;
    std::seed_seq seed{device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }();
  return absl::StrFormat("%016x%016x", random(), random());
}

bool IsUsableId(std::string_view id) {
  return !id.empty() && id.size() <= 128 && std::all_of(id.begin(), id.end(), [](unsigned char c) {
    return std::isalnum(c) || c == '-' || c == '_' || c == '.';
  });
}

std::string ClientMetadata(const grpc::CallbackServerContext& context, const char* key) {
  auto found = context.client_metadata().find(key);
  if (found == context.client_metadata().end()) return "";
  std::string value(found->second.data(), found->second.size());
  return IsUsableId(value) ? value : "";
}

CallContext::Clock::time_point SteadyDeadline(std::chrono::system_clock::time_point deadline) {
  const auto now = std::chrono::system_clock::now();
  // Farther away than any machine runs means none; it would overflow below.
  if (deadline > now + std::chrono::hours(24 * 366 * 100))
    return CallContext::Clock::time_point::max();
  return CallContext::Clock::now() +
         std::chrono::duration_cast<CallContext::Clock::duration>(deadline - now);
}

}  // namespace

CallRecord::CallRecord(RpcEnvironment& env, const char* method,
                       grpc::CallbackServerContext* context)
    : env_(env),
      method_(method),
      access_(FindMethodAccess(method)),
      peer_(context->peer()),
      credentials_(CredentialsOf(*context)),
      admission_(env.gate.Admit(access_, credentials_)) {
  if (admission_.caller != nullptr) {
    context_.caller = admission_.caller;
    context_.tenant = admission_.caller->tenant;
  }
  context_.request_id = ClientMetadata(*context, "x-request-id");
  if (context_.request_id.empty()) context_.request_id = NewRequestId();
  trace_parent_ = ClientMetadata(*context, "traceparent");
  context_.deadline = SteadyDeadline(context->deadline());
  context->AddTrailingMetadata("x-request-id", context_.request_id);
  context->AddTrailingMetadata("x-served-by", env_.served_by);
}

absl::Status CallRecord::Submit(WorkerPool& pool, std::function<void()> run) const {
  if (!admission_.status.ok()) return admission_.status;
  if (pool.Submit(std::move(run))) return absl::OkStatus();  // `this` may be gone
  return WithRetry(Error(absl::StatusCode::kUnavailable, reason::kQueueFull,
                         "the server has as many calls as it can hold; try again later"),
                   absl::Seconds(1));
}

void CallRecord::StartTurn(std::function<void()> run,
                           const std::function<void(grpc::Status)>& finish) {
  RpcEnvironment& env = env_;
  ++env.running_turns;
  const absl::Status status = Submit(env.turns, std::move(run));
  if (status.ok()) return;  // `this` may be gone
  finish(Finish(status));
  --env.running_turns;
}

absl::Status CallRecord::Parse(const grpc::ByteBuffer& bytes, google::protobuf::Message* request) {
  MNEME_RETURN_IF_ERROR(ParseMessage(bytes, request));
  if (access_ == nullptr || context_.caller == nullptr) return absl::OkStatus();
  return CheckTenants(*access_, *context_.caller, *request, context_);
}

void CallRecord::set_session(std::string_view name) {
  if (name.size() > 300) return;
  const bool plain = std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::islower(c) || std::isdigit(c) || c == '-' || c == '/';
  });
  if (plain) {
    session_ =
        IsValidId(name) ? SessionName{context_.tenant, std::string(name)}.str() : std::string(name);
  }
}

void CallRecord::Cancel() {
  // gRPC reports both alike; its timer may fire a little before our clock agrees.
  const bool late = context_.deadline != CallContext::Clock::time_point::max() &&
                    CallContext::Clock::now() + std::chrono::milliseconds(2) >= context_.deadline;
  context_.RequestCancel(late ? CallContext::Cancel::kDeadline : CallContext::Cancel::kClient);
}

grpc::Status CallRecord::Finish(const absl::Status& status) {
  const double seconds =
      std::chrono::duration<double>(CallContext::Clock::now() - context_.arrival).count();
  const std::string code = absl::StatusCodeToString(status.code());
  env_.duration_seconds.Add({{"method", method_}, {"code", code}}, kDurationBounds)
      .Observe(seconds);

  nlohmann::json line{{"event", "call"}, {"method", method_},
                      {"code", code},    {"request_id", context_.request_id},
                      {"peer", peer_},   {"duration_ms", seconds * 1e3}};
  if (admission_.status.ok() || admission_.caller != nullptr) line["tenant"] = context_.tenant;
  if (admission_.caller != nullptr) line["key"] = admission_.caller->id;
  if (!credentials_.identities.empty()) line["certificate"] = credentials_.identities;
  if (!admission_.cause.empty()) line["cause"] = admission_.cause;
  if (!session_.empty()) line["session"] = session_;
  if (!trace_parent_.empty()) line["traceparent"] = trace_parent_;
  if (final_.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
    const v1::Usage& usage = final_.usage();
    line["finish_reason"] = v1::FinishReason_Name(final_.finish_reason());
    line["committed"] = final_.committed();
    line["version"] = final_.version();
    line["input_tokens"] = usage.input_tokens();
    line["output_tokens"] = usage.output_tokens();
    line["recomputed_tokens"] = usage.recomputed_tokens();
    line["queue_ms"] = usage.queue_ms();
    line["first_token_ms"] = usage.first_token_ms();
    line["decode_ms"] = usage.decode_ms();
    line["commit_ms"] = usage.commit_ms();
  }
  auto level = spdlog::level::info;
  if (!status.ok()) {
    const std::string reason = ReasonForClient(status);
    env_.core.metrics().CountFailed(code, reason);
    line["reason"] = reason;
    // Only our own failures are worth their text: those of clients could quote what they sent.
    if (status.code() == absl::StatusCode::kInternal ||
        status.code() == absl::StatusCode::kUnknown ||
        status.code() == absl::StatusCode::kDataLoss) {
      line["error"] = std::string(status.message());
      level = spdlog::level::err;
    }
  }
  spdlog::log(level, "{}", line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  return ToGrpcStatus(status);
}

}  // namespace mneme::server
