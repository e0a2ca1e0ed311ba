// What mutating calls were answered, by the request_id that their callers gave them: a call that is
// sent again is answered again, and not done again.
//
// The answers are in this process. That a call was done is in the store as well, written by the
// same transaction as what it did (AddRequestMark), so that no restart and no other server of a
// shared store does it twice either; then the answer is made anew from what the call was about.
#pragma once

#include <google/protobuf/message.h>

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/core/mutex.h"
#include "memstore/state_store.h"
#include "server/core/call_context.h"
#include "server/core/session_store.h"
#include "server/core/storage.pb.h"

namespace mneme::server {

// Thread-safe.
class RequestMemory {
 public:
  static constexpr absl::Duration kKeep = absl::Minutes(10);
  static constexpr int64_t kKeepBytes = 16
                                        << 20;  // of answers of each tenant; the oldest goes first

  explicit RequestMemory(const SessionStore& sessions) : sessions_(sessions) {}

  // The duty to answer a call. Without an answer, another call may do what this one did not.
  class Claim {
   public:
    Claim() = default;
    Claim(RequestMemory* memory, std::string key) : memory_(memory), key_(std::move(key)) {}
    Claim(Claim&& other) noexcept
        : memory_(std::exchange(other.memory_, nullptr)), key_(std::move(other.key_)) {}
    Claim& operator=(Claim&& other) noexcept {
      std::swap(memory_, other.memory_);
      std::swap(key_, other.key_);
      return *this;
    }
    ~Claim() {
      if (memory_ != nullptr) memory_->End(key_, std::nullopt);
    }
    void Answer(std::string answer) {
      if (auto* memory = std::exchange(memory_, nullptr)) memory->End(key_, std::move(answer));
    }

   private:
    RequestMemory* memory_ = nullptr;
    std::string key_;
  };
  // The first that is there: an answer to give, or what is known to have been done; else the call
  // is to be done.
  struct Outcome {
    std::optional<std::string> answer;
    std::optional<storage::StoredRequest> done;
    Claim claim;
  };
  // Of a request whose request_id is `id`; without one there is nothing to remember. Waits while
  // another call with this id is being answered. `in_store`: whether the call writes to the store.
  // INVALID_ARGUMENT FIELD_INVALID for what is no UUID, REQUEST_ID_REUSED if another request had
  // the id. `context` must outlive what the call writes: it carries the mark.
  absl::StatusOr<Outcome> Begin(CallContext& context, const std::string& id,
                                const google::protobuf::Message& request, bool in_store);
  // The answer, if there is one in this process.
  std::optional<std::string> Find(const std::string& tenant, const std::string& id) const;
  // An answer turned out to be none.
  void Forget(const CallContext& context);

 private:
  struct Entry {
    std::string payload;
    std::optional<std::string> answer;
    absl::Time answered;
  };
  struct Tenant {
    std::deque<std::pair<std::string, absl::Time>> order;  // keys, as they were answered
    int64_t bytes = 0;
  };

  void End(const std::string& key, std::optional<std::string> answer);
  void Prune(Tenant& tenant) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const SessionStore& sessions_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::map<std::string, Entry> entries_ ABSL_GUARDED_BY(mutex_);  // by tenant/id
  std::map<std::string, Tenant> tenants_ ABSL_GUARDED_BY(mutex_);
};

// INVALID_ARGUMENT REQUEST_ID_REUSED.
absl::Status RequestIdReused();

// The put that says that the call of `context` was done, if it has a request_id: `sessions` are
// their names, `version` is that of a turn, `snapshot` the id of one of the only session's.
void AddRequestMark(const CallContext& context, const std::vector<SessionName>& sessions,
                    int64_t version, std::vector<memstore::Put>& puts,
                    std::string_view snapshot = "");

}  // namespace mneme::server
