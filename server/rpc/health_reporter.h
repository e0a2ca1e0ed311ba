// Keeps the standard health service true: store probes and the devices' faults while serving,
// NOT_SERVING while draining.
//
// Names: "" (the process), mneme.v1.Sessions, mneme.v1.Generation, models/{m}. A model goes with
// the last of its devices, and everything with the last model; none comes back in this process.
#pragma once

#include <grpcpp/health_check_service_interface.h>

#include <chrono>
#include <memory>
#include <set>
#include <string>
#include <thread>

#include "engine/core/mutex.h"
#include "server/core/server_core.h"
#include "server/core/worker_pool.h"

namespace mneme::server {

class HealthReporter {
 public:
  struct Options {
    std::chrono::milliseconds probe_interval{1000};
    // A store that fails for longer makes Sessions NOT_SERVING; stateless generation goes on.
    std::chrono::milliseconds store_lost_after{5000};
  };

  // Reports SERVING for everything: call it when the models are loaded and warm and the store has
  // answered. All three must outlive it; probes run on `pool`.
  HealthReporter(grpc::HealthCheckServiceInterface* health, ServerCore& core, WorkerPool& pool,
                 Options options);
  ~HealthReporter();

  // NOT_SERVING for good.
  void StopServing();

  // For /readyz: why no new work should be sent here now; "" if it should.
  std::string WhyNotReady();
  // For /healthz: why this process should be replaced; "" if it should not.
  std::string WhyNotAlive();

 private:
  // Shared with a probe that may hang in a broken store.
  struct Probe {
    Mutex mutex;
    bool running ABSL_GUARDED_BY(mutex) = false;
    std::chrono::steady_clock::time_point last_good ABSL_GUARDED_BY(mutex) =
        std::chrono::steady_clock::now();
  };

  void Watch();
  void LookAtDevices() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  grpc::HealthCheckServiceInterface* const health_;
  ServerCore& core_;
  WorkerPool& pool_;
  const Options options_;
  const std::shared_ptr<Probe> probe_ = std::make_shared<Probe>();

  Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool store_lost_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<std::string> lost_devices_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string> lost_models_ ABSL_GUARDED_BY(mutex_);
  bool all_lost_ ABSL_GUARDED_BY(mutex_) = false;  // no model is left
  std::thread watcher_;
};

}  // namespace mneme::server
