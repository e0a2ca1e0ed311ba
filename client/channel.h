// The connection behind a Client and what every call on it shares. Internal to the library.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "client/error.h"
#include "client/options.h"
#include "client/request_check.h"
#include "client/service_config.h"
#include "mneme/v1/admin.grpc.pb.h"
#include "mneme/v1/generation.grpc.pb.h"
#include "mneme/v1/models.grpc.pb.h"
#include "mneme/v1/sessions.grpc.pb.h"

namespace mneme::client {

// Any thread.
struct Channel {
  // `options.server` is a gRPC target, `options.credentials` are set. `tls`: what they speak.
  Channel(const Options& options, bool tls);

  // Before a call: waits until the server can be reached, so that a call does not fail because it
  // was away for a moment. gRPC looks at its sockets only while somebody waits in it, so a
  // connection that died unseen is found dead, and replaced, here and not by the call. UNAVAILABLE
  // after `timeout`, or at once if no waiting would help (tls.h); CANCELLED soon after `stopped`
  // says so.
  absl::Status AwaitServer(absl::Duration timeout,
                           const std::function<bool()>& stopped = nullptr) const;
  // As long as a call with this deadline may wait.
  absl::Duration ConnectTimeout(absl::Time deadline) const {
    return std::min(options.connect_timeout, deadline - absl::Now());
  }

  Options options;
  bool tls;
  std::shared_ptr<grpc::Channel> grpc;
  std::unique_ptr<v1::Sessions::Stub> sessions;
  std::unique_ptr<v1::Generation::Stub> generation;
  std::unique_ptr<v1::Models::Stub> models;
  std::unique_ptr<v1::Admin::Stub> admin;

 private:
  mutable std::atomic<int64_t> last_awaited_ns_{0};  // since the epoch
};

// What a failed call may have done, and so whether the library may send it again.
enum class Repeat {
  kByChannel,  // changes nothing: gRPC retries it by the service config
  kGuarded,    // the request's request_id makes sure that it happens at most once
  kNever,      // could happen twice: sent again only if the server refused it untouched
};

std::string NewRequestId();

// Gives a request that can say which one it is an id of its own, unless the caller did.
template <typename Request>
void IdentifyRequest(Request& request) {
  if constexpr (requires { request.set_request_id(std::string()); }) {
    if (request.request_id().empty()) request.set_request_id(NewRequestId());
  }
}

// The client's key, deadline, x-request-id and x-session-affinity (the session's full name; "":
// none).
void Prepare(grpc::ClientContext& context, const Options& options, absl::Duration timeout,
             std::string_view request_id, std::string_view session);

// True if a call that is kGuarded and ended so may be sent again as attempt `attempt` (2, 3, ...).
bool MayRepeat(const absl::Status& status, int attempt);
// True if the call may have happened although it failed so: the connection broke under it.
bool OutcomeUnknown(const absl::Status& status);
// How long to wait before `attempt`: the server's RetryInfo, else the backoff with +-20 % jitter.
absl::Duration DelayBefore(int attempt, const absl::Status& last);

// Of generation (generate_stream.cc): asks the server to go on for a client that may come back;
// tells it, as well as that can be done, that this one will not.
void OutliveStream(const Options& options, v1::GenerateRequest& request);
void GiveUp(const Channel& channel, const v1::GenerateRequest& request);

// One unary call with its retries.
template <typename Response, typename Stub, typename Request>
absl::StatusOr<Response> Call(const Channel& channel, const CallOptions& call,
                              absl::Duration default_timeout, Repeat repeat,
                              std::string_view session, Stub& stub,
                              grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                           Response*),
                              Request request) {
  IdentifyRequest(request);
  if (absl::Status status = CheckRequest(request); !status.ok()) return status;
  const std::string id = call.request_id.empty() ? NewRequestId() : call.request_id;
  const absl::Duration timeout = call.timeout.value_or(default_timeout);
  const absl::Time deadline = absl::Now() + timeout;
  bool unknown = false;
  for (int attempt = 1;; ++attempt) {
    if (auto s = channel.AwaitServer(channel.ConnectTimeout(deadline)); !s.ok()) {
      return unknown ? WithUnknownOutcome(std::move(s)) : s;
    }
    grpc::ClientContext context;
    Prepare(context, channel.options, deadline - absl::Now(), id, session);
    Response response;
    absl::Status status = FromGrpc((stub.*method)(&context, request, &response), id);
    if (status.ok()) return response;
    if (repeat == Repeat::kByChannel) return status;
    // Sticky: an answer to a later attempt (say, VERSION_MISMATCH) may be caused by an earlier one.
    unknown = unknown || OutcomeUnknown(status);
    const bool harmless = repeat == Repeat::kGuarded || !OutcomeUnknown(status);
    if (harmless && MayRepeat(status, attempt + 1)) {
      absl::Duration delay = DelayBefore(attempt + 1, status);
      if (absl::Now() + delay < deadline) {
        absl::SleepFor(delay);
        continue;
      }
    }
    return unknown ? WithUnknownOutcome(std::move(status)) : status;
  }
}

}  // namespace mneme::client
