#include "server/core/generation_table.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "memstore/state_store.h"
#include "server/core/errors.h"
#include "server/core/session_names.h"

namespace mneme::server {
namespace {

using Clock = CallContext::Clock;

// What a generation takes beside its output, about.
constexpr int64_t kOverheadBytes = 1024;
constexpr size_t kTokenChecksumBytes = 12;

// Against tokens that were cut or mistyped, not against forgers: a name gives as much to whoever
// may use its tenant.
std::string TokenChecksum(std::string_view generation) {
  const auto hash = memstore::HashChunk(
      absl::StrCat("mneme resume ", absl::string_view(generation.data(), generation.size())));
  return {reinterpret_cast<const char*>(hash.data()), kTokenChecksumBytes};
}

}  // namespace

std::string GenerationName(std::string_view tenant, std::string_view id) {
  return absl::StrCat("tenants/", absl::string_view(tenant.data(), tenant.size()), "/generations/",
                      absl::string_view(id.data(), id.size()));
}

std::string GenerationId(const std::string& name) { return name.substr(name.rfind('/') + 1); }

std::string MakeResumeToken(std::string_view generation) {
  return absl::WebSafeBase64Escape(TokenChecksum(generation) + std::string(generation));
}

std::string GenerationOfToken(std::string_view token) {
  std::string bytes;
  if (token.size() > 1024 ||
      !absl::WebSafeBase64Unescape(absl::string_view(token.data(), token.size()), &bytes) ||
      bytes.size() <= kTokenChecksumBytes) {
    return "";
  }
  std::string generation = bytes.substr(kTokenChecksumBytes);
  return TokenChecksum(generation) == bytes.substr(0, kTokenChecksumBytes) ? generation : "";
}

GenerationTable::GenerationTable(Options options, Metrics& metrics)
    : options_(options),
      metrics_(metrics),
      turns_(options.max_turns, /*max_waiting=*/0),
      watcher_([this] { Watch(); }) {}

GenerationTable::~GenerationTable() {
  std::vector<Pointer> running;
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    for (const auto& [name, generation] : running_) running.push_back(generation);
    changed_.NotifyAll();
  }
  for (const Pointer& generation : running) {
    generation->turn.RequestCancel(CallContext::Cancel::kShutdown);
  }
  watcher_.join();
}

absl::StatusOr<std::shared_ptr<Generation>> GenerationTable::Start(
    const CallContext& call, std::string session, GenerationLog::Options log,
    std::function<absl::Status(Generation&)> turn, std::string name) {
  log.on_unattended = [this, also = std::move(log.on_unattended)](bool unattended) {
    metrics_.generations_unattended.Increment(unattended ? 1 : -1);
    also(unattended);
    if (!unattended) return;
    MutexLock lock(&mutex_);
    changed_.NotifyAll();
  };
  if (name.empty())
    name = GenerationName(call.tenant, absl::StrCat("g", MakeSessionId().substr(1)));
  auto generation = std::make_shared<Generation>(std::move(name), call.tenant, std::move(session),
                                                 std::move(log));
  generation->turn.caller = call.caller;
  generation->turn.request_id = call.request_id;
  generation->turn.request = call.request;
  generation->turn.request.generation = generation->id();
  generation->turn.arrival = call.arrival;
  {
    MutexLock lock(&mutex_);
    const auto [found, is_new] = by_name_.try_emplace(generation->name, generation);
    if (!is_new) return found->second;
    running_[generation->name] = generation;
  }
  if (turns_.Submit([this, generation, turn = std::move(turn)] { Run(generation, turn); })) {
    return generation;
  }
  MutexLock lock(&mutex_);
  by_name_.erase(generation->name);
  running_.erase(generation->name);
  return WithRetry(Error(absl::StatusCode::kUnavailable, reason::kQueueFull,
                         "the server has as many turns as it can hold; try again later"),
                   absl::Seconds(1));
}

void GenerationTable::Run(const Pointer& generation,
                          const std::function<absl::Status(Generation&)>& turn) {
  absl::Status status = turn(*generation);
  generation->ended = absl::Now();
  // Whoever has read the end finds it in the table as what it is.
  MutexLock lock(&mutex_);
  generation->log.End(std::move(status));
  running_.erase(generation->name);
  Keep(generation);
  changed_.NotifyAll();
}

void GenerationTable::Keep(const Pointer& generation) {
  if (generation->log.last_sequence() == 0 || generation->interrupted) {
    by_name_.erase(generation->name);
    return;
  }
  Tenant& tenant = tenants_[generation->turn.tenant];
  const int64_t bytes = generation->log.bytes() + kOverheadBytes;
  tenant.ended.push_back({generation, bytes});
  tenant.bytes += bytes;
  metrics_.generations_kept_bytes.Increment(static_cast<double>(bytes));
  while (tenant.bytes > options_.keep_bytes) ForgetOldest(tenant);
  ForgetExpired(absl::Now());
}

void GenerationTable::ForgetOldest(Tenant& tenant) {
  const Kept& oldest = tenant.ended.front();
  by_name_.erase(oldest.generation->name);
  tenant.bytes -= oldest.bytes;
  metrics_.generations_kept_bytes.Decrement(static_cast<double>(oldest.bytes));
  tenant.ended.pop_front();
}

absl::Time GenerationTable::ForgetExpired(absl::Time now) {
  absl::Time next = absl::InfiniteFuture();
  for (auto it = tenants_.begin(); it != tenants_.end();) {
    Tenant& tenant = it->second;
    while (!tenant.ended.empty() && tenant.ended.front().generation->ended + options_.keep <= now) {
      ForgetOldest(tenant);
    }
    if (tenant.ended.empty()) {
      it = tenants_.erase(it);
    } else {
      next = std::min(next, tenant.ended.front().generation->ended + options_.keep);
      ++it;
    }
  }
  return next;
}

std::shared_ptr<Generation> GenerationTable::Find(const std::string& name) const {
  MutexLock lock(&mutex_);
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

void GenerationTable::Watch() {
  while (true) {
    std::vector<Pointer> left;
    {
      MutexLock lock(&mutex_);
      if (stop_) return;
      const absl::Time now = absl::Now();
      auto next = Clock::time_point::max();
      if (const absl::Time expiry = ForgetExpired(now); expiry != absl::InfiniteFuture()) {
        next = Clock::now() + absl::ToChronoNanoseconds(std::min(expiry - now, absl::Hours(1)));
      }
      for (const auto& [name, generation] : running_) {
        if (generation->turn.cancelled() != CallContext::Cancel::kNone) continue;
        const auto until = generation->log.unattended_until();
        if (until <= Clock::now()) {
          left.push_back(generation);
        } else {
          next = std::min(next, until);
        }
      }
      if (left.empty()) changed_.WaitUntil(&mutex_, next);
    }
    for (const Pointer& generation : left) {
      generation->turn.RequestCancel(CallContext::Cancel::kClient);
    }
  }
}

}  // namespace mneme::server
