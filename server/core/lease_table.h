// Who writes which session, where several servers share a store.
//
// A lease is a record beside the session's: its owner, an epoch, and when it ends. Taking one
// raises the epoch. Whatever the owner then writes to the session carries the lease's record along,
// at the version that the owner knows: a store in which somebody has taken the lease since refuses
// it (fencing). So clocks decide when a lease may be taken over, and never whether a late write
// counts. tests/formal/lease.pml is this protocol, checked in all orders of two servers' steps.
//
// A server that cannot renew a lease in time ends the call that holds it: CallContext's
// lease_deadline, which lies on the steady clock before the lease's end.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/core/mutex.h"
#include "memstore/state_store.h"
#include "server/core/call_context.h"
#include "server/core/metrics.h"
#include "server/core/session_names.h"
#include "server/core/storage.pb.h"

namespace mneme::server {

class LeaseTable {
  struct Held;

 public:
  struct Options {
    std::string owner;  // NAME/PROCESS: for people, and what no other has
    absl::Duration ttl = absl::Seconds(15);
    absl::Duration renew_every = absl::Seconds(5);
  };
  // `store` must outlive this, this must outlive its leases.
  LeaseTable(memstore::StateStore& store, Options options, Metrics& metrics);
  ~LeaseTable();

  // Given back when destroyed. An empty one holds nothing and fences nothing.
  class Lease {
   public:
    Lease() = default;
    Lease(Lease&& other) noexcept
        : table_(std::exchange(other.table_, nullptr)), held_(std::move(other.held_)) {}
    Lease& operator=(Lease&& other) noexcept {
      Release();
      table_ = std::exchange(other.table_, nullptr);
      held_ = std::move(other.held_);
      return *this;
    }
    ~Lease() { Release(); }
    void Release();
    int64_t epoch() const;  // 0: of an empty one

    // Around a commit by the session's writer: Fence makes `transaction` fail unless the lease is
    // still ours, and renews it, or gives it back with the same write if `release`. ABORTED
    // LEASE_LOST if it is known to be lost. Settle is told how the commit ended, and returns that:
    // or LEASE_LOST, if that was why.
    absl::Status Fence(memstore::Transaction& transaction, bool release);
    absl::Status Settle(absl::Status committed);

   private:
    friend class LeaseTable;
    Lease(LeaseTable* table, std::shared_ptr<Held> held) : table_(table), held_(std::move(held)) {}
    LeaseTable* table_ = nullptr;
    std::shared_ptr<Held> held_;
  };

  // For who has the session to himself within this server. `holder` must outlive the lease.
  // ABORTED, without a reason, and the owner's name in kOwnerPayload while another server has it;
  // else an error of the store.
  absl::StatusOr<Lease> Take(const SessionName& name, CallContext& holder);
  // Of one tenant's sessions those that another server has; none if the store cannot tell. One
  // question to the store.
  std::set<std::string> HeldElsewhere(const std::string& tenant,
                                      const std::vector<std::string>& sessions) const;

  static memstore::Key KeyOf(const SessionName& name);
  // Of a lease's record, as Expired returns it.
  static bool IsLease(const memstore::Key& key);

  static constexpr char kOwnerPayload[] = "mneme.server/lease_owner";

 private:
  // What we know of one lease's record. Of its fields, a call that set `writing` may change those
  // below it, without the lock, until it clears it.
  struct Held {
    SessionName name;
    CallContext* holder = nullptr;
    bool writing = false;
    int64_t version = 0;  // of the record
    int64_t epoch = 0;
    bool lost = false;
    bool released = false;
    // Of a transaction under way.
    bool releasing = false;
    CallContext::Clock::time_point good_until;
  };
  using HeldPtr = std::shared_ptr<Held>;

  void BeginWriting(Held& held) ABSL_LOCKS_EXCLUDED(mutex_);
  void EndWriting(Held& held) ABSL_LOCKS_EXCLUDED(mutex_);
  // NOT_FOUND if there is none.
  struct Found {
    storage::StoredLease lease;
    int64_t version = 0;  // of the record
  };
  absl::StatusOr<Found> Read(const SessionName& name) const;
  bool IsElsewhere(const storage::StoredLease& lease) const;
  memstore::Put PutOf(Held& held, bool release) const;
  // The lease's record alone.
  void Write(Held& held, bool release);
  // After a write of `held`'s record that ended with `committed`.
  void Learn(Held& held, const absl::Status& committed);
  void Lose(Held& held);
  void Return(const HeldPtr& held);
  void RenewAll();

  memstore::StateStore& store_;
  const Options options_;
  Metrics& metrics_;

  Mutex mutex_;
  CondVar changed_;
  std::vector<HeldPtr> held_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread renewer_;
};

}  // namespace mneme::server
