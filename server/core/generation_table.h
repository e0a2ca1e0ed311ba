// The generations of this server: those whose turns run, and those whose output is kept.
//
// A turn runs on a thread of its own and outlives, if it is asked to, the call that started it. A
// generation that has ended is kept for a while, so that a client which lost its stream still gets
// the rest. It is in memory alone: what outlives the process is in the store (turn_journal.h).
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/core/mutex.h"
#include "server/core/call_context.h"
#include "server/core/generation_log.h"
#include "server/core/metrics.h"
#include "server/core/worker_pool.h"

namespace mneme::server {

std::string GenerationName(std::string_view tenant, std::string_view id);
std::string GenerationId(const std::string& name);

struct Generation {
  Generation(std::string full_name, std::string tenant, std::string session_name,
             GenerationLog::Options options)
      : name(std::move(full_name)),
        session(std::move(session_name)),
        log(turn, std::move(options)) {
    turn.tenant = std::move(tenant);
  }

  std::string id() const { return GenerationId(name); }

  const std::string name;     // tenants/{tenant}/generations/{generation}
  const std::string session;  // as the request names it; "" if stateless
  const absl::Time created = absl::Now();
  absl::Time ended = absl::InfiniteFuture();  // written before log.ended()
  bool interrupted = false;  // another process goes on with it; written before log.ended()
  CallContext turn;          // of the turn, which is no call's
  GenerationLog log;
};

// For ResumeGeneration; says the generation's name, so that no server needs to remember it.
std::string MakeResumeToken(std::string_view generation);
// The name in a token, of whatever tenant; "" if it is not one of MakeResumeToken.
std::string GenerationOfToken(std::string_view token);

// Thread-safe.
class GenerationTable {
 public:
  struct Options {
    absl::Duration keep;     // output, after the end
    int64_t keep_bytes = 0;  // of each tenant; the oldest goes first
    size_t max_turns = 1;    // at once
  };
  GenerationTable(Options options, Metrics& metrics);
  // Cancels the turns that run, and waits for them.
  ~GenerationTable();

  // Runs `turn` on a thread, for the caller of `call` but not bound to its life; its status ends
  // the log. One whose log is empty then, or that was interrupted, leaves no trace. `name`: of one
  // that another process had begun; if it is here meanwhile, nothing is started. UNAVAILABLE
  // QUEUE_FULL if there is no thread.
  absl::StatusOr<std::shared_ptr<Generation>> Start(const CallContext& call, std::string session,
                                                    GenerationLog::Options log,
                                                    std::function<absl::Status(Generation&)> turn,
                                                    std::string name = "");
  // Null if there is none, any more.
  std::shared_ptr<Generation> Find(const std::string& name) const;
  absl::Duration keep() const { return options_.keep; }

 private:
  using Pointer = std::shared_ptr<Generation>;
  struct Kept {
    Pointer generation;
    int64_t bytes;
  };
  struct Tenant {
    std::deque<Kept> ended;  // oldest first
    int64_t bytes = 0;
  };

  void Run(const Pointer& generation, const std::function<absl::Status(Generation&)>& turn);
  void Keep(const Pointer& generation) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ForgetOldest(Tenant& tenant) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Returns when there is something to forget next.
  absl::Time ForgetExpired(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Forgets what has expired, and cancels turns that have been without a reader for too long.
  void Watch();

  const Options options_;
  Metrics& metrics_;
  mutable Mutex mutex_;
  CondVar changed_;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<std::string, Pointer, std::less<>> by_name_ ABSL_GUARDED_BY(mutex_);  // all of them
  std::map<std::string, Pointer> running_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Tenant> tenants_ ABSL_GUARDED_BY(mutex_);  // of those that have ended
  WorkerPool turns_;
  std::thread watcher_;
};

}  // namespace mneme::server
