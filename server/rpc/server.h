// The gRPC server around a ServerCore: services, health, reflection, limits, metrics, drain.
//
//   auto server = RpcServer::Start(config, core);   // port 0: any free one
//   ... (*server)->port() ...
//   (*server)->Drain(RpcServer::DrainStart::kPreStop);
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/server.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "server/core/config.h"
#include "server/core/server_core.h"
#include "server/core/worker_pool.h"
#include "server/rpc/admin_service.h"
#include "server/rpc/gate.h"
#include "server/rpc/generation_service.h"
#include "server/rpc/health_reporter.h"
#include "server/rpc/http_listener.h"
#include "server/rpc/models_service.h"
#include "server/rpc/rpc_environment.h"
#include "server/rpc/sessions_service.h"
#include "server/rpc/tls_credentials.h"

namespace mneme::server {

class RpcServer {
 public:
  // Probes the store, then listens: whoever reaches the server finds it ready (the core's models
  // are warm). `core` must outlive it. ALREADY_EXISTS if an address cannot be listened on (in use,
  // most often); UNAVAILABLE if the store does not answer; INVALID_ARGUMENT from CheckFiles.
  // `on_drain` is DrainServer's: it makes the owner call Drain.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(
      const Config& config, ServerCore& core, HealthReporter::Options health = {},
      AdminService::OnDrain on_drain = [](bool) {});
  // Reads the files that say who may connect, and forgets them: INVALID_ARGUMENT, naming setting
  // and file, if the server could not start with them.
  static absl::Status CheckFiles(const Config& config);
  // Reads them again, for calls from now on; calls that run are left alone. All or nothing: after
  // an error everything is as it was. From any thread.
  absl::Status Reload();
  // Cancels what still runs and waits for it. Drain first to be polite.
  ~RpcServer();

  int port() const { return port_; }
  // What listens, with the real port: "127.0.0.1:41234".
  const std::string& address() const { return address_; }
  // The same of /metrics, /healthz and /readyz; "" if off.
  const std::string& metrics_address() const { return metrics_address_; }

  enum class DrainStart {
    kPreStop,     // keep serving for drain.pre_stop_delay first, so that balancers notice
    kRefuseWork,  // at once
  };
  // Blocks until no call is left; afterwards the store may be closed. Phases (also the gauge
  // mneme_drain_phase): 1 NOT_SERVING, 2 serve for pre_stop_delay, 3 refuse new work, 4 let turns
  // run for drain.timeout, 5 end them by their commit rule, 6 close the connections. After phase 2
  // it leaves as soon as no turn runs.
  void Drain(DrainStart start);
  // From any thread: Drain goes to phase 5.
  void HurryDrain() { hurry_ = true; }

 private:
  // What is read from files, at the start and again.
  struct Files {
    std::shared_ptr<const Keyring> keyring;  // null without auth.keys_file
    std::optional<TlsFiles> tls;             // none without listen.tls.cert
  };
  static absl::StatusOr<Files> ReadFiles(const Config& config);

  RpcServer(const Config& config, ServerCore& core, Files files, AdminService::OnDrain on_drain);
  absl::Status Listen(HealthReporter::Options health);
  absl::Status ListenForHttp();

  ServerCore& core_;
  Gate gate_;
  RpcEnvironment env_;  // before the pools: their last tasks still use it while they join
  WorkerPool turns_;
  WorkerPool lookups_;
  SessionsService sessions_;
  GenerationService generation_;
  ModelsService models_;
  AdminService admin_;
  std::unique_ptr<TlsCredentials> tls_;  // null: plain text
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<HealthReporter> health_;
  std::unique_ptr<HttpListener> http_;
  int port_ = 0;
  std::string address_;
  std::string metrics_address_;
  std::atomic<bool> hurry_ = false;
};

}  // namespace mneme::server
