// kill -9 at random moments under load: what was acknowledged is there, and it is right bit for
// bit.
//
// Worker threads run random turns, ingests, forks and rewinds on sessions of their own and remember
// what the server acknowledged. Meanwhile the main thread kills the server with SIGKILL and starts
// it again. After each start a worker compares every session of its own with what it remembers: a
// session is at the acknowledged version, or, if the connection broke under a call, exactly that
// call further. At the end every session must continue like a stateless request over its whole
// history: the same tokens and the same log-probabilities, without a token recomputed.
//
// With several servers they share a PostgreSQL database; those whose server was killed go on at
// another one at once, which takes the sessions over when their leases end.
//
//   e2e_kill_test --kills 200 --seed 7
//   e2e_kill_test --kills 200 --servers 2
#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <sstream>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/client.h"
#include "tests/support/postgres_server.h"
#include "tests/support/server_process.h"

namespace mneme::test {
namespace {

constexpr int kWorkers = 8;
constexpr size_t kMaxHistory = 1200;  // tokens; then a session goes back, to keep checks short
constexpr size_t kMaxForks = 3;       // of one worker
constexpr absl::Duration kLease = absl::Seconds(2);
int kills = 12;
int num_servers = 1;
uint64_t seed = 20260101;

struct Counts {
  std::atomic<int64_t> acknowledged = 0;  // calls
  std::atomic<int64_t> kept = 0;          // broke, had been committed
  std::atomic<int64_t> lost = 0;          // broke, left no trace
  std::atomic<int64_t> waited = 0;        // for the lease of a killed server
};

// Where living servers are. Workers whose server was killed wait here while there is none.
class Place {
 public:
  explicit Place(int servers) : servers_(servers) {}

  void Up(int server, std::string address) {
    std::lock_guard lock(mutex_);
    servers_[server].address = std::move(address);
    ++servers_[server].life;
    changed_.notify_all();
  }
  void Down(int server) {
    std::lock_guard lock(mutex_);
    servers_[server].address.clear();
    changed_.notify_all();
  }
  void Stop() {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }
  bool stopped() const {
    std::lock_guard lock(mutex_);
    return stopped_;
  }
  // One life of a server.
  struct Life {
    int server = -1;
    int life = 0;
    std::string address;
  };
  // A living server, once `mine` has ended; nothing if it has not by Stop.
  std::optional<Life> Next(const Life& mine, std::mt19937_64& random) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return stopped_ || (Ended(mine) && !Living().empty()); });
    if (!Ended(mine)) return std::nullopt;
    const std::vector<int> living = Living();
    const int server = living[random() % living.size()];
    return Life{server, servers_[server].life, servers_[server].address};
  }

 private:
  struct Server {
    std::string address;  // "" while it is down
    int life = 0;
  };
  bool Ended(const Life& life) const {
    return life.server < 0 || servers_[life.server].life != life.life ||
           servers_[life.server].address.empty();
  }
  std::vector<int> Living() const {
    std::vector<int> living;
    for (int i = 0; i < static_cast<int>(servers_.size()); ++i) {
      if (!servers_[i].address.empty()) living.push_back(i);
    }
    return living;
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Server> servers_;
  bool stopped_ = false;
};

struct Known {
  std::string id;
  int64_t version = 0;           // acknowledged
  std::vector<int32_t> history;  // every token the session has read
};

// A call whose answer has not come.
struct Pending {
  enum Kind { kCreate, kTurn, kIngest, kFork, kRewind } kind;
  size_t session;  // index
  v1::GenerateRequest turn;
  std::vector<int32_t> input;  // of turn and ingest, as tokens
  std::string ingest_id, text;
  std::string child;
  size_t position = 0;
};

std::vector<int32_t> Ids(const google::protobuf::RepeatedField<int32_t>& ids) {
  return {ids.begin(), ids.end()};
}

class Worker {
 public:
  Worker(int index, Place& place, Counts& counts)
      : index_(index), place_(place), counts_(counts), random_(seed + 1000 + index) {}

  void Run() {
    Place::Life life;
    while (!Failed()) {
      const auto next = place_.Next(life, random_);
      // After Stop no server is killed, so a call that broke has been settled by then.
      if (!next.has_value()) return;
      life = *next;
      auto client = client::Client::Connect({.server = life.address,
                                             .connect_timeout = absl::Milliseconds(500),
                                             .timeout = absl::Seconds(60),
                                             .work_timeout = absl::Seconds(60),
                                             // The next server has another address.
                                             .resume_window = absl::Milliseconds(500)});
      absl::Status status = client.status();
      if (status.ok()) status = Settle(*client);
      while (status.ok() && !Failed() && !place_.stopped()) status = Step(*client);
      if (status.ok()) return;
      // A killed server breaks calls. It refuses nothing, and nothing hangs.
      const client::Error error = client::ErrorOf(status);
      EXPECT_TRUE(error.reason.empty() && (status.code() == absl::StatusCode::kUnavailable ||
                                           status.code() == absl::StatusCode::kCancelled))
          << "worker " << index_ << ", server " << life.server << " at " << life.address
          << ", call " << (pending_ ? static_cast<int>(pending_->kind) : -1) << ": " << status;
    }
  }

  const std::vector<Known>& sessions() const { return sessions_; }
  bool settled() const { return !pending_.has_value(); }

 private:
  static bool Failed() { return ::testing::Test::HasFailure(); }
  int64_t Random(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }

  std::string RandomText(int words) {
    static constexpr const char* kWords[] = {"the",   "river", " keeps", "what", "\n",   "Naïve",
                                             "light", "12",    "house",  "日本", "went", "?"};
    std::string text;
    for (int i = 0; i < words; ++i) {
      absl::StrAppend(&text, i > 0 ? " " : "", kWords[Random(0, std::size(kWords) - 1)]);
    }
    return text;
  }

  absl::StatusOr<std::vector<int32_t>> Tokenize(client::Client& client, const std::string& text) {
    v1::TokenizeRequest request;
    request.set_text(text);
    auto response = client.Tokenize(request);
    if (!response.ok()) return response.status();
    return Ids(response->token_ids());
  }

  // Checks every session against what is known and finishes or forgets the call that broke.
  absl::Status Settle(client::Client& client) {
    if (pending_) {
      if (auto s = SettlePending(client); !s.ok()) return s;
      pending_.reset();
    }
    for (const Known& known : sessions_) {
      auto session = client.GetSession(known.id);
      if (!session.ok()) return session.status();
      // A killed server writes a session, it seems, as long as its lease lasts.
      EXPECT_TRUE(session->state() == v1::Session::ACTIVE ||
                  (num_servers > 1 && session->state() == v1::Session::RUNNING))
          << session->ShortDebugString();
      EXPECT_EQ(session->version(), known.version) << known.id;
      EXPECT_EQ(session->position_tokens(), static_cast<int64_t>(known.history.size())) << known.id;
    }
    return absl::OkStatus();
  }

  absl::Status SettlePending(client::Client& client) {
    const Pending& pending = *pending_;
    if (pending.kind == Pending::kCreate || pending.kind == Pending::kFork) {
      auto child = client.GetSession(pending.child);
      if (child.status().code() == absl::StatusCode::kNotFound) {
        ++counts_.lost;
        return absl::OkStatus();
      }
      if (!child.ok()) return child.status();
      ++counts_.kept;
      AddSession(*child);
      return absl::OkStatus();
    }
    Known& known = sessions_[pending.session];
    if (pending.kind == Pending::kIngest) return DoWhenFree(client);

    auto session = client.GetSession(known.id);
    if (!session.ok()) return session.status();
    if (session->version() == known.version) {
      ++counts_.lost;
      return absl::OkStatus();
    }
    EXPECT_EQ(session->version(), known.version + 1)
        << known.id << " has moved by more than a call";
    if (pending.kind == Pending::kRewind) {
      known.history.resize(pending.position);
    } else {
      // What the turn must have said, since its seed is known.
      v1::GenerateRequest again = pending.turn;
      again.clear_session();
      again.clear_expected_version();
      std::vector<int32_t> all = known.history;
      all.insert(all.end(), pending.input.begin(), pending.input.end());
      again.mutable_token_ids()->mutable_ids()->Assign(all.begin(), all.end());
      auto complete = client.Complete(again);
      if (!complete.ok()) return complete.status();
      all.insert(all.end(), complete->token_ids().begin(), complete->token_ids().end());
      known.history = std::move(all);
    }
    known.version = session->version();
    ++counts_.kept;
    return absl::OkStatus();
  }

  absl::Status Step(client::Client& client) {
    Pending pending;
    pending.session = sessions_.empty() ? 0 : static_cast<size_t>(Random(0, sessions_.size() - 1));
    const Known* known = sessions_.empty() ? nullptr : &sessions_[pending.session];
    const int64_t dice = Random(0, 99);
    if (known == nullptr) {
      pending.kind = Pending::kCreate;
      pending.child = absl::StrCat("w", index_);
    } else if (known->history.size() > kMaxHistory || (dice < 10 && !known->history.empty())) {
      pending.kind = Pending::kRewind;
      pending.position =
          static_cast<size_t>(Random(0, std::min<int64_t>(known->history.size(), kMaxHistory / 2)));
    } else if (dice < 20 && sessions_.size() <= kMaxForks) {
      pending.kind = Pending::kFork;
      pending.child = absl::StrCat("w", index_, "-", sessions_.size());
    } else if (dice < 30 && !known->history.empty()) {
      pending.kind = Pending::kIngest;
      pending.ingest_id = absl::StrCat("ingest-", ++ingests_);
      pending.text = RandomText(static_cast<int>(Random(1, 120)));
      auto input = Tokenize(client, pending.text);
      if (!input.ok()) return input.status();
      pending.input = *input;
    } else {
      if (auto s = PrepareTurn(client, *known, &pending); !s.ok()) return s;
    }
    pending_ = std::move(pending);
    absl::Status status = DoWhenFree(client);
    if (!status.ok()) return status;
    ++counts_.acknowledged;
    pending_.reset();
    return absl::OkStatus();
  }

  absl::Status PrepareTurn(client::Client& client, const Known& known, Pending* pending) {
    pending->kind = Pending::kTurn;
    v1::GenerateRequest& turn = pending->turn;
    turn.set_session(known.id);
    turn.set_expected_version(known.version);
    turn.set_add_bos(v1::GenerateRequest::ADD_BOS_NEVER);
    turn.set_max_output_tokens(static_cast<int32_t>(Random(0, 40)));
    turn.set_ignore_eos(Random(0, 1) == 1);
    auto& sampling = *turn.mutable_sampling();
    sampling.set_seed(random_());
    sampling.set_temperature(static_cast<float>(Random(0, 12)) / 8);
    sampling.set_top_p(Random(0, 1) == 1 ? 0.9F : 1.0F);
    sampling.set_top_k(Random(0, 1) == 1 ? 40 : 0);
    if (Random(0, 1) == 1) {
      const std::string text = RandomText(static_cast<int>(Random(1, 40)));
      auto input = Tokenize(client, text);
      if (!input.ok()) return input.status();
      pending->input = *input;
      turn.set_text(text);
    } else {
      for (int64_t i = Random(1, 60); i > 0; --i) {
        pending->input.push_back(static_cast<int32_t>(Random(5, 300)));
      }
      turn.mutable_token_ids()->mutable_ids()->Assign(pending->input.begin(), pending->input.end());
    }
    return absl::OkStatus();
  }

  // The pending call, also where a killed server still has the lease of its session.
  absl::Status DoWhenFree(client::Client& client) {
    const absl::Time deadline = absl::Now() + 10 * kLease;
    absl::Status status = Do(client);
    while (num_servers > 1 && client::ErrorOf(status).reason == "SESSION_BUSY" &&
           absl::Now() < deadline) {
      ++counts_.waited;
      absl::SleepFor(absl::Milliseconds(50));
      status = Do(client);
    }
    return status;
  }

  absl::Status Do(client::Client& client) {
    switch (pending_->kind) {
      case Pending::kCreate: {
        v1::CreateSessionRequest request;
        request.set_session_id(pending_->child);
        auto session = client.CreateSession(request);
        if (session.ok()) AddSession(*session);
        return session.status();
      }
      case Pending::kFork: {
        v1::ForkSessionRequest request;
        request.set_name(sessions_[pending_->session].id);
        request.add_session_ids(pending_->child);
        request.set_expected_version(sessions_[pending_->session].version);
        auto response = client.ForkSession(request);
        if (!response.ok()) return response.status();
        EXPECT_EQ(response->sessions_size(), 1);
        AddSession(response->sessions(0));
        return absl::OkStatus();
      }
      case Pending::kRewind: {
        Known& known = sessions_[pending_->session];
        v1::RewindSessionRequest request;
        request.set_name(known.id);
        request.set_position_tokens(static_cast<int64_t>(pending_->position));
        request.set_expected_version(known.version);
        auto response = client.RewindSession(request);
        if (!response.ok()) return response.status();
        EXPECT_EQ(response->session().version(), known.version + 1);
        known.version = response->session().version();
        known.history.resize(pending_->position);
        return absl::OkStatus();
      }
      case Pending::kIngest:
        return Ingest(client);
      case Pending::kTurn:
        return Turn(client);
    }
    return absl::OkStatus();
  }

  absl::Status Turn(client::Client& client) {
    Known& known = sessions_[pending_->session];
    auto stream = client.Generate(pending_->turn);
    if (!stream.ok()) return stream.status();
    std::vector<int32_t> output;
    for (const v1::GenerateResponse& event : *stream) {
      output.insert(output.end(), event.delta().token_ids().begin(),
                    event.delta().token_ids().end());
    }
    auto final = stream->Finish();
    if (!final.ok()) return final.status();
    EXPECT_TRUE(final->committed());
    EXPECT_EQ(final->version(), known.version + 1);
    EXPECT_EQ(final->usage().recomputed_tokens(), 0);
    EXPECT_EQ(final->usage().reused_input_tokens(), static_cast<int64_t>(known.history.size()));
    known.version = final->version();
    known.history.insert(known.history.end(), pending_->input.begin(), pending_->input.end());
    known.history.insert(known.history.end(), output.begin(), output.end());
    EXPECT_EQ(final->position_tokens(), static_cast<int64_t>(known.history.size()));
    return absl::OkStatus();
  }

  // Begins the pending ingest, or goes on with it.
  absl::Status Ingest(client::Client& client) {
    Known& known = sessions_[pending_->session];
    client::IngestOptions options;
    options.session = known.id;
    options.ingest_id = pending_->ingest_id;
    options.commit_every_tokens = 20;
    options.frame_bytes = 50;
    options.max_outage = absl::ZeroDuration();  // another server takes over, at another address
    options.on_progress = [&](const v1::IngestProgress& progress) {
      EXPECT_GE(progress.version(), known.version) << known.id << " has lost a commit";
      known.version = std::max(known.version, progress.version());
    };
    std::istringstream text(pending_->text);
    auto done = client.Ingest(text, options);
    if (!done.ok()) return done.status();
    EXPECT_EQ(done->read_tokens(), static_cast<int64_t>(pending_->input.size()));
    known.history.insert(known.history.end(), pending_->input.begin(), pending_->input.end());
    known.version = done->version();
    EXPECT_EQ(done->position_tokens(), static_cast<int64_t>(known.history.size())) << known.id;
    return absl::OkStatus();
  }

  void AddSession(const v1::Session& session) {
    Known known;
    known.id = pending_->child;
    known.version = session.version();
    if (pending_->kind == Pending::kFork) known.history = sessions_[pending_->session].history;
    sessions_.push_back(std::move(known));
  }

  const int index_;
  Place& place_;
  Counts& counts_;
  std::mt19937_64 random_;
  std::vector<Known> sessions_;
  std::optional<Pending> pending_;
  int ingests_ = 0;
};

bool SameBits(float a, float b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }

// The stored state is what reading the history from its beginning gives.
void ExpectContinuesLikeItsHistory(client::Client& client, const Known& known) {
  SCOPED_TRACE(absl::StrCat(known.id, ", ", known.history.size(), " tokens"));
  v1::ForkSessionRequest fork;
  fork.set_name(known.id);
  fork.add_session_ids(absl::StrCat("check-", known.id));
  ASSERT_TRUE(client.ForkSession(fork).ok());
  v1::GenerateRequest request;
  request.mutable_sampling()->set_temperature(0);
  request.set_add_bos(v1::GenerateRequest::ADD_BOS_NEVER);
  request.set_ignore_eos(true);
  request.set_max_output_tokens(16);
  request.set_logprobs(3);
  std::vector<int32_t> all = known.history;
  all.push_back(70);

  request.mutable_token_ids()->mutable_ids()->Assign(all.begin(), all.end());
  auto stateless = client.Complete(request);
  ASSERT_TRUE(stateless.ok()) << stateless.status();
  request.set_session(fork.session_ids(0));
  request.mutable_token_ids()->clear_ids();
  request.mutable_token_ids()->add_ids(70);
  auto session = client.Complete(request);
  ASSERT_TRUE(session.ok()) << session.status();

  EXPECT_EQ(session->final().usage().recomputed_tokens(), 0);
  EXPECT_EQ(session->final().usage().reused_input_tokens(),
            static_cast<int64_t>(known.history.size()));
  EXPECT_EQ(Ids(session->token_ids()), Ids(stateless->token_ids()));
  ASSERT_EQ(session->logprobs_size(), 16);
  ASSERT_EQ(stateless->logprobs_size(), 16);
  for (int i = 0; i < 16; ++i) {
    const auto& a = session->logprobs(i);
    const auto& b = stateless->logprobs(i);
    EXPECT_TRUE(SameBits(a.logprob(), b.logprob())) << a.logprob() << " " << b.logprob();
    ASSERT_EQ(a.top_size(), b.top_size());
    for (int k = 0; k < a.top_size(); ++k) {
      EXPECT_TRUE(SameBits(a.top(k).logprob(), b.top(k).logprob())) << i << " " << k;
    }
  }
}

// The servers that are killed, of one store. Not for several threads.
class Servers {
 public:
  Servers() : folders_(num_servers), servers_(num_servers) {
    if (num_servers > 1) database_ = PostgresServer::Shared().NewDatabase();
  }

  // False, and a failure, if it does not listen.
  bool Start(int i) {
    ServerProcess::Options options{.binary = MNEME_SERVER_BINARY,
                                   .model = absl::StrCat("tiny=", MNEME_TINY_MODEL),
                                   .folder = folders_[i].path(),
                                   .flags = {"--drain.pre_stop_delay", "0s"}};
    if (num_servers > 1) {
      options.store = absl::StrCat(database_, "&application_name=", Name(i));
      options.flags.insert(
          options.flags.end(),
          {"--replica.name", Name(i), "--replica.lease_ttl", absl::FormatDuration(kLease),
           "--replica.lease_renew", absl::FormatDuration(kLease / 4)});
    }
    auto server = ServerProcess::Start(options);
    EXPECT_TRUE(server.ok()) << server.status();
    if (!server.ok()) return false;
    servers_[i] = *std::move(server);
    return true;
  }
  // Afterwards nothing that the server was doing can happen any more: the database goes on with a
  // statement whose client is gone.
  void Kill(int i) {
    servers_[i]->Kill();
    if (num_servers == 1) return;
    const std::string running = absl::StrCat(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = '", Name(i), "'");
    const absl::Time deadline = absl::Now() + absl::Seconds(30);
    absl::StatusOr<std::string> left;
    do {
      left = PostgresServer::Shared().Query(running);
    } while (left.ok() && *left != "0" && absl::Now() < deadline);
    EXPECT_TRUE(left.ok() && *left == "0") << left.status();
  }
  ServerProcess& operator[](int i) { return *servers_[i]; }

 private:
  static std::string Name(int i) { return absl::StrCat("replica-", i); }

  std::string database_;  // its URI
  std::vector<TemporaryFolder> folders_;
  std::vector<std::unique_ptr<ServerProcess>> servers_;
};

TEST(Kill, NothingAcknowledgedIsLost) {
  std::printf("seed %llu, %d kills of %d servers\n", static_cast<unsigned long long>(seed), kills,
              num_servers);
  Servers servers;
  Place place(num_servers);
  for (int i = 0; i < num_servers; ++i) {
    ASSERT_TRUE(servers.Start(i));
    place.Up(i, servers[i].address());
  }
  Counts counts;
  std::vector<std::unique_ptr<Worker>> workers;
  std::vector<std::thread> threads;
  for (int i = 0; i < kWorkers; ++i) {
    workers.push_back(std::make_unique<Worker>(i, place, counts));
    threads.emplace_back([worker = workers.back().get()] { worker->Run(); });
  }

  std::mt19937_64 random(seed);
  absl::Duration starting, slowest_start, slowest_end;
  int killed_servers = 0;
  while (killed_servers < kills && !HasFailure()) {
    absl::SleepFor(absl::Milliseconds(std::uniform_int_distribution<int>(5, 400)(random)));
    const int victim = std::uniform_int_distribution<int>(0, num_servers - 1)(random);
    const absl::Time killed = absl::Now();
    servers.Kill(victim);
    place.Down(victim);
    const absl::Time begin = absl::Now();
    if (!servers.Start(victim)) break;
    const absl::Time listening = absl::Now();
    slowest_end = std::max(slowest_end, begin - killed);
    slowest_start = std::max(slowest_start, listening - begin);
    starting += listening - begin;
    ++killed_servers;
    place.Up(victim, servers[victim].address());
  }
  // A slow machine may have had no time for a call between two kills.
  const int64_t enough = counts.acknowledged + 4 * kWorkers;
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (counts.acknowledged < enough && !HasFailure() && absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  place.Stop();
  for (std::thread& thread : threads) thread.join();
  std::printf(
      "%d kills; %lld calls acknowledged; of those under way at a kill %lld were kept, %lld left "
      "no trace; %lld refusals while a killed server's lease ran\n"
      "a start took %.0f ms, at most %.0f; the end of a killed process at most %.0f ms\n",
      killed_servers, static_cast<long long>(counts.acknowledged),
      static_cast<long long>(counts.kept), static_cast<long long>(counts.lost),
      static_cast<long long>(counts.waited),
      absl::ToDoubleMilliseconds(starting) / std::max(killed_servers, 1),
      absl::ToDoubleMilliseconds(slowest_start), absl::ToDoubleMilliseconds(slowest_end));
  RecordProperty("trials", killed_servers);
  RecordProperty("figure", absl::StrCat(counts.acknowledged.load(), " calls acknowledged, ",
                                        HasFailure() ? "some" : "0", " lost"));
  ASSERT_FALSE(HasFailure());
  EXPECT_GE(counts.acknowledged, enough);

  // Once more, so that every state below comes from the disk.
  for (int i = 0; i < num_servers; ++i) {
    servers.Kill(i);
    ASSERT_TRUE(servers.Start(i));
  }
  if (num_servers > 1) absl::SleepFor(kLease);  // then no lease of a killed server is left
  auto client = client::Client::Connect({.server = servers[0].address()});
  ASSERT_TRUE(client.ok()) << client.status();

  std::map<std::string, const Known*> expected;
  for (const auto& worker : workers) {
    EXPECT_TRUE(worker->settled());
    EXPECT_FALSE(worker->sessions().empty());
    for (const Known& known : worker->sessions()) {
      expected["tenants/default/sessions/" + known.id] = &known;
    }
  }
  v1::ListSessionsRequest list;
  list.set_page_size(7);
  list.set_show_deleted(true);
  size_t listed = 0;
  do {
    auto page = client->ListSessions(list);
    ASSERT_TRUE(page.ok()) << page.status();
    for (const v1::Session& session : page->sessions()) {
      ++listed;
      ASSERT_EQ(expected.count(session.name()), 1u) << session.name();
      const Known& known = *expected[session.name()];
      EXPECT_EQ(session.state(), v1::Session::ACTIVE) << session.name();
      EXPECT_EQ(session.version(), known.version) << session.name();
      EXPECT_EQ(session.position_tokens(), static_cast<int64_t>(known.history.size()));
    }
    list.set_page_token(page->next_page_token());
  } while (!list.page_token().empty());
  EXPECT_EQ(listed, expected.size());
  for (const auto& [name, known] : expected) ExpectContinuesLikeItsHistory(*client, *known);

  for (int i = 0; i < num_servers; ++i) {
    servers[i].Signal(SIGTERM);
    EXPECT_EQ(servers[i].Wait().code, 0);
  }
}

}  // namespace

bool ParseArguments(int argc, char** argv) {
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const bool good = name == "--kills"     ? absl::SimpleAtoi(argv[i + 1], &kills)
                      : name == "--seed"    ? absl::SimpleAtoi(argv[i + 1], &seed)
                      : name == "--servers" ? absl::SimpleAtoi(argv[i + 1], &num_servers)
                                            : false;
    if (!good) return false;
  }
  return argc % 2 == 1 && num_servers >= 1;
}

}  // namespace mneme::test

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (!mneme::test::ParseArguments(argc, argv)) {
    std::fprintf(stderr, "usage: %s [--kills N] [--seed S] [--servers N]\n", argv[0]);
    return 2;
  }
  return RUN_ALL_TESTS();
}
