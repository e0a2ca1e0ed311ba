// BatchDeleteSessions.
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "server/core/cancel_status.h"
#include "server/core/errors.h"
#include "server/core/limits.h"
#include "server/core/session_filter.h"
#include "server/core/session_names.h"
#include "server/core/sessions.h"

namespace mneme::server {
namespace {

// What the call is about: all of it is there, or was a moment ago.
struct Targets {
  std::vector<SessionRecord> records;
  bool more = false;
};

absl::StatusOr<Targets> ByName(Parts& parts, CallContext& context,
                               const v1::BatchDeleteSessionsRequest& request) {
  FieldErrors errors;
  if (request.names_size() > kMaxBatchSessions) {
    errors.Add("names",
               absl::StrCat("must have at most ", kMaxBatchSessions, " entries, has ",
                            request.names_size()),
               reason::kFieldOutOfRange);
    return errors.ToStatus();
  }
  std::vector<SessionName> names;
  std::set<std::string> seen;
  for (int i = 0; i < request.names_size(); ++i) {
    const std::string field = absl::StrCat("names[", i, "]");
    auto name = ParseSessionName(request.names(i), field, context.tenant);
    if (absl::IsPermissionDenied(name.status())) return name.status();
    if (!name.ok()) {
      errors.Add(field,
                 "must be a session's id, or have the form tenants/{tenant}/sessions/{session}");
    } else if (!seen.insert(name->session).second) {
      errors.Add(field, "is given twice");
    } else {
      names.push_back(*std::move(name));
    }
  }
  MNEME_RETURN_IF_ERROR(errors.ToStatus());
  Targets targets;
  for (const SessionName& name : names) {
    auto record =
        request.purge() ? parts.sessions->Get(name) : parts.sessions->GetUsable(name, false);
    if (!record.ok()) return record.status();
    targets.records.push_back(*std::move(record));
  }
  return targets;
}

absl::StatusOr<Targets> ByFilter(Parts& parts, CallContext& context,
                                 const v1::BatchDeleteSessionsRequest& request) {
  MNEME_ASSIGN_OR_RETURN(const SessionFilter filter, SessionFilter::Parse(request.filter()));
  Targets targets;
  std::string start_after, last;
  do {
    MNEME_RETURN_IF_ERROR(CancelStatus(context.cancelled()));
    MNEME_ASSIGN_OR_RETURN(
        auto records, parts.sessions->List(context.tenant, start_after, kMaxBatchSessions, last));
    MNEME_ASSIGN_OR_RETURN(const std::vector<v1::Session> sessions, ToProtos(parts, records));
    for (size_t i = 0; i < records.size(); ++i) {
      const v1::Session& session = sessions[i];
      if (session.state() == v1::Session::DELETED && !request.purge()) continue;
      if (!filter.Matches(session)) continue;
      if (targets.records.size() == kMaxBatchSessions) {
        targets.more = true;
        return targets;
      }
      targets.records.push_back(std::move(records[i]));
    }
    start_after = last;
  } while (!last.empty());
  return targets;
}

}  // namespace

absl::StatusOr<v1::BatchDeleteSessionsResponse> BatchDeleteSessions(
    Parts& parts, CallContext& context, const v1::BatchDeleteSessionsRequest& request) {
  MNEME_RETURN_IF_ERROR(CheckNotDraining(parts));
  MNEME_RETURN_IF_ERROR(CheckTenantName(request.parent(), "parent", context.tenant));
  if (request.names().empty() == request.filter().empty()) {
    FieldErrors errors;
    const bool none = request.filter().empty();
    errors.Add("names",
               none ? "is required, or a filter" : "must be absent where there is a filter",
               none ? reason::kFieldRequired : reason::kFieldInvalid);
    return errors.ToStatus();
  }
  MNEME_ASSIGN_OR_RETURN(const Targets targets, request.names().empty()
                                                    ? ByFilter(parts, context, request)
                                                    : ByName(parts, context, request));
  CallRegistry::Call call(parts.calls, context);
  v1::BatchDeleteSessionsResponse response;
  response.set_more(targets.more);
  for (const SessionRecord& record : targets.records) {
    if (request.validate_only()) {
      MNEME_ASSIGN_OR_RETURN(*response.add_sessions(), ToProto(parts, record));
      continue;
    }
    // Nothing more once the caller has gone; what is deleted is.
    MNEME_RETURN_IF_ERROR(CancelStatus(context.cancelled()));
    auto deleted =
        Delete(parts, context, record.name, {.force = request.force(), .purge = request.purge()});
    if (deleted.ok()) {
      *response.add_sessions() = *std::move(deleted);
      continue;
    }
    auto& failure = *response.add_failures();
    failure.set_name(record.name.str());
    failure.set_code(static_cast<int>(deleted.status().code()));
    failure.set_reason(ReasonOf(deleted.status()));
    failure.set_message(std::string(deleted.status().message()));
  }
  return response;
}

}  // namespace mneme::server
