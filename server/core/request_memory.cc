#include "server/core/request_memory.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <stop_token>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/core/status_macros.h"
#include "server/core/cancel_status.h"
#include "server/core/errors.h"

namespace mneme::server {
namespace {

// What an answer takes beside its bytes, about.
constexpr int64_t kOverheadBytes = 256;

bool IsUuid4(const std::string& id) {
  static constexpr std::string_view kForm = "xxxxxxxx-xxxx-4xxx-vxxx-xxxxxxxxxxxx";
  if (id.size() != kForm.size()) return false;
  for (size_t i = 0; i < id.size(); ++i) {
    const char c = id[i];
    const bool fits = kForm[i] == 'x'   ? absl::ascii_isxdigit(static_cast<unsigned char>(c))
                      : kForm[i] == 'v' ? std::string_view("89abAB").find(c) != std::string::npos
                                        : c == kForm[i];
    if (!fits) return false;
  }
  return true;
}

// The same for the same request, whatever order its maps are in.
std::string PayloadOf(const google::protobuf::Message& request) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    request.SerializeToCodedStream(&coded);
  }
  const auto hash =
      memstore::HashChunk(absl::StrCat(request.GetDescriptor()->full_name(), " ", bytes));
  return {reinterpret_cast<const char*>(hash.data()), hash.size()};
}

std::string KeyOf(const std::string& tenant, const std::string& id) {
  return absl::StrCat(tenant, "/", id);
}

}  // namespace

absl::Status RequestIdReused() {
  FieldErrors errors;
  errors.Add("request_id", "was used by another request; make a new one for each",
             reason::kRequestIdReused);
  return errors.ToStatus();
}

absl::StatusOr<RequestMemory::Outcome> RequestMemory::Begin(
    CallContext& context, const std::string& id, const google::protobuf::Message& request,
    bool in_store) {
  if (id.empty()) return Outcome();
  if (!IsUuid4(id)) {
    FieldErrors errors;
    errors.Add("request_id", "must be a UUID of version 4");
    return errors.ToStatus();
  }
  context.request = {.id = absl::AsciiStrToLower(id), .payload = PayloadOf(request)};
  const std::string key = KeyOf(context.tenant, context.request.id);
  {
    std::stop_callback on_cancel(context.stop_token(), [this] {
      MutexLock lock(&mutex_);
      changed_.NotifyAll();
    });
    MutexLock lock(&mutex_);
    Prune(tenants_[context.tenant]);
    while (true) {
      const auto [it, is_new] = entries_.try_emplace(key);
      Entry& entry = it->second;
      if (is_new) {
        entry.payload = context.request.payload;
        break;
      }
      if (entry.payload != context.request.payload) return RequestIdReused();
      if (entry.answer) return Outcome{.answer = entry.answer};
      MNEME_RETURN_IF_ERROR(CancelStatus(context.cancelled()));
      changed_.WaitUntil(&mutex_, context.deadline);
    }
  }
  Outcome outcome{.claim = Claim(this, key)};
  if (in_store) {
    MNEME_ASSIGN_OR_RETURN(outcome.done, sessions_.FindRequest(context.tenant, context.request.id));
    if (outcome.done && outcome.done->payload() != context.request.payload)
      return RequestIdReused();
  }
  return outcome;
}

std::optional<std::string> RequestMemory::Find(const std::string& tenant,
                                               const std::string& id) const {
  MutexLock lock(&mutex_);
  const auto found = entries_.find(KeyOf(tenant, absl::AsciiStrToLower(id)));
  return found == entries_.end() ? std::nullopt : found->second.answer;
}

void RequestMemory::Forget(const CallContext& context) {
  if (!context.request.id.empty()) End(KeyOf(context.tenant, context.request.id), std::nullopt);
}

void RequestMemory::End(const std::string& key, std::optional<std::string> answer) {
  MutexLock lock(&mutex_);
  const auto found = entries_.find(key);
  if (found == entries_.end()) return;
  Tenant& tenant = tenants_[key.substr(0, key.find('/'))];
  if (found->second.answer) {
    tenant.bytes -= static_cast<int64_t>(found->second.answer->size()) + kOverheadBytes;
  }
  if (answer) {
    tenant.bytes += static_cast<int64_t>(answer->size()) + kOverheadBytes;
    found->second.answer = std::move(answer);
    found->second.answered = absl::Now();
    tenant.order.emplace_back(key, found->second.answered);
    Prune(tenant);
  } else {
    entries_.erase(found);
  }
  changed_.NotifyAll();
}

void RequestMemory::Prune(Tenant& tenant) {
  const absl::Time old = absl::Now() - kKeep;
  while (!tenant.order.empty() &&
         (tenant.order.front().second <= old || tenant.bytes > kKeepBytes)) {
    const auto found = entries_.find(tenant.order.front().first);
    // It may have been forgotten, and asked again, since.
    if (found != entries_.end() && found->second.answer &&
        found->second.answered == tenant.order.front().second) {
      tenant.bytes -= static_cast<int64_t>(found->second.answer->size()) + kOverheadBytes;
      entries_.erase(found);
    }
    tenant.order.pop_front();
  }
}

void AddRequestMark(const CallContext& context, const std::vector<SessionName>& sessions,
                    int64_t version, std::vector<memstore::Put>& puts, std::string_view snapshot) {
  if (context.request.id.empty()) return;
  storage::StoredRequest mark;
  mark.set_payload(context.request.payload);
  for (const SessionName& name : sessions) mark.add_sessions(name.session);
  mark.set_version(version);
  mark.set_snapshot(std::string(snapshot));
  mark.set_generation(context.request.generation);
  puts.push_back(SessionStore::RequestPut(context.tenant, context.request.id, mark,
                                          absl::Now() + RequestMemory::kKeep));
}

}  // namespace mneme::server
