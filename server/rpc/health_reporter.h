// Keeps the standard health service true: store probes while serving, NOT_SERVING while draining.
//
// Names: "" (the process), mneme.v1.Sessions, mneme.v1.Generation, models/{m}.
#pragma once

#include <grpcpp/health_check_service_interface.h>

#include <chrono>
#include <memory>
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

 private:
  // Shared with a probe that may hang in a broken store.
  struct Probe {
    Mutex mutex;
    bool running ABSL_GUARDED_BY(mutex) = false;
    std::chrono::steady_clock::time_point last_good ABSL_GUARDED_BY(mutex) =
        std::chrono::steady_clock::now();
  };

  void Watch();

  grpc::HealthCheckServiceInterface* const health_;
  ServerCore& core_;
  WorkerPool& pool_;
  const Options options_;
  const std::shared_ptr<Probe> probe_ = std::make_shared<Probe>();

  Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool store_lost_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread watcher_;
};

}  // namespace mneme::server
