#include "server/rpc/health_reporter.h"

#include <spdlog/spdlog.h>

#include <string>

#include "server/core/errors.h"

namespace mneme::server {
namespace {

constexpr char kSessions[] = "mneme.v1.Sessions";
constexpr char kGeneration[] = "mneme.v1.Generation";

}  // namespace

HealthReporter::HealthReporter(grpc::HealthCheckServiceInterface* health, ServerCore& core,
                               WorkerPool& pool, Options options)
    : health_(health), core_(core), pool_(pool), options_(options) {
  for (const std::string& model : core.ModelNames()) health_->SetServingStatus(model, true);
  health_->SetServingStatus(kSessions, true);
  health_->SetServingStatus(kGeneration, true);
  health_->SetServingStatus("", true);
  watcher_ = std::thread([this] { Watch(); });
}

HealthReporter::~HealthReporter() {
  StopServing();
  watcher_.join();
}

void HealthReporter::StopServing() {
  MutexLock lock(&mutex_);
  if (stopping_) return;
  stopping_ = true;
  health_->Shutdown();  // all names, and no change after it
  changed_.NotifyAll();
}

std::string HealthReporter::WhyNotReady() {
  MutexLock lock(&mutex_);
  return stopping_ ? "draining" : store_lost_ ? "the store does not answer" : "";
}

void HealthReporter::Watch() {
  MutexLock lock(&mutex_);
  while (!stopping_) {
    const auto now = std::chrono::steady_clock::now();
    bool lost = false;
    bool start = false;
    {
      MutexLock probe_lock(&probe_->mutex);
      lost = now - probe_->last_good > options_.store_lost_after;
      start = !probe_->running;
      probe_->running = true;
    }
    if (lost != store_lost_) {
      store_lost_ = lost;
      health_->SetServingStatus(kSessions, !lost);
      spdlog::warn("health: the store {}", lost ? "is lost; sessions are not served" : "is back");
    }
    if (start) {
      auto probe = [state = probe_, &core = core_] {
        const absl::Status status = core.CheckStore();
        MutexLock probe_lock(&state->mutex);
        state->running = false;
        if (status.ok()) state->last_good = std::chrono::steady_clock::now();
      };
      if (!pool_.Submit(std::move(probe))) {
        MutexLock probe_lock(&probe_->mutex);
        probe_->running = false;
      }
    }
    changed_.WaitUntil(&mutex_, now + options_.probe_interval);
  }
}

}  // namespace mneme::server
