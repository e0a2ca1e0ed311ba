#include "client/channel.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/tls.h"
#include "client/transport_error.h"

namespace mneme::client {
namespace {

// A pool of its own: two clients in one process must not share a broken connection's backoff.
grpc::ChannelArguments Arguments(const Options& options) {
  grpc::ChannelArguments args;
  args.SetServiceConfigJSON(ServiceConfigJson(options.health_check));
  args.SetUserAgentPrefix("mneme-client/0.1");
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  // gRPC's name for the time one attempt to connect may take.
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 2000);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  // The server allows a ping every 20 s; 30 s notices a dead peer during a long prefill.
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20000);
  args.SetMaxReceiveMessageSize(kMaxAnswerBytes);
  return args;
}

std::mt19937_64& Random() {
  thread_local std::mt19937_64 random{std::random_device{}()};
  return random;
}

}  // namespace

Channel::Channel(const Options& o, bool speaks_tls)
    : options(o),
      tls(speaks_tls),
      grpc(grpc::CreateCustomChannel(o.server, o.credentials, Arguments(o))),
      sessions(v1::Sessions::NewStub(grpc)),
      generation(v1::Generation::NewStub(grpc)),
      models(v1::Models::NewStub(grpc)),
      admin(v1::Admin::NewStub(grpc)) {}

absl::Status Channel::AwaitServer(absl::Duration timeout,
                                  const std::function<bool()>& stopped) const {
  const absl::Time begin = absl::Now();
  const int64_t last = last_awaited_ns_.exchange(absl::ToUnixNanos(begin));
  // Calls that follow each other closely look at the socket themselves, and pay nothing here.
  if (begin - absl::FromUnixNanos(last) > absl::Milliseconds(10)) {
    grpc->WaitForStateChange(GRPC_CHANNEL_READY, absl::ToChronoTime(begin + absl::Milliseconds(3)));
  }
  const absl::Time give_up = begin + timeout;
  bool explained = false;
  for (absl::Time slice;;) {
    slice = std::min(give_up, absl::Now() + absl::Milliseconds(100));
    if (grpc->WaitForConnected(absl::ToChronoTime(slice))) return absl::OkStatus();
    if (stopped && stopped()) return absl::CancelledError("stopped while the server was away");
    // Once when it fails first, and once more for a server that has come up since.
    const bool failing = grpc->GetState(false) == GRPC_CHANNEL_TRANSIENT_FAILURE;
    if (failing && (!explained || slice == give_up)) {
      explained = true;
      if (auto s = ExplainNoConnection(options.server, tls, options.tls); !s.ok()) return s;
    }
    if (slice == give_up) {
      return absl::UnavailableError(absl::StrCat("no server answers at ", options.server,
                                                 " within ", absl::FormatDuration(timeout)));
    }
  }
}

std::string NewRequestId() {
  uint64_t a = Random()(), b = Random()();
  a = (a & ~0xf000ull) | 0x4000ull;               // version 4
  b = (b & ~(3ull << 62)) | (uint64_t{2} << 62);  // variant 1
  char text[37];
  std::snprintf(text, sizeof(text), "%08x-%04x-%04x-%04x-%012llx", static_cast<unsigned>(a >> 32),
                static_cast<unsigned>(a >> 16 & 0xffff), static_cast<unsigned>(a & 0xffff),
                static_cast<unsigned>(b >> 48),
                static_cast<unsigned long long>(b & 0xffffffffffffull));
  return text;
}

void Prepare(grpc::ClientContext& context, const Options& options, absl::Duration timeout,
             std::string_view request_id, std::string_view session) {
  if (timeout < absl::Hours(24 * 365)) {
    context.set_deadline(std::chrono::system_clock::now() +
                         absl::ToChronoNanoseconds(std::max(timeout, absl::ZeroDuration())));
  }
  if (!options.api_key.empty()) {
    context.AddMetadata("authorization", absl::StrCat("Bearer ", options.api_key));
  }
  context.AddMetadata("x-request-id", std::string(request_id));
  if (!session.empty()) context.AddMetadata("x-session-affinity", std::string(session));
}

bool OutcomeUnknown(const absl::Status& status) {
  if (status.code() == absl::StatusCode::kDeadlineExceeded) return true;
  // gRPC 1.51 reports some broken connections as UNKNOWN "Stream removed".
  bool broken = status.code() == absl::StatusCode::kUnavailable ||
                (status.code() == absl::StatusCode::kUnknown &&
                 absl::StrContains(status.message(), "Stream removed"));
  // Never sent, says gRPC's text; if the text changes, we only become more careful.
  bool sent = !absl::StartsWith(status.message(), "failed to connect to all addresses");
  return broken && sent && ErrorOf(status).reason.empty();
}

bool MayRepeat(const absl::Status& status, int attempt) {
  return attempt <= kMaxAttempts && status.code() == absl::StatusCode::kUnavailable;
}

absl::Duration DelayBefore(int attempt, const absl::Status& last) {
  if (auto advice = ErrorOf(last).retry_delay) return std::min(*advice, absl::Seconds(30));
  return Backoff(attempt) * std::uniform_real_distribution<double>(0.8, 1.2)(Random());
}

}  // namespace mneme::client
