// mneme-server: reads its configuration, wires store, core and RPC, reloads and drains on signals.
//
// Standard output carries a few stable lines for people and scripts ("listening on 127.0.0.1:7447"
// when it is ready); the log goes to standard error.
#include <signal.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/core/thread_pool.h"
#include "engine/engine.h"
#include "memstore/state_store.h"
#include "server/config/config_loader.h"
#include "server/core/server_core.h"
#include "server/json_log.h"
#include "server/rpc/server.h"

namespace mneme::server {
namespace {

// Prints for people, whatever the log level.
int Fail(ExitCode code, const absl::Status& status) {
  std::cerr << "mneme-server: " << std::string(status.message()) << std::endl;
  return code;
}

absl::StatusOr<std::unique_ptr<memstore::StateStore>> OpenStore(const Config::Store& store) {
  if (store.kind == "memory") return memstore::CreateMemoryStore();
  if (store.kind == "postgres") {
    return memstore::OpenPostgresStore(
        {.uri = store.path,
         .max_connections = static_cast<int>(store.postgres.pool_size),
         .statement_timeout = absl::Milliseconds(store.postgres.statement_timeout_ms),
         .synchronous_standbys = static_cast<int>(store.postgres.synchronous_standbys)});
  }
  return memstore::OpenRocksDbStore({.path = store.path});
}

// What the configuration is made of.
struct Inputs {
  std::vector<std::string> arguments, environment;
};

// Models and store fail in the same call; the store's failures have codes of their own.
ExitCode ExitCodeOfCore(const absl::Status& status) {
  const std::string why = ReasonOf(status);
  if (why == reason::kStoreUnavailable || why == reason::kStoreFull ||
      why == reason::kStoreNotDurable || status.code() == absl::StatusCode::kUnavailable ||
      status.code() == absl::StatusCode::kDataLoss) {
    return kExitStore;
  }
  return kExitModel;
}

ExitCode ExitCodeOfRpc(const absl::Status& status) {
  if (status.code() == absl::StatusCode::kAlreadyExists) return kExitPortInUse;
  if (status.code() == absl::StatusCode::kUnavailable) return kExitStore;
  if (status.code() == absl::StatusCode::kInvalidArgument) return kExitUsage;
  return kExitFailure;
}

void PrintModels(ServerCore& core) {
  CallContext context;
  auto models = core.ListModels(context, {});
  if (!models.ok()) return;
  for (const v1::Model& model : models->models()) {
    std::cout << absl::StrFormat(
        "%s: %s, %.1f M parameters, %s weights %.1f MiB, state %.2f MiB per session (%s), on %s\n",
        model.name(), model.architecture(), static_cast<double>(model.parameters()) / 1e6,
        model.weight_type(), static_cast<double>(model.weight_bytes()) / (1 << 20),
        static_cast<double>(model.state_bytes()) / (1 << 20), model.state_formula(),
        model.device());
    if (!model.has_chat_template()) {
      std::cout << "  takes no messages: " << model.chat_template_problem() << "\n";
    }
  }
}

// Where the sessions are, how many, and what computes.
void PrintPlaces(const Config& config, ServerCore& core) {
  Metrics& metrics = core.metrics();
  const auto count = [&](Metrics::Stored state) {
    return static_cast<int64_t>(metrics.sessions_stored(state).Value());
  };
  const std::string place = config.store.kind == "memory" ? "memory alone"
                            : config.store.kind == "postgres"
                                ? memstore::MaskPostgresUri(config.store.path)
                                : std::filesystem::absolute(config.store.path).string();
  const int threads =
      config.engine.threads > 0 ? config.engine.threads : engine::AvailableProcessors();
  std::cout << absl::StrFormat("backend: %s\nthreads: %d, models: %d\n", core.DeviceDescription(),
                               threads, core.ModelNames().size());
  std::cout << absl::StrFormat("sessions: %d, damaged: %d, deleted: %d, kept in %s\n",
                               count(Metrics::Stored::kActive), count(Metrics::Stored::kDamaged),
                               count(Metrics::Stored::kDeleted), place);
}

// What SIGHUP does. What the server cannot take over while it runs is named, so that nobody thinks
// that it holds.
void Reload(RpcServer& server, const Config& running, const Inputs& inputs) {
  absl::StatusOr<LoadedConfig> loaded = LoadConfig(inputs.arguments, inputs.environment);
  absl::Status status = loaded.status();
  if (status.ok()) status = server.Reload();
  if (!status.ok()) {
    spdlog::error("reload refused, everything stays as it is: {}", std::string(status.message()));
    return;
  }
  SetLogLevel(loaded->config.log_level);
  const std::vector<std::string> changed = SettingsThatNeedRestart(running, loaded->config);
  spdlog::info("reloaded: keys, TLS files, log_level; {}",
               changed.empty() ? "no other setting has changed"
                               : "a restart is needed for " + absl::StrJoin(changed, ", "));
}

// Waits for SIGTERM or SIGINT, drains, and lets a second signal hurry the drain.
void ServeUntilSignal(RpcServer& server, const Config& running, const Inputs& inputs,
                      const sigset_t& signals) {
  const bool from_terminal = isatty(STDIN_FILENO) == 1;
  int signal = 0;
  while (sigwait(&signals, &signal) == 0 && signal == SIGHUP) {
    // A window that closes takes what was started in it along; it sends the same signal.
    if (from_terminal && isatty(STDIN_FILENO) == 0) break;
    Reload(server, running, inputs);
  }
  spdlog::info("signal {}: draining; a second one ends running turns", strsignal(signal));
  std::atomic<bool> drained = false;
  std::thread second([&] {
    const timespec poll{.tv_sec = 0, .tv_nsec = 50'000'000};
    while (!drained) {
      const int next = sigtimedwait(&signals, nullptr, &poll);
      if (next > 0 && next != SIGHUP) server.HurryDrain();
    }
  });
  server.Drain(signal == SIGTERM ? RpcServer::DrainStart::kPreStop
                                 : RpcServer::DrainStart::kRefuseWork);
  drained = true;
  second.join();
}

int Run(const Inputs& inputs) {
  absl::StatusOr<LoadedConfig> loaded = LoadConfig(inputs.arguments, inputs.environment);
  if (!loaded.ok()) return Fail(kExitUsage, loaded.status());
  if (loaded->print_and_exit) {
    std::cout << loaded->output << std::flush;
    return kExitOk;
  }
  const Config& config = loaded->config;
  InitJsonLog(config.log_level);
  for (const std::string& warning : loaded->warnings) spdlog::warn("{}", warning);
  // Models take their time: what is wrong with these is said before.
  if (absl::Status files = RpcServer::CheckFiles(config); !files.ok()) {
    return Fail(kExitUsage, files);
  }

  // Blocked here, before any thread exists, so that only sigwait sees them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);

  std::cout << engine::DescribeMachine() << std::endl;
  auto store = OpenStore(config.store);
  if (!store.ok()) {
    return Fail(absl::IsInvalidArgument(store.status()) ? kExitUsage : kExitStore, store.status());
  }
  auto core = ServerCore::Create(config, *std::move(store));
  if (!core.ok()) return Fail(ExitCodeOfCore(core.status()), core.status());
  PrintModels(**core);
  PrintPlaces(config, **core);
  // DrainServer is a signal that comes by gRPC: everything else about it is the same.
  auto server = RpcServer::Start(config, **core, {},
                                 [](bool at_once) { kill(getpid(), at_once ? SIGINT : SIGTERM); });
  if (!server.ok()) return Fail(ExitCodeOfRpc(server.status()), server.status());
  if (!(*server)->metrics_address().empty()) {
    std::cout << "metrics on http://" << (*server)->metrics_address()
              << "/metrics, probes on /healthz and /readyz\n";
  }
  std::cout << "listening on " << (*server)->address() << std::endl;

  ServeUntilSignal(**server, config, inputs, signals);
  server->reset();
  core->reset();  // closes the store
  spdlog::info("drained; the store is closed");
  return kExitOk;
}

}  // namespace
}  // namespace mneme::server

int main(int argc, char** argv) {
  mneme::server::Inputs inputs{.arguments = {argv + 1, argv + argc}, .environment = {}};
  for (char** entry = environ; *entry != nullptr; ++entry) inputs.environment.emplace_back(*entry);
  return mneme::server::Run(inputs);
}
