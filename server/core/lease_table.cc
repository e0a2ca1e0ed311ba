#include "server/core/lease_table.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "server/core/cancel_status.h"

namespace mneme::server {
namespace {

using Clock = CallContext::Clock;

// A late renewal is seen this much before others may take the lease, so that a step of the engine
// that is under way then has ended.
constexpr double kSafeShare = 0.8;

constexpr char kPrefix[] = "leases/";
// How long a record is kept after its last use: longer than anybody can be late, since a record
// that is made anew counts its versions from the beginning.
constexpr absl::Duration kKept = absl::Hours(24);

// Of "NAME/PROCESS".
std::string NameOf(const std::string& owner) { return owner.substr(0, owner.rfind('/')); }

}  // namespace

LeaseTable::LeaseTable(memstore::StateStore& store, Options options, Metrics& metrics)
    : store_(store), options_(std::move(options)), metrics_(metrics) {
  renewer_ = std::thread([this] { RenewAll(); });
}

LeaseTable::~LeaseTable() {
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    changed_.NotifyAll();
  }
  renewer_.join();
}

memstore::Key LeaseTable::KeyOf(const SessionName& name) {
  return {name.tenant, absl::StrCat(kPrefix, name.session)};
}

bool LeaseTable::IsLease(const memstore::Key& key) { return key.name.starts_with(kPrefix); }

absl::StatusOr<LeaseTable::Found> LeaseTable::Read(const SessionName& name) const {
  MNEME_ASSIGN_OR_RETURN(const memstore::Record record, store_.Get(KeyOf(name)));
  Found found{.version = record.version};
  if (!found.lease.ParseFromString(record.value)) {
    return absl::DataLossError("a lease's record cannot be read");
  }
  return found;
}

bool LeaseTable::IsElsewhere(const storage::StoredLease& lease) const {
  return !lease.owner().empty() && lease.owner() != options_.owner &&
         absl::FromUnixMicros(lease.end_time_us()) > absl::Now();
}

absl::StatusOr<LeaseTable::Lease> LeaseTable::Take(const SessionName& name, CallContext& holder) {
  for (int attempt = 0;; ++attempt) {
    auto found = Read(name);
    if (absl::IsNotFound(found.status())) found = Found();
    if (!found.ok()) return found.status();
    const storage::StoredLease& last = found->lease;
    if (IsElsewhere(last)) {
      absl::Status taken = absl::AbortedError("another server has the lease");
      taken.SetPayload(kOwnerPayload, absl::Cord(NameOf(last.owner())));
      return taken;
    }
    auto held = std::make_shared<Held>();
    held->name = name;
    held->holder = &holder;
    held->version = found->version;
    held->epoch = last.epoch() + 1;
    const absl::Status status = store_.Commit({.puts = {PutOf(*held, false)}, .sync = false});
    if (status.ok()) {
      const bool was_others = !last.owner().empty() && last.owner() != options_.owner;
      metrics_.CountLease(was_others ? "taken_over" : "taken");
      Learn(*held, status);
      MutexLock lock(&mutex_);
      held_.push_back(held);
      metrics_.leases_held.Set(static_cast<double>(held_.size()));
      return Lease(this, std::move(held));
    }
    // Somebody took it in between: look who.
    if (!absl::IsAborted(status) || attempt == 16) return status;
  }
}

std::set<std::string> LeaseTable::HeldElsewhere(const std::string& tenant,
                                                const std::vector<std::string>& sessions) const {
  std::vector<std::string> keys;
  for (const std::string& session : sessions) keys.push_back(KeyOf({tenant, session}).name);
  std::set<std::string> held;
  const auto found = store_.GetMany(tenant, keys);
  if (!found.ok()) return held;
  for (const auto& [key, record] : *found) {
    storage::StoredLease lease;
    if (lease.ParseFromString(record.value) && IsElsewhere(lease)) {
      held.insert(key.substr(sizeof(kPrefix) - 1));
    }
  }
  return held;
}

int64_t LeaseTable::Lease::epoch() const { return held_ == nullptr ? 0 : held_->epoch; }

void LeaseTable::Lease::Release() {
  if (LeaseTable* table = std::exchange(table_, nullptr)) table->Return(held_);
  held_.reset();
}

absl::Status LeaseTable::Lease::Fence(memstore::Transaction& transaction, bool release) {
  if (held_ == nullptr) return absl::OkStatus();
  table_->BeginWriting(*held_);
  if (held_->lost || held_->released) {
    table_->EndWriting(*held_);
    return CancelStatus(CallContext::Cancel::kLeaseLost);
  }
  transaction.puts.push_back(table_->PutOf(*held_, release));
  return absl::OkStatus();
}

absl::Status LeaseTable::Lease::Settle(absl::Status committed) {
  if (held_ == nullptr) return committed;
  table_->Learn(*held_, committed);
  const bool lost = held_->lost;
  table_->EndWriting(*held_);
  return !committed.ok() && lost ? CancelStatus(CallContext::Cancel::kLeaseLost) : committed;
}

void LeaseTable::BeginWriting(Held& held) {
  MutexLock lock(&mutex_);
  while (held.writing) changed_.Wait(&mutex_);
  held.writing = true;
}

void LeaseTable::EndWriting(Held& held) {
  MutexLock lock(&mutex_);
  held.writing = false;
  changed_.NotifyAll();
}

memstore::Put LeaseTable::PutOf(Held& held, bool release) const {
  held.releasing = release;
  held.good_until = Clock::now() + absl::ToChronoNanoseconds(options_.ttl * kSafeShare);
  storage::StoredLease lease;
  lease.set_epoch(held.epoch);
  if (!release) {
    lease.set_owner(options_.owner);
    lease.set_end_time_us(absl::ToUnixMicros(absl::Now() + options_.ttl));
  }
  return {.key = KeyOf(held.name),
          .expected_version = held.version,
          .value = lease.SerializeAsString(),
          .expire_time = absl::Now() + kKept};
}

void LeaseTable::Learn(Held& held, const absl::Status& committed) {
  if (committed.ok()) {
    ++held.version;
    held.released = held.releasing;
    if (!held.released) held.holder->lease_deadline = held.good_until;
    return;
  }
  // Refused, because of the lease or of another record; or nobody knows. The record does.
  const auto found = Read(held.name);
  if (absl::IsNotFound(found.status())) return Lose(held);  // kKept is over
  if (!found.ok()) return;                                  // the next write asks again
  if (found->lease.epoch() != held.epoch) return Lose(held);
  held.version = found->version;
  held.released = found->lease.owner().empty();
}

void LeaseTable::Write(Held& held, bool release) {
  Learn(held, store_.Commit({.puts = {PutOf(held, release)}, .sync = false}));
}

void LeaseTable::Lose(Held& held) {
  if (held.lost) return;
  held.lost = true;
  metrics_.CountLease("lost");
  held.holder->RequestCancel(CallContext::Cancel::kLeaseLost);
}

void LeaseTable::Return(const HeldPtr& held) {
  BeginWriting(*held);
  if (!held->lost && !held->released) {
    // If it cannot be written, others wait until the lease ends.
    Write(*held, /*release=*/true);
  }
  if (!held->lost) metrics_.CountLease("released");
  held->holder->lease_deadline = Clock::time_point::max();
  MutexLock lock(&mutex_);
  held->released = true;
  held->writing = false;
  held_.erase(std::find(held_.begin(), held_.end(), held));
  metrics_.leases_held.Set(static_cast<double>(held_.size()));
  changed_.NotifyAll();
}

void LeaseTable::RenewAll() {
  while (true) {
    std::vector<HeldPtr> due;
    {
      MutexLock lock(&mutex_);
      const auto until = Clock::now() + absl::ToChronoNanoseconds(options_.renew_every);
      while (!stop_ && changed_.WaitUntil(&mutex_, until)) {
      }
      if (stop_) return;
      due = held_;
    }
    for (const HeldPtr& held : due) {
      {
        MutexLock lock(&mutex_);
        if (stop_) return;
        // A commit under way renews it.
        if (held->writing || held->released || held->lost) continue;
        held->writing = true;
      }
      Write(*held, /*release=*/false);
      EndWriting(*held);
    }
  }
}

}  // namespace mneme::server
