// What every RPC adapter shares.
#pragma once

#include <prometheus/family.h>
#include <prometheus/histogram.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>

#include "server/core/config.h"
#include "server/core/server_core.h"
#include "server/core/worker_pool.h"
#include "server/rpc/gate.h"

namespace mneme::server {

struct RpcEnvironment {
  ServerCore& core;
  const Config config;
  // Who may call.
  Gate& gate;
  // This replica, in the trailer x-served-by.
  const std::string served_by;
  // mneme_rpc_server_duration_seconds{method,code}
  prometheus::Family<prometheus::Histogram>& duration_seconds;
  // Turns, ingests and everything else that may compute: each may hold its thread for long.
  WorkerPool& turns;
  // Short calls: they must get through however many turns run or wait.
  WorkerPool& lookups;
  // Calls in `turns` that have not been answered yet.
  std::atomic<int64_t> running_turns{0};
};

}  // namespace mneme::server
