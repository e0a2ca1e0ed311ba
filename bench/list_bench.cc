// What lists and starts cost with few sessions and with many: a page of ListSessions, and a start
// on a store that has them.
//
// Without the transport, so that it is the store's cost that shows. Sessions are forks of ones that
// have had a turn, each with a snapshot. 20,000 of them, made and listed, take ten seconds.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/engine.h"
#include "memstore/state_store.h"
#include "server/core/server_core.h"

namespace mneme::server {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kChildren = 64;  // of one fork

struct Flags {
  std::string model = "tests/golden/tiny/tiny-llama-q.gguf";
  std::string store;
  std::vector<int> sessions = {200, 20000};
  int page_size = 50;
  int pages = 400;
};

double MillisecondsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

double Quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1))];
}

struct Started {
  std::unique_ptr<ServerCore> core;
  double store_ms = 0;  // to open it
  double core_ms = 0;   // all the rest, the model included
};

absl::StatusOr<Started> Start(const Flags& flags) {
  Config config;
  config.models = {{"m", flags.model}};
  config.engine.threads = 1;
  config.replica.name = "bench";
  Started started;
  const auto start = Clock::now();
  MNEME_ASSIGN_OR_RETURN(auto store, memstore::IsPostgresUri(flags.store)
                                         ? memstore::OpenPostgresStore({.uri = flags.store})
                                         : memstore::OpenRocksDbStore({.path = flags.store}));
  started.store_ms = MillisecondsSince(start);
  const auto opened = Clock::now();
  MNEME_ASSIGN_OR_RETURN(started.core, ServerCore::Create(config, std::move(store)));
  started.core_ms = MillisecondsSince(opened);
  return started;
}

class NoSink : public TurnSink {
 public:
  bool Send(v1::GenerateResponse) override { return true; }
};

// From `have` sessions to `want`, or a few more.
absl::Status Fill(ServerCore& core, int have, int want) {
  for (int made = have; made < want; made += 1 + kChildren) {
    CallContext context;
    v1::CreateSessionRequest create;
    create.set_session_id(absl::StrCat("parent-", made));
    MNEME_RETURN_IF_ERROR(core.CreateSession(context, create).status());
    v1::GenerateRequest turn;
    turn.set_session(create.session_id());
    turn.set_text("Once upon a time");
    turn.set_max_output_tokens(4);
    NoSink sink;
    MNEME_RETURN_IF_ERROR(core.Generate(context, turn, sink));
    v1::ForkSessionRequest fork;
    fork.set_name(create.session_id());
    fork.set_count(kChildren);
    MNEME_RETURN_IF_ERROR(core.ForkSession(context, fork).status());
  }
  return absl::OkStatus();
}

// Milliseconds of each page, through all sessions and again from the beginning.
absl::StatusOr<std::vector<double>> ListPages(const Flags& flags, ServerCore& core) {
  std::vector<double> pages;
  CallContext context;
  v1::ListSessionsRequest request;
  request.set_page_size(flags.page_size);
  while (static_cast<int>(pages.size()) < flags.pages) {
    const auto start = Clock::now();
    MNEME_ASSIGN_OR_RETURN(const auto page, core.ListSessions(context, request));
    pages.push_back(MillisecondsSince(start));
    request.set_page_token(page.next_page_token());
  }
  return pages;
}

absl::Status Run(const Flags& flags) {
  std::printf(
      "%s\n%s, pages of %d\n\nsessions   filled in   page p50      p99   "
      "start: store     rest\n",
      engine::DescribeMachine().c_str(),
      memstore::IsPostgresUri(flags.store) ? "PostgreSQL" : "RocksDB", flags.page_size);
  int have = 0;
  for (const int want : flags.sessions) {
    const auto start = Clock::now();
    {
      MNEME_ASSIGN_OR_RETURN(const Started started, Start(flags));
      MNEME_RETURN_IF_ERROR(Fill(*started.core, have, want));
    }
    const double fill_s = MillisecondsSince(start) / 1e3;
    have = want;
    MNEME_ASSIGN_OR_RETURN(const Started again, Start(flags));
    MNEME_ASSIGN_OR_RETURN(const std::vector<double> pages, ListPages(flags, *again.core));
    const auto stored =
        static_cast<int>(again.core->metrics().sessions_stored(Metrics::Stored::kActive).Value());
    std::printf("%8d   %7.1f s   %5.2f ms %5.2f ms   %9.1f ms %5.1f ms\n", stored, fill_s,
                Quantile(pages, 0.5), Quantile(pages, 0.99), again.store_ms, again.core_ms);
    std::fflush(stdout);
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app{"What lists and starts cost with few sessions and with many."};
  app.add_option("--model", flags.model, "a small one")->capture_default_str();
  app.add_option("--store", flags.store,
                 "an empty directory of RocksDB, or the URI of an empty PostgreSQL database")
      ->required();
  app.add_option("--sessions", flags.sessions, "numbers of sessions, ascending")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--page", flags.page_size)->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--pages", flags.pages)->check(CLI::PositiveNumber)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = Run(flags);
  if (status.ok()) return 0;
  std::cerr << "list_bench: " << status.message() << "\n";
  return 1;
}

}  // namespace
}  // namespace mneme::server

int main(int argc, char** argv) { return mneme::server::Main(argc, argv); }
