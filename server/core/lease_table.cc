#include "server/core/lease_table.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
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

bool Parse(const memstore::Record& record, storage::StoredLease& lease) {
  return lease.ParseFromString(record.value);
}

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

absl::StatusOr<LeaseTable::Lease> LeaseTable::Take(const SessionName& name, CallContext& holder) {
  for (int attempt = 0;; ++attempt) {
    storage::StoredLease found;
    int64_t version = 0;
    auto record = store_.Get(KeyOf(name));
    if (record.ok()) {
      version = record->version;
      if (!Parse(*record, found)) return absl::DataLossError("a lease's record cannot be read");
      const bool free = found.owner().empty() || found.owner() == options_.owner;
      if (!free && absl::FromUnixMicros(found.end_time_us()) > absl::Now()) {
        absl::Status taken = absl::AbortedError("another server has the lease");
        taken.SetPayload(kOwnerPayload, absl::Cord(found.owner()));
        return taken;
      }
    } else if (!absl::IsNotFound(record.status())) {
      return record.status();
    }
    auto held = std::make_shared<Held>();
    held->name = name;
    held->holder = &holder;
    held->version = version;
    held->epoch = found.epoch() + 1;
    const memstore::Transaction transaction{.puts = {PutOf(*held, false)}, .sync = false};
    const absl::Status status = store_.Commit(transaction);
    if (status.ok()) {
      const bool was_others = !found.owner().empty() && found.owner() != options_.owner;
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

std::string LeaseTable::OwnerElsewhere(const SessionName& name) const {
  auto record = store_.Get(KeyOf(name));
  storage::StoredLease lease;
  if (!record.ok() || !Parse(*record, lease) || lease.owner() == options_.owner ||
      absl::FromUnixMicros(lease.end_time_us()) <= absl::Now()) {
    return "";
  }
  return lease.owner();
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
  auto record = store_.Get(KeyOf(held.name));
  storage::StoredLease lease;
  if (absl::IsNotFound(record.status())) return Lose(held);  // purged with its session
  if (!record.ok() || !Parse(*record, lease)) return;        // the next write asks again
  if (lease.epoch() != held.epoch) return Lose(held);
  held.version = record->version;
  held.released = lease.owner().empty();
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
    Learn(*held, store_.Commit({.puts = {PutOf(*held, true)}, .sync = false}));
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
      const memstore::Transaction transaction{.puts = {PutOf(*held, false)}, .sync = false};
      Learn(*held, store_.Commit(transaction));
      EndWriting(*held);
    }
  }
}

}  // namespace mneme::server
