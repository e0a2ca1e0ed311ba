#include "server/core/sessions.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/state/snapshot.h"
#include "server/core/cancel_status.h"
#include "server/core/errors.h"
#include "server/core/model_mismatch.h"
#include "server/core/resource_id.h"
#include "server/core/session_fields.h"
#include "server/core/session_filter.h"
#include "server/core/session_names.h"
#include "server/core/transcript.h"

namespace mneme::server {
namespace {

// How long a forced delete waits for the turn it has cancelled, if the caller sets no deadline.
constexpr auto kForceWait = std::chrono::seconds(30);

absl::Status CheckEtag(Parts& parts, const std::string& etag, const SessionRecord& record) {
  if (etag.empty() || etag == EtagOf(record)) return absl::OkStatus();
  return VersionMismatch(record, parts.metrics);
}

// `elsewhere`: another server writes it.
v1::Session ToProto(Parts& parts, const SessionRecord& record, bool elsewhere) {
  const storage::StoredSession& data = record.data;
  const storage::Point& head = data.head();
  const std::string key = CacheKey(record.name);
  const Lifecycle life = parts.sessions->LifecycleOf(data, absl::Now());
  const bool running = elsewhere || parts.writers.IsHeld(key);
  v1::Session out;
  out.set_name(record.name.str());
  out.set_uid(data.uid());
  out.set_display_name(data.display_name());
  *out.mutable_labels() = data.labels();
  out.set_model(data.model());
  out.set_model_fingerprint(absl::BytesToHexString(data.model_fingerprint()));
  out.set_state(life.deleted     ? v1::Session::DELETED
                : running        ? v1::Session::RUNNING
                : data.damaged() ? v1::Session::DAMAGED
                                 : v1::Session::ACTIVE);
  out.set_residency(running || parts.states.Contains(key, head.version()) ? v1::Session::HOST
                                                                          : v1::Session::STORE);
  out.set_version(head.version());
  out.set_etag(EtagOf(record));
  out.set_position_tokens(head.position_tokens());
  if (auto found = parts.models->models().find(data.model());
      found != parts.models->models().end()) {
    out.set_state_bytes(
        static_cast<int64_t>(found->second->engine->schema().StateBytes(head.position_tokens())));
  }
  out.set_stored_bytes(data.stored_bytes());
  out.set_transcript(data.no_transcript() ? v1::Session::NONE : v1::Session::TOKENS);
  out.set_durability(data.async() ? v1::Session::ASYNC : v1::Session::SYNC);
  out.mutable_snapshot_policy()->set_at_turn_end(data.snapshot_at_turn_end());
  out.mutable_snapshot_policy()->set_max_count(data.snapshot_max_count());
  if (data.expire_time_us() != 0) SetTimestamp(data.expire_time_us(), out.mutable_expire_time());
  if (data.idle_ttl_us() != 0) {
    out.mutable_idle_ttl()->set_seconds(data.idle_ttl_us() / 1'000'000);
    out.mutable_idle_ttl()->set_nanos(static_cast<int32_t>(data.idle_ttl_us() % 1'000'000 * 1000));
  }
  SetTimestamp(data.create_time_us(), out.mutable_create_time());
  SetTimestamp(data.update_time_us(), out.mutable_update_time());
  SetTimestamp(data.last_used_time_us(), out.mutable_last_used_time());
  if (life.deleted) {
    SetTimestamp(life.delete_time_us, out.mutable_delete_time());
    SetTimestamp(life.purge_time_us, out.mutable_purge_time());
  }
  out.set_parent(data.parent());
  out.set_parent_version(data.parent_version());
  return out;
}

// After a change that leaves the session in its place.
absl::StatusOr<v1::Session> ToProtoOf(Parts& parts, absl::StatusOr<SessionRecord> record) {
  if (!record.ok()) return record.status();
  return ToProto(parts, *std::move(record));
}

}  // namespace

absl::StatusOr<std::vector<v1::Session>> ToProtos(Parts& parts,
                                                  std::vector<SessionRecord>& records) {
  std::vector<v1::Session> out;
  if (records.empty()) return out;
  MNEME_RETURN_IF_ERROR(parts.sessions->CountBytes(records));
  std::set<std::string> elsewhere;
  if (const LeaseTable* leases = parts.sessions->leases()) {
    std::vector<std::string> names;
    for (const SessionRecord& record : records) names.push_back(record.name.session);
    elsewhere = leases->HeldElsewhere(records[0].name.tenant, names);
  }
  for (const SessionRecord& record : records) {
    out.push_back(ToProto(parts, record, elsewhere.contains(record.name.session)));
  }
  return out;
}

absl::StatusOr<v1::Session> ToProto(Parts& parts, SessionRecord record) {
  std::vector<SessionRecord> records;
  records.push_back(std::move(record));
  MNEME_ASSIGN_OR_RETURN(std::vector<v1::Session> sessions, ToProtos(parts, records));
  return std::move(sessions[0]);
}

SessionRecord NewRecord(const CallContext& context, const std::string& session_id,
                        const v1::Session& session, FieldErrors& errors) {
  if (!session_id.empty() && !IsValidId(session_id)) {
    errors.Add("session_id", "must match ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$");
  }
  SessionRecord record;
  storage::StoredSession& data = record.data;
  SetDisplayName(session, data, errors);
  SetLabels(session, data, errors);
  SetSnapshotPolicy(session, data, errors);
  SetExpiration(session, data, errors);
  SetIdleTtl(session, data, errors);
  if (!v1::Session::Transcript_IsValid(session.transcript())) {
    errors.Add("session.transcript", "is not one of the values of Transcript");
  }
  if (!v1::Session::Durability_IsValid(session.durability())) {
    errors.Add("session.durability", "is not one of the values of Durability");
  }
  record.name = {context.tenant, session_id.empty() ? MakeSessionId() : session_id};
  data.set_uid(MakeUid());
  data.set_no_transcript(session.transcript() == v1::Session::NONE);
  data.set_async(session.durability() == v1::Session::ASYNC);
  const int64_t now = NowMicros();
  data.set_create_time_us(now);
  data.set_update_time_us(now);
  data.set_last_used_time_us(now);
  data.mutable_head()->set_last_token(-1);
  return record;
}

void SetModel(const Model& model, storage::StoredSession& data) {
  data.set_model(model.name);
  data.set_model_fingerprint(model.engine->model_fingerprint());
  *data.mutable_checkpoint() = CheckpointInfoOf(model.info);
}

absl::Status CheckNameIsFree(Parts& parts, const SessionName& name) {
  auto taken = parts.sessions->Get(name);
  if (taken.ok()) {
    return WithResource(Error(absl::StatusCode::kAlreadyExists, reason::kSessionExists,
                              "a session with this id exists; choose another id"),
                        "mneme.v1.Session", name.str());
  }
  return absl::IsNotFound(taken.status()) ? absl::OkStatus() : taken.status();
}

absl::StatusOr<v1::Session> CreateSession(Parts& parts, CallContext& context,
                                          const v1::CreateSessionRequest& request) {
  MNEME_RETURN_IF_ERROR(CheckNotDraining(parts));
  MNEME_RETURN_IF_ERROR(CheckTenantName(request.parent(), "parent", context.tenant));
  FieldErrors errors;
  SessionRecord record = NewRecord(context, request.session_id(), request.session(), errors);
  MNEME_RETURN_IF_ERROR(errors.ToStatus());
  MNEME_ASSIGN_OR_RETURN(const Model* model,
                         parts.models->Find(context, request.session().model(), "session.model"));
  SetModel(*model, record.data);
  MNEME_ASSIGN_OR_RETURN(const TenantStorage::Claim claim,
                         parts.storage->Take(context, {.sessions = 1}));
  if (request.validate_only()) {
    MNEME_RETURN_IF_ERROR(CheckNameIsFree(parts, record.name));
    return ToProto(parts, record);
  }
  std::vector<memstore::Put> mark;
  AddRequestMark(context, {record.name}, 0, mark);
  std::vector<SessionRecord> records = {std::move(record)};
  MNEME_RETURN_IF_ERROR(parts.sessions->Create(records, mark));
  return ToProto(parts, std::move(records[0]));
}

absl::StatusOr<v1::Session> GetSession(Parts& parts, CallContext& context,
                                       const v1::GetSessionRequest& request) {
  MNEME_ASSIGN_OR_RETURN(const SessionName name,
                         ParseSessionName(request.name(), "name", context.tenant));
  return ToProtoOf(parts, parts.sessions->Get(name));
}

absl::StatusOr<v1::ListSessionsResponse> ListSessions(Parts& parts, CallContext& context,
                                                      const v1::ListSessionsRequest& request) {
  MNEME_RETURN_IF_ERROR(CheckTenantName(request.parent(), "parent", context.tenant));
  MNEME_ASSIGN_OR_RETURN(const int page_size, PageSize(request.page_size()));
  MNEME_ASSIGN_OR_RETURN(const SessionFilter filter, SessionFilter::Parse(request.filter()));
  const std::string scope = absl::StrCat("sessions ", context.tenant, " ",
                                         request.show_deleted() ? 1 : 0, " ", request.filter());
  std::string start_after;
  if (!request.page_token().empty()) {
    MNEME_ASSIGN_OR_RETURN(start_after, ReadPageToken(scope, request.page_token()));
  }
  v1::ListSessionsResponse response;
  std::string last;
  do {
    MNEME_ASSIGN_OR_RETURN(auto records,
                           parts.sessions->List(context.tenant, start_after, page_size + 1, last));
    MNEME_ASSIGN_OR_RETURN(std::vector<v1::Session> sessions, ToProtos(parts, records));
    for (v1::Session& session : sessions) {
      if (session.state() == v1::Session::DELETED && !request.show_deleted()) continue;
      if (!filter.Matches(session)) continue;
      if (response.sessions_size() == page_size) {
        const std::string& name = response.sessions(page_size - 1).name();
        response.set_next_page_token(MakePageToken(scope, name.substr(name.find_last_of('/') + 1)));
        return response;
      }
      *response.add_sessions() = std::move(session);
    }
    start_after = last;
  } while (!last.empty() && context.cancelled() == CallContext::Cancel::kNone);
  MNEME_RETURN_IF_ERROR(CancelStatus(context.cancelled()));
  return response;
}

absl::StatusOr<v1::Session> UpdateSession(Parts& parts, CallContext& context,
                                          const v1::UpdateSessionRequest& request) {
  MNEME_RETURN_IF_ERROR(CheckNotDraining(parts));
  const v1::Session& session = request.session();
  MNEME_ASSIGN_OR_RETURN(const SessionName name,
                         ParseSessionName(session.name(), "session.name", context.tenant));
  using Setter = void (*)(const v1::Session&, storage::StoredSession&, FieldErrors&);
  static const std::map<std::string, Setter> kSetters = {{"display_name", SetDisplayName},
                                                         {"labels", SetLabels},
                                                         {"snapshot_policy", SetSnapshotPolicy},
                                                         {"expire_time", SetExpiration},
                                                         {"ttl", SetExpiration},
                                                         {"idle_ttl", SetIdleTtl}};
  FieldErrors errors;
  std::vector<Setter> setters;
  if (request.update_mask().paths_size() == 0) {
    errors.Add("update_mask", "is required", reason::kFieldRequired);
  }
  storage::StoredSession scratch;
  for (const std::string& path : request.update_mask().paths()) {
    const auto found = kSetters.find(path);
    if (found == kSetters.end()) {
      errors.Add("update_mask",
                 "can name display_name, labels, snapshot_policy, expire_time, ttl and idle_ttl");
      continue;
    }
    if (path == "ttl" && !session.has_ttl()) {
      errors.Add("session.ttl", "is required by update_mask", reason::kFieldRequired);
      continue;
    }
    setters.push_back(found->second);
    found->second(session, scratch, errors);
  }
  MNEME_RETURN_IF_ERROR(errors.ToStatus());
  return ToProtoOf(
      parts, parts.sessions->Update(name, [&](SessionRecord& record, SessionStore::Change& change) {
        MNEME_RETURN_IF_ERROR(parts.sessions->GetUsable(name, true).status());
        MNEME_RETURN_IF_ERROR(CheckEtag(parts, session.etag(), record));
        FieldErrors none;  // checked above
        for (Setter set : setters) set(session, record.data, none);
        AddRequestMark(context, {name}, 0, change.puts);
        record.data.set_update_time_us(NowMicros());
        return absl::OkStatus();
      }));
}

absl::StatusOr<v1::Session> Delete(Parts& parts, CallContext& context, const SessionName& name,
                                   const DeleteOptions& options) {
  // What is deleted already can still be purged.
  const auto find = [&] {
    return options.purge ? parts.sessions->Get(name) : parts.sessions->GetUsable(name, false);
  };
  MNEME_ASSIGN_OR_RETURN(const SessionRecord record, find());
  MNEME_RETURN_IF_ERROR(CheckEtag(parts, options.etag, record));

  const std::string key = CacheKey(name);
  const auto give_up = std::min(context.deadline, CallContext::Clock::now() + kForceWait);
  auto writer = TakeWriter(parts, context, name, false);
  while (!writer.ok() && options.force && ReasonOf(writer.status()) == reason::kSessionBusy &&
         CallContext::Clock::now() < give_up) {
    // Whoever waits behind the running turn is cancelled as well when it gets its chance.
    parts.writers.CancelHolder(key);
    MNEME_RETURN_IF_ERROR(CancelStatus(context.cancelled()));
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    writer = TakeWriter(parts, context, name, false);
  }
  if (!writer.ok()) return writer.status();

  const int64_t window_us = options.purge ? 0 : parts.config.sessions.undelete_window_ms * 1000;
  const auto mark_deleted = [&](SessionRecord& current, SessionStore::Change& change) {
    AddRequestMark(context, {name}, 0, change.puts);
    MNEME_RETURN_IF_ERROR(find().status());
    // What a forced delete cancelled may have been committed: then the etag is an older one.
    if (!options.force) MNEME_RETURN_IF_ERROR(CheckEtag(parts, options.etag, current));
    const int64_t now = NowMicros();
    if (current.data.delete_time_us() == 0) current.data.set_delete_time_us(now);
    // Undelete is refused from purge_time on; the record is purged below or by the sweeper.
    current.data.set_purge_time_us(now + window_us);
    current.data.set_update_time_us(now);
    return absl::OkStatus();
  };
  auto deleted = parts.sessions->Update(name, mark_deleted, {}, writer->lease, /*last_write=*/true);
  if (!deleted.ok()) return deleted.status();
  parts.states.Drop(key);
  writer->Release();
  MNEME_ASSIGN_OR_RETURN(v1::Session session, ToProto(parts, *deleted));
  if (window_us == 0) {
    parts.prefixes.Drop(name.tenant);  // one may have read what the session has
    MNEME_RETURN_IF_ERROR(parts.sessions->Purge(name));
  }
  return session;
}

absl::StatusOr<v1::Session> DeleteSession(Parts& parts, CallContext& context,
                                          const v1::DeleteSessionRequest& request) {
  MNEME_RETURN_IF_ERROR(CheckNotDraining(parts));
  MNEME_ASSIGN_OR_RETURN(const SessionName name,
                         ParseSessionName(request.name(), "name", context.tenant));
  return Delete(parts, context, name,
                {.etag = request.etag(), .force = request.force(), .purge = request.purge()});
}

absl::StatusOr<v1::Session> UndeleteSession(Parts& parts, CallContext& context,
                                            const v1::UndeleteSessionRequest& request) {
  MNEME_RETURN_IF_ERROR(CheckNotDraining(parts));
  MNEME_ASSIGN_OR_RETURN(const SessionName name,
                         ParseSessionName(request.name(), "name", context.tenant));
  MNEME_ASSIGN_OR_RETURN(SessionRecord seen, parts.sessions->Get(name));
  if (!parts.sessions->LifecycleOf(seen.data, absl::Now()).deleted) return ToProto(parts, seen);
  return ToProtoOf(
      parts, parts.sessions->Update(name, [&](SessionRecord& record, SessionStore::Change& change) {
        AddRequestMark(context, {name}, 0, change.puts);
        storage::StoredSession& data = record.data;
        const int64_t now = NowMicros();
        data.clear_delete_time_us();
        data.clear_purge_time_us();
        if (data.expire_time_us() <= now) data.clear_expire_time_us();
        data.set_last_used_time_us(now);  // idle_ttl starts again
        data.set_update_time_us(now);
        return absl::OkStatus();
      }));
}

int SweepSessions(Parts& parts, int limit) {
  const absl::Time now = absl::Now();
  auto due = parts.sessions->Due(now, limit);
  if (!due.ok()) return 0;
  int done = 0;
  for (const SessionName& name : *due) {
    CallContext context;
    auto writer = TakeWriter(parts, context, name, false);
    if (!writer.ok()) continue;
    auto record = parts.sessions->Get(name);
    if (absl::IsNotFound(record.status())) {
      if (!parts.sessions->Purge(name).ok()) continue;
      parts.prefixes.Drop(name.tenant);
    } else if (record.ok()) {
      auto updated =
          parts.sessions->Update(name, [&](SessionRecord& current, SessionStore::Change&) {
            const Lifecycle life = parts.sessions->LifecycleOf(current.data, now);
            if (!life.deleted || current.data.delete_time_us() != 0) {
              return absl::CancelledError("nothing to do");
            }
            current.data.set_delete_time_us(life.delete_time_us);
            current.data.set_purge_time_us(life.purge_time_us);
            return absl::OkStatus();
          });
      if (!updated.ok()) continue;
    } else {
      continue;
    }
    parts.states.Drop(CacheKey(name));
    ++done;
  }
  return done;
}

}  // namespace mneme::server
