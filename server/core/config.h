// Every setting of the server. How it is read: server/config/config_loader.h.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace mneme::server {

// One checkpoint to load, written NAME=PATH or NAME=PATH,device=N,...; NAME becomes models/NAME.
struct ModelConfig {
  std::string name;
  std::string path;
  std::vector<int> devices = {0};  // which of the backend's: one copy on each
};

// A GPU if there is one, the processors otherwise.
inline constexpr char kAutoBackend[] = "auto";

struct Config {
  std::vector<ModelConfig> models;

  struct Engine {
    std::string backend = kAutoBackend;  // or one of engine::BackendNames()
    std::string contract = "int8";       // int8 | f32
    std::string kv_dtype = "f16";        // f16 | f32
    std::string simd_target;             // "" = best
    int threads = 0;                     // 0 = processors that this process may use
    std::string overflow = "slide";      // slide | error
    int64_t window_tokens = 0;           // 0 = the model's trained context
    int64_t sink_tokens = 4;
  } engine;

  struct Listen {
    std::string address = "127.0.0.1:7447";          // port 0: any free one, printed at start
    std::string metrics_address = "127.0.0.1:7448";  // "" = off
    bool insecure = false;                           // allow other than loopback without TLS
    struct Tls {
      std::string cert, key;             // PEM files; "" = no TLS
      std::string client_ca;             // "" = clients show no certificates
      bool require_client_cert = false;  // refuse connections of clients that show none
    } tls;
  } listen;

  struct Auth {
    std::string keys_file;  // who may call; "" = everybody, as tenant "default"
  } auth;

  struct Store {
    std::string kind = "rocksdb";  // rocksdb | postgres | memory
    // Directory of rocksdb, URI of postgres; "" until LoadConfig has found the default.
    std::string path;
    struct Postgres {
      int64_t pool_size = 16;
      int64_t statement_timeout_ms = 30000;
      int64_t synchronous_standbys = 0;
    } postgres;
  } store;

  struct Limits {
    int64_t max_request_bytes = 16 << 20;
    int64_t max_input_tokens = 1 << 20;
    int64_t max_output_tokens = 65536;
    int64_t max_running_streams = 256;  // on each device
    int64_t max_queued_requests = 512;
    int64_t state_memory_bytes = 0;      // of each device; 0 = half of its memory
    int64_t prefix_memory_percent = 10;  // of state_memory_bytes; 0 = no prefixes are kept
    int64_t prefill_chunk_tokens = 256;  // of one sequence in one step
    int64_t max_step_tokens = 512;
    int64_t slow_client_timeout_ms = 30000;
    int64_t max_unsent_tokens = 1024;
  } limits;

  // Defaults of requests: by field of v1.Sampling, then by the model's name, "" for every model.
  using Sampling = std::map<std::string, std::map<std::string, double>>;
  Sampling sampling;

  struct Sessions {
    int64_t undelete_window_ms = 24LL * 3600 * 1000;  // 0 = purge at once
    int64_t sweep_interval_ms = 1000;
    int64_t ingest_commit_interval_ms = 10000;
  } sessions;

  struct Generations {
    int64_t keep_ms = 10 * 60 * 1000;  // output, after the end
    int64_t keep_bytes = 64LL << 20;   // of each tenant
  } generations;

  // Among the servers of one store; of no effect where one server owns it.
  struct Replica {
    std::string name;  // for people and x-served-by; "" until LoadConfig has found the host's name
    int64_t lease_ttl_ms = 15000;
    int64_t lease_renew_ms = 5000;
  } replica;

  struct Drain {
    int64_t pre_stop_delay_ms = 5000;
    int64_t timeout_ms = 20000;
  } drain;

  std::string log_level = "info";  // trace | debug | info | warn | error

  // How many devices the models are on.
  int64_t num_devices() const {
    std::set<int> devices;
    for (const ModelConfig& model : models) {
      devices.insert(model.devices.begin(), model.devices.end());
    }
    return static_cast<int64_t>(devices.size());
  }
};

}  // namespace mneme::server
