// What server and sessions cost beside the bare engine: one turn of a fresh session through the
// real gRPC server, from request to durable commit, against the same tokens from Engine::Step.
//
// Both run in this process and in turns, so that a machine that changes speed changes both, and
// both must choose the same tokens. The server's time holds the client library, the loopback, the
// RocksDB store and its fsync; not the creation of the session. Both read the last token too, so
// that they end in the same state.
#include <grpcpp/grpcpp.h>
#include <linux/magic.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "client/client.h"
#include "engine/core/status_macros.h"
#include "engine/engine.h"
#include "engine/sampler/sampler.h"
#include "memstore/state_store.h"
#include "nlohmann/json.hpp"
#include "server/core/server_core.h"
#include "server/rpc/server.h"

namespace mneme::server {
namespace {

using engine::TokenId;
using Clock = std::chrono::steady_clock;

struct Flags {
  std::string model = "models/SmolLM2-135M-Instruct.Q4_1.gguf";
  std::string directory = std::filesystem::temp_directory_path().string();
  int64_t tokens = 128;
  int64_t prompt_tokens = 64;
  int64_t window = 2048;
  int rounds = 7;
  int streams = 8;
  double temperature = 0;
  std::vector<int> threads = {1, 2};
  bool json = false;
};

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

// Of all threads of this process, the kernel's work for them included.
double ProcessCpuSeconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return t.tv_sec + t.tv_usec * 1e-6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Bytes that this process has had written to storage; 0 where the kernel does not tell.
int64_t DiskBytes() {
  std::ifstream io("/proc/self/io");
  std::string key;
  int64_t value = 0;
  while (io >> key >> value) {
    if (key == "write_bytes:") return value;
  }
  return 0;
}

struct Turn {
  double seconds = 0;
  double cpu_seconds = 0;
  std::vector<std::vector<TokenId>> outputs;  // per stream
};

// Any tokens will do, but each stream of each round needs its own: the store keeps equal chunks
// once, so a turn that was there before would commit next to nothing.
std::vector<TokenId> Prompt(const Flags& flags, int64_t vocab_size, int round, int stream) {
  std::vector<TokenId> prompt(flags.prompt_tokens);
  const int64_t first = 1000 + (round * flags.streams + stream) * 104729;
  for (int64_t t = 0; t < flags.prompt_tokens; ++t) {
    prompt[t] = static_cast<TokenId>((first + t * 7919) % vocab_size);
  }
  return prompt;
}

// ---- the engine alone

absl::StatusOr<Turn> EngineTurn(engine::Engine& engine, const Flags& flags, int round,
                                int streams) {
  const int64_t vocab_size = engine.info().vocab_size;
  std::vector<std::vector<TokenId>> prompts;
  for (int i = 0; i < streams; ++i) prompts.push_back(Prompt(flags, vocab_size, round, i));
  std::vector<float> logits(streams * vocab_size);
  Turn turn;
  turn.outputs.resize(streams);

  const double cpu = ProcessCpuSeconds();
  const auto start = Clock::now();
  std::vector<engine::State> states;
  for (int i = 0; i < streams; ++i) states.push_back(engine.CreateState());
  engine::Sampler sampler({.temperature = static_cast<float>(flags.temperature)});
  std::vector<engine::EngineSlice> slices(streams);
  for (int64_t n = 0; n <= flags.tokens; ++n) {
    for (int i = 0; i < streams; ++i) {
      slices[i] = {.state = &states[i],
                   .tokens = n == 0 ? std::span<const TokenId>(prompts[i])
                                    : std::span(&turn.outputs[i].back(), 1),
                   .num_logits = 1,
                   .logits = logits.data() + i * vocab_size};
    }
    MNEME_RETURN_IF_ERROR(engine.Step(slices));
    if (n == flags.tokens) break;
    for (int i = 0; i < streams; ++i) {
      turn.outputs[i].push_back(sampler.Sample({slices[i].logits, size_t(vocab_size)}, {}, n));
    }
  }
  turn.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  turn.cpu_seconds = ProcessCpuSeconds() - cpu;
  return turn;
}

// ---- through the server

// A directory that goes away with its content.
class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(const std::string& parent) : path_(parent + "/service-bench-XXXXXX") {
    if (mkdtemp(path_.data()) == nullptr) path_.clear();
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  const std::string& path() const { return path_; }
  bool is_on_disk() const {
    struct statfs fs;
    return statfs(path_.c_str(), &fs) == 0 && fs.f_type != TMPFS_MAGIC && fs.f_type != RAMFS_MAGIC;
  }

 private:
  std::string path_;
};

struct Service {
  std::unique_ptr<ServerCore> core;
  memstore::StateStore* store = nullptr;  // owned by core
  std::unique_ptr<RpcServer> rpc;
  std::unique_ptr<client::Client> client;
  int sessions = 0;
};

absl::StatusOr<Service> StartService(const Flags& flags, int threads, const std::string& path) {
  Config config;
  config.models = {{"m", flags.model}};
  config.engine.threads = threads;
  config.engine.window_tokens = flags.window;
  config.listen.address = "127.0.0.1:0";
  config.listen.metrics_address = "";
  config.sessions.undelete_window_ms = 0;  // what is deleted between the rounds shall be gone
  Service service;
  MNEME_ASSIGN_OR_RETURN(auto store, memstore::OpenRocksDbStore({.path = path}));
  service.store = store.get();
  MNEME_ASSIGN_OR_RETURN(service.core, ServerCore::Create(config, std::move(store)));
  MNEME_ASSIGN_OR_RETURN(service.rpc, RpcServer::Start(config, *service.core));
  MNEME_ASSIGN_OR_RETURN(client::Client client,
                         client::Client::Connect({.server = service.rpc->address()}));
  service.client = std::make_unique<client::Client>(std::move(client));
  return service;
}

v1::GenerateRequest Request(const std::string& session, const std::vector<TokenId>& prompt,
                            int64_t tokens, double temperature) {
  v1::GenerateRequest request;
  request.set_session(session);
  request.mutable_token_ids()->mutable_ids()->Add(prompt.begin(), prompt.end());
  request.set_add_bos(v1::GenerateRequest::ADD_BOS_NEVER);
  request.mutable_sampling()->set_temperature(static_cast<float>(temperature));
  request.mutable_sampling()->set_seed(0);
  request.set_ignore_eos(true);
  request.set_max_output_tokens(static_cast<int32_t>(tokens));
  return request;
}

absl::StatusOr<std::string> NewSession(Service& service) {
  const std::string id = absl::StrCat("s", service.sessions++);
  v1::CreateSessionRequest request;
  request.set_session_id(id);
  MNEME_RETURN_IF_ERROR(service.client->CreateSession(request).status());
  return id;
}

absl::StatusOr<v1::Usage> Receive(Service& service, const v1::GenerateRequest& request,
                                  std::vector<TokenId>* output) {
  MNEME_ASSIGN_OR_RETURN(auto stream, service.client->Generate(request));
  v1::GenerateResponse event;
  while (stream.Next(&event)) {
    const auto& ids = event.delta().token_ids();
    if (output != nullptr) output->insert(output->end(), ids.begin(), ids.end());
  }
  MNEME_ASSIGN_OR_RETURN(const auto final, stream.Finish());
  if (!final.committed()) return absl::InternalError("the turn was not committed");
  return final.usage();
}

// A commit comes after a turn in which neither disk nor store had anything to do.
constexpr std::chrono::milliseconds kTurnPause{300};

// The store's own durable write of as many bytes in as long chunks as a snapshot's: what a commit
// takes at least.
absl::StatusOr<double> StoreWriteMs(memstore::StateStore& store, int64_t size_bytes, int round) {
  const memstore::Key key{.realm = "bench", .name = "own"};
  memstore::Put put{.key = key};
  memstore::Transaction write;
  std::mt19937_64 random(round);
  for (int64_t at = 0; at < size_bytes; at += engine::kMaxChunkBytes) {
    std::string bytes(std::min<int64_t>(engine::kMaxChunkBytes, size_bytes - at), '\0');
    std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<char>(random()); });
    put.chunks.push_back(memstore::HashChunk(bytes));
    write.new_chunks.push_back({put.chunks.back(), std::move(bytes)});
  }
  write.puts.push_back(std::move(put));
  std::this_thread::sleep_for(kTurnPause);
  const auto start = Clock::now();
  MNEME_RETURN_IF_ERROR(store.Commit(write));
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  memstore::Transaction erase;
  erase.deletes.push_back({key, 1});
  MNEME_RETURN_IF_ERROR(store.Commit(erase));
  return seconds * 1e3;
}

struct ServerTurn : Turn {
  v1::Usage usage;  // of stream 0
  double restore_ms = 0;
  double store_ms = 0;
  int64_t chunk_bytes = 0;
  int64_t disk_bytes = 0;
};

absl::StatusOr<ServerTurn> RunServerTurn(Service& service, const Flags& flags, int64_t vocab_size,
                                         int round, int streams) {
  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < streams; ++i) {
    MNEME_ASSIGN_OR_RETURN(const std::string session, NewSession(service));
    requests.push_back(
        Request(session, Prompt(flags, vocab_size, round, i), flags.tokens, flags.temperature));
  }
  MNEME_ASSIGN_OR_RETURN(const memstore::StoreStats before, service.store->Stats());
  const int64_t disk_before = DiskBytes();
  ServerTurn turn;
  turn.outputs.resize(streams);
  std::vector<absl::StatusOr<v1::Usage>> usages(streams, absl::UnknownError("did not run"));

  const double cpu = ProcessCpuSeconds();
  const auto start = Clock::now();
  std::vector<std::thread> others;
  for (int i = 1; i < streams; ++i) {
    others.emplace_back([&, i] { usages[i] = Receive(service, requests[i], &turn.outputs[i]); });
  }
  usages[0] = Receive(service, requests[0], &turn.outputs[0]);
  for (std::thread& thread : others) thread.join();
  turn.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  turn.cpu_seconds = ProcessCpuSeconds() - cpu;

  turn.disk_bytes = DiskBytes() - disk_before;
  MNEME_ASSIGN_OR_RETURN(const memstore::StoreStats after, service.store->Stats());
  turn.chunk_bytes = after.chunk_bytes - before.chunk_bytes;
  for (const auto& usage : usages) MNEME_RETURN_IF_ERROR(usage.status());
  turn.usage = *usages[0];

  std::vector<std::string> used;
  for (const auto& request : requests) used.push_back(request.session());
  if (streams == 1) {
    // A fork is in no slot: its first turn restores the state from the store. One token suffices.
    used.push_back(absl::StrCat("s", service.sessions++));
    v1::ForkSessionRequest fork;
    fork.set_name(used[0]);
    fork.add_session_ids(used[1]);
    MNEME_RETURN_IF_ERROR(service.client->ForkSession(fork).status());
    MNEME_ASSIGN_OR_RETURN(const v1::Usage usage,
                           Receive(service, Request(used[1], {1}, 1, flags.temperature), nullptr));
    turn.restore_ms = usage.restore_ms();
    MNEME_ASSIGN_OR_RETURN(turn.store_ms, StoreWriteMs(*service.store, turn.chunk_bytes, round));
  }
  // Neither resident states nor chunks shall pile up.
  for (const std::string& session : used) {
    v1::DeleteSessionRequest erase;
    erase.set_name(session);
    MNEME_RETURN_IF_ERROR(service.client->DeleteSession(erase).status());
  }
  return turn;
}

// ---- both, in turns

struct Row {
  int threads = 0;
  int streams = 0;
  double engine_tokens_s = 0, server_tokens_s = 0;
  double overhead = 0, cpu_overhead = 0;  // medians of the rounds' own ratios
  double queue_ms = 0, prefill_ms = 0, decode_ms = 0, commit_ms = 0, store_ms = 0, restore_ms = 0;
  int64_t chunk_bytes = 0, disk_bytes = 0;
};

absl::StatusOr<Row> Measure(engine::Engine& engine, Service& service, const Flags& flags,
                            int threads, int streams) {
  std::vector<double> engine_s, server_s, overhead, cpu, queue, prefill, decode, commit, store,
      restore;
  std::vector<double> chunk_bytes, disk_bytes;
  for (int round = 0; round <= flags.rounds; ++round) {
    Turn alone;
    ServerTurn served;
    // Who goes first alternates: A B, B A, A B, ...
    for (int half = 0; half < 2; ++half) {
      if ((half + round) % 2 == 0) {
        MNEME_ASSIGN_OR_RETURN(alone, EngineTurn(engine, flags, round, streams));
      } else {
        MNEME_ASSIGN_OR_RETURN(
            served, RunServerTurn(service, flags, engine.info().vocab_size, round, streams));
      }
    }
    if (alone.outputs != served.outputs) {
      return absl::InternalError("server and engine chose different tokens");
    }
    if (round == 0) continue;  // warm-up
    engine_s.push_back(alone.seconds);
    server_s.push_back(served.seconds);
    overhead.push_back(served.seconds / alone.seconds - 1);
    cpu.push_back(served.cpu_seconds / alone.cpu_seconds - 1);
    queue.push_back(served.usage.queue_ms());
    prefill.push_back(served.usage.prefill_ms());
    decode.push_back(served.usage.decode_ms());
    commit.push_back(served.usage.commit_ms());
    store.push_back(served.store_ms);
    restore.push_back(served.restore_ms);
    chunk_bytes.push_back(static_cast<double>(served.chunk_bytes));
    disk_bytes.push_back(static_cast<double>(served.disk_bytes));
  }
  const double tokens = static_cast<double>(flags.tokens * streams);
  return Row{.threads = threads,
             .streams = streams,
             .engine_tokens_s = tokens / Median(engine_s),
             .server_tokens_s = tokens / Median(server_s),
             .overhead = Median(overhead),
             .cpu_overhead = Median(cpu),
             .queue_ms = Median(queue),
             .prefill_ms = Median(prefill),
             .decode_ms = Median(decode),
             .commit_ms = Median(commit),
             .store_ms = Median(store),
             .restore_ms = Median(restore),
             .chunk_bytes = static_cast<int64_t>(Median(chunk_bytes)),
             .disk_bytes = static_cast<int64_t>(Median(disk_bytes))};
}

absl::Status MeasureThreads(const Flags& flags, int threads, std::vector<Row>& rows) {
  const TemporaryDirectory directory(flags.directory);
  if (directory.path().empty()) {
    return absl::InvalidArgumentError(absl::StrCat("cannot make a directory in ", flags.directory));
  }
  if (!directory.is_on_disk()) {
    return absl::InvalidArgumentError(
        absl::StrCat(flags.directory, " is in memory: a commit there proves nothing; use --dir"));
  }
  // The server's choices, except for what both are told.
  engine::EngineOptions options{.checkpoint_path = flags.model};
  options.num_threads = threads;
  options.arch.window_tokens = flags.window;
  MNEME_ASSIGN_OR_RETURN(auto engine, engine::Engine::Load(options));
  MNEME_ASSIGN_OR_RETURN(Service service, StartService(flags, threads, directory.path()));
  for (const int streams : {1, flags.streams}) {
    if (streams < 1 || (streams == 1 && !rows.empty() && rows.back().threads == threads)) continue;
    MNEME_ASSIGN_OR_RETURN(const Row row, Measure(*engine, service, flags, threads, streams));
    rows.push_back(row);
  }
  service.rpc->Drain(RpcServer::DrainStart::kRefuseWork);
  return absl::OkStatus();
}

nlohmann::json ToJson(const Flags& flags, const std::vector<Row>& rows) {
  nlohmann::json json = {{"model", flags.model},           {"machine", engine::DescribeMachine()},
                         {"tokens", flags.tokens},         {"prompt_tokens", flags.prompt_tokens},
                         {"window", flags.window},         {"rounds", flags.rounds},
                         {"rows", nlohmann::json::array()}};
  for (const Row& row : rows) {
    json["rows"].push_back({{"threads", row.threads},
                            {"streams", row.streams},
                            {"engine_tokens_s", row.engine_tokens_s},
                            {"server_tokens_s", row.server_tokens_s},
                            {"overhead", row.overhead},
                            {"cpu_overhead", row.cpu_overhead},
                            {"queue_ms", row.queue_ms},
                            {"prefill_ms", row.prefill_ms},
                            {"decode_ms", row.decode_ms},
                            {"commit_ms", row.commit_ms},
                            {"store_ms", row.store_ms},
                            {"restore_ms", row.restore_ms},
                            {"chunk_bytes", row.chunk_bytes},
                            {"disk_bytes", row.disk_bytes}});
  }
  return json;
}

void PrintTable(const Flags& flags, const std::vector<Row>& rows) {
  double load[3] = {0, 0, 0};
  if (getloadavg(load, 3) < 1) load[0] = -1;
  std::printf("%s; load %.1f\n%s, window %lld; a turn: %lld prompt tokens, %lld tokens\n\n",
              engine::DescribeMachine().c_str(), load[0], flags.model.c_str(),
              static_cast<long long>(flags.window), static_cast<long long>(flags.prompt_tokens),
              static_cast<long long>(flags.tokens));
  std::printf(
      "                  engine     server   overhead         the first stream's ms"
      "                                bytes of all\n"
      "threads streams   tokens/s   tokens/s   time    cpu   prefill   decode  commit   store  "
      "restore"
      "   chunks MB  disk MB\n");
  for (const Row& row : rows) {
    std::printf(
        "%7d %7d   %8.1f   %8.1f %5.1f %% %5.1f %%  %7.1f  %7.1f %7.1f %7.1f  %7.1f  %9.2f  "
        "%7.2f\n",
        row.threads, row.streams, row.engine_tokens_s, row.server_tokens_s, 100 * row.overhead,
        100 * row.cpu_overhead, row.prefill_ms, row.decode_ms, row.commit_ms, row.store_ms,
        row.restore_ms, row.chunk_bytes / 1e6, row.disk_bytes / 1e6);
  }
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app{
      "What server and sessions cost beside the bare engine.\n\n"
      "tokens/s  generated tokens by the time of the whole turn: prompt, tokens and, of the\n"
      "          server, the durable commit\n"
      "overhead  server against engine, of the time and of this process's CPU time (client\n"
      "          included); medians of the ratios of neighbouring runs\n"
      "store     the same bytes written by the store alone, as durably\n"
      "restore   of the state from the store, into another session"};
  app.add_option("--model", flags.model, "GGUF file or safetensors folder")->capture_default_str();
  app.add_option("--dir", flags.directory, "where the store is made, on a real disk")
      ->capture_default_str();
  app.add_option("--tokens", flags.tokens, "to generate in a turn")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--prompt-tokens", flags.prompt_tokens)
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--rounds", flags.rounds)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--threads", flags.threads, "numbers of engine threads")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--streams", flags.streams, "concurrent sessions of the second rows; 1: no such")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--window", flags.window, "0: the trained context")->capture_default_str();
  app.add_option("--temperature", flags.temperature, "of both samplers")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_flag("--json", flags.json, "one JSON object instead of a table");
  CLI11_PARSE(app, argc, argv);
  spdlog::set_level(spdlog::level::warn);

  std::vector<Row> rows;
  for (const int threads : flags.threads) {
    if (absl::Status status = MeasureThreads(flags, threads, rows); !status.ok()) {
      std::cerr << status << "\n";
      return 1;
    }
  }
  if (flags.json) {
    std::cout << ToJson(flags, rows).dump(2) << "\n";
  } else {
    PrintTable(flags, rows);
  }
  return 0;
}

}  // namespace
}  // namespace mneme::server

int main(int argc, char** argv) { return mneme::server::Main(argc, argv); }
