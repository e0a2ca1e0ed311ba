#include "client/channel.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>

#include "absl/strings/match.h"

namespace mneme::client {
namespace {

// A pool of its own: two clients in one process must not share a broken connection's backoff.
grpc::ChannelArguments Arguments(const Options& options) {
  grpc::ChannelArguments args;
  args.SetServiceConfigJSON(ServiceConfigJson(options.health_check));
  args.SetUserAgentPrefix("mneme-client/0.1");
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  // The server allows a ping every 20 s; 30 s notices a dead peer during a long prefill.
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20000);
  // Log-probabilities of a long text are larger than gRPC's default of 4 MiB.
  args.SetMaxReceiveMessageSize(256 << 20);
  return args;
}

std::mt19937_64& Random() {
  thread_local std::mt19937_64 random{std::random_device{}()};
  return random;
}

}  // namespace

Channel::Channel(const Options& o)
    : options(o),
      grpc(grpc::CreateCustomChannel(
          o.server, o.credentials ? o.credentials : grpc::InsecureChannelCredentials(),
          Arguments(o))),
      sessions(v1::Sessions::NewStub(grpc)),
      generation(v1::Generation::NewStub(grpc)),
      models(v1::Models::NewStub(grpc)) {}

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

void Prepare(grpc::ClientContext& context, absl::Duration timeout, std::string_view request_id,
             std::string_view session) {
  if (timeout < absl::Hours(24 * 365)) {
    context.set_deadline(std::chrono::system_clock::now() +
                         absl::ToChronoNanoseconds(std::max(timeout, absl::ZeroDuration())));
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

bool MayRepeat(const absl::Status& status, Repeat repeat, int attempt) {
  if (attempt > kMaxAttempts) return false;
  if (RefusedUntouched(ErrorOf(status))) return true;
  if (status.code() != absl::StatusCode::kUnavailable) return false;
  return repeat == Repeat::kGuarded || !OutcomeUnknown(status);
}

absl::Duration DelayBefore(int attempt, const absl::Status& last) {
  if (auto advice = ErrorOf(last).retry_delay) return std::min(*advice, absl::Seconds(30));
  return Backoff(attempt) * std::uniform_real_distribution<double>(0.8, 1.2)(Random());
}

}  // namespace mneme::client
