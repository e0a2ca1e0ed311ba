#include "server/rpc/server.h"

#include <grpc/grpc.h>
#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server_builder.h>
#include <prometheus/histogram.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "server/config/keys_file.h"
#include "server/core/errors.h"
#include "server/rpc/process_metrics.h"
#include "server/rpc/store_disk_metrics.h"

namespace mneme::server {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

// Beyond the core's own limits, so that it is the core that refuses, with its reason.
constexpr size_t kSpareTurnThreads = 16;
constexpr size_t kLookupThreads = 32;
constexpr size_t kMaxWaitingLookups = 4096;

// After PreemptAll: one engine step, one commit, and the way out to the clients.
constexpr std::chrono::seconds kPreemptTimeout{15};
// For calls that are not turns: lookups, health watches, reflection.
constexpr milliseconds kCloseTimeout{200};

absl::Status CannotListen(const char* setting, const std::string& address) {
  return absl::AlreadyExistsError(
      absl::StrCat("cannot listen on ", setting, " ", address,
                   ": it is in use, or no address of this machine; port 0 takes any free port"));
}

std::string WithPort(const std::string& address, int port) {
  const size_t colon = address.rfind(':');
  if (address.rfind("unix", 0) == 0 || colon == std::string::npos) return address;
  return absl::StrCat(address.substr(0, colon), ":", port);
}

}  // namespace

RpcServer::RpcServer(const Config& config, ServerCore& core, Files files,
                     AdminService::OnDrain on_drain)
    : core_(core),
      gate_(std::move(files.keyring)),
      env_{.core = core,
           .config = config,
           .gate = gate_,
           .served_by = config.replica.name,
           .duration_seconds = prometheus::BuildHistogram()
                                   .Name("mneme_rpc_server_duration_seconds")
                                   .Help("From the arrival of a call to its status.")
                                   .Register(*core.metrics().registry()),
           .turns = turns_,
           .lookups = lookups_},
      turns_(std::max<int64_t>(1, config.num_devices()) * config.limits.max_running_streams +
                 config.limits.max_queued_requests + kSpareTurnThreads,
             /*max_waiting=*/0),
      lookups_(kLookupThreads, kMaxWaitingLookups),
      sessions_(env_),
      generation_(env_),
      models_(env_),
      admin_(env_, std::move(on_drain)),
      tls_(files.tls.has_value()
               ? std::make_unique<TlsCredentials>(config.listen.tls, *std::move(files.tls))
               : nullptr) {}

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(const Config& config, ServerCore& core,
                                                            HealthReporter::Options health,
                                                            AdminService::OnDrain on_drain) {
  if (absl::Status status = core.CheckStore(); !status.ok()) {
    return Error(absl::StatusCode::kUnavailable, reason::kStoreUnavailable,
                 absl::StrCat("the store does not answer: ", status.message()));
  }
  MNEME_ASSIGN_OR_RETURN(Files files, ReadFiles(config));
  std::unique_ptr<RpcServer> server(
      new RpcServer(config, core, std::move(files), std::move(on_drain)));
  MNEME_RETURN_IF_ERROR(server->Listen(health));
  MNEME_RETURN_IF_ERROR(server->ListenForHttp());
  return server;
}

absl::StatusOr<RpcServer::Files> RpcServer::ReadFiles(const Config& config) {
  Files files;
  if (!config.auth.keys_file.empty()) {
    MNEME_ASSIGN_OR_RETURN(files.keyring, ReadKeysFile(config.auth.keys_file));
  }
  if (!config.listen.tls.cert.empty()) {
    MNEME_ASSIGN_OR_RETURN(files.tls, ReadTlsFiles(config.listen.tls));
  }
  return files;
}

absl::Status RpcServer::CheckFiles(const Config& config) { return ReadFiles(config).status(); }

absl::Status RpcServer::Reload() {
  MNEME_ASSIGN_OR_RETURN(Files files, ReadFiles(env_.config));
  gate_.Install(std::move(files.keyring));
  if (tls_ != nullptr) tls_->Install(*std::move(files.tls));
  return absl::OkStatus();
}

absl::Status RpcServer::Listen(HealthReporter::Options health) {
  static std::once_flag plugins;  // process-wide switches, not thread-safe themselves
  std::call_once(plugins, [] {
    // gRPC says on standard error what it could not do, such as a stranger's handshake: as lines of
    // our log.
    gpr_set_log_function([](gpr_log_func_args* line) { spdlog::warn("gRPC: {}", line->message); });
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  });
  const Config& config = env_.config;
  grpc::ServerBuilder builder;
  builder.AddListeningPort(config.listen.address,
                           tls_ != nullptr ? tls_->ForPort() : grpc::InsecureServerCredentials(),
                           &port_);
  builder.RegisterService(&sessions_);
  builder.RegisterService(&generation_);
  builder.RegisterService(&models_);
  builder.RegisterService(&admin_);
  builder.SetMaxReceiveMessageSize(static_cast<int>(config.limits.max_request_bytes));
  // Without this a second server would share the port, and its clients, silently.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 256);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 16 << 10);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // Clients may ping every 20 s; the rest is for clocks and networks that jitter.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 15'000);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, 30 * 60'000);  // gRPC adds +-10 %
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, 10 * 60'000);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr) return CannotListen("listen.address", config.listen.address);
  address_ = WithPort(config.listen.address, port_);
  health_ =
      std::make_unique<HealthReporter>(server_->GetHealthCheckService(), core_, lookups_, health);
  return absl::OkStatus();
}

absl::Status RpcServer::ListenForHttp() {
  const std::string& address = env_.config.listen.metrics_address;
  if (address.empty()) return absl::OkStatus();
  std::vector<std::shared_ptr<prometheus::Collectable>> metrics = {
      core_.metrics().registry(), std::make_shared<ProcessMetrics>()};
  if (env_.config.store.kind == "rocksdb") {
    metrics.push_back(std::make_shared<StoreDiskMetrics>(env_.config.store.path));
  }
  http_ = HttpListener::Start(
      address, std::move(metrics), [this] { return health_->WhyNotAlive(); },
      [this] { return health_->WhyNotReady(); },
      [this](const std::string& authorization) { return gate_.MayScrape(authorization); });
  if (http_ == nullptr) return CannotListen("listen.metrics_address", address);
  metrics_address_ = WithPort(address, http_->port());
  return absl::OkStatus();
}

void RpcServer::Drain(DrainStart start) {
  auto phase = [this](int number, const char* text) {
    core_.metrics().drain_phase.Set(number);
    spdlog::info("drain {}: {}", number, text);
  };
  // True once `done`, false after `limit` or (unless that is what it waits in) a hurry.
  auto wait = [this](Clock::duration limit, bool heed_hurry, auto done) {
    const auto deadline = Clock::now() + limit;
    while (!done()) {
      if (Clock::now() >= deadline || (heed_hurry && hurry_)) return false;
      std::this_thread::sleep_for(milliseconds(10));
    }
    return true;
  };
  auto empty = [this] { return env_.running_turns == 0 && core_.RunningCalls() == 0; };

  phase(1, "health says NOT_SERVING");
  health_->StopServing();
  if (start == DrainStart::kPreStop) {
    phase(2, "still serving for drain.pre_stop_delay");
    wait(milliseconds(env_.config.drain.pre_stop_delay_ms), true, [] { return false; });
  }
  phase(3, "refusing new work");
  core_.StartDrain();
  phase(4, "waiting for running turns, at most drain.timeout");
  if (!wait(milliseconds(env_.config.drain.timeout_ms), true, empty)) {
    phase(5, "ending running turns by their commit rule");
    core_.PreemptAll();
    // A turn that was just being admitted is preempted by the next round.
    const auto deadline = Clock::now() + kPreemptTimeout;
    while (!wait(milliseconds(200), false, empty) && Clock::now() < deadline) core_.PreemptAll();
  }
  phase(6, "closing connections");
  server_->Shutdown(std::chrono::system_clock::now() + kCloseTimeout);
  server_->Wait();
}

RpcServer::~RpcServer() {
  if (server_ == nullptr) return;
  health_->StopServing();
  // Cancels every call; their workers see it, and the pools' destructors wait for them.
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
  http_.reset();  // it asks health_
  health_.reset();
}

}  // namespace mneme::server
