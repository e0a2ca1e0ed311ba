#include "server/rpc/health_reporter.h"

#include <spdlog/spdlog.h>

#include <string>
#include <vector>

#include "server/core/errors.h"

namespace mneme::server {
namespace {

constexpr char kSessions[] = "mneme.v1.Sessions";
constexpr char kGeneration[] = "mneme.v1.Generation";

bool NoModelIsLeft(const std::vector<DeviceFault>& faults, const ServerCore& core) {
  size_t lost = 0;
  for (const DeviceFault& fault : faults) lost += fault.models.size();
  return lost > 0 && lost == core.ModelNames().size();
}

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
  {
    MutexLock lock(&mutex_);
    if (stopping_) return "draining";
    if (store_lost_) return "the store does not answer";
  }
  // With some of the models a server still answers who is there, but others are the better place.
  const std::vector<DeviceFault> faults = core_.DeviceFaults();
  return faults.empty() ? "" : faults.front().message;
}

std::string HealthReporter::WhyNotAlive() {
  const std::vector<DeviceFault> faults = core_.DeviceFaults();
  return NoModelIsLeft(faults, core_) ? faults.front().message : "";
}

void HealthReporter::LookAtDevices() {
  const std::vector<DeviceFault> faults = core_.DeviceFaults();
  for (const DeviceFault& fault : faults) {
    if (lost_devices_.insert(fault.device).second) {
      spdlog::error("health: {} is lost; restart the server: {}", fault.device, fault.message);
    }
    for (const std::string& model : fault.models) {
      if (!lost_models_.insert(model).second) continue;
      health_->SetServingStatus(model, false);
      spdlog::error("health: {} is not served any more: it has no device left", model);
    }
  }
  if (all_lost_ || !NoModelIsLeft(faults, core_)) return;
  all_lost_ = true;
  for (const char* name : {kSessions, kGeneration, ""}) health_->SetServingStatus(name, false);
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
      health_->SetServingStatus(kSessions, !lost && !all_lost_);
      spdlog::warn("health: the store {}", lost ? "is lost; sessions are not served" : "is back");
    }
    LookAtDevices();
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
