// Create, Get, List, Update, Delete, Undelete: sessions without a forward pass.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "mneme/v1/sessions.pb.h"
#include "server/core/errors.h"
#include "server/core/parts.h"

namespace mneme::server {

// As clients see it.
absl::StatusOr<v1::Session> ToProto(Parts& parts, SessionRecord record);
// Several of one tenant, which cost the store no more questions than one.
absl::StatusOr<std::vector<v1::Session>> ToProtos(Parts& parts,
                                                  std::vector<SessionRecord>& records);

// A session that is to be made, as a request describes it: everything but its model and its head.
// What is wrong is reported to `errors`.
SessionRecord NewRecord(const CallContext& context, const std::string& session_id,
                        const v1::Session& session, FieldErrors& errors);
// It is of this model.
void SetModel(const Model& model, storage::StoredSession& data);
// ALREADY_EXISTS SESSION_EXISTS, as it would be if `name` were created now.
absl::Status CheckNameIsFree(Parts& parts, const SessionName& name);

absl::StatusOr<v1::Session> CreateSession(Parts& parts, CallContext& context,
                                          const v1::CreateSessionRequest& request);
absl::StatusOr<v1::Session> GetSession(Parts& parts, CallContext& context,
                                       const v1::GetSessionRequest& request);
absl::StatusOr<v1::ListSessionsResponse> ListSessions(Parts& parts, CallContext& context,
                                                      const v1::ListSessionsRequest& request);
absl::StatusOr<v1::Session> UpdateSession(Parts& parts, CallContext& context,
                                          const v1::UpdateSessionRequest& request);
struct DeleteOptions {
  std::string etag;
  bool force = false;
  bool purge = false;
};
// What DeleteSession does.
absl::StatusOr<v1::Session> Delete(Parts& parts, CallContext& context, const SessionName& name,
                                   const DeleteOptions& options);
absl::StatusOr<v1::Session> DeleteSession(Parts& parts, CallContext& context,
                                          const v1::DeleteSessionRequest& request);
absl::StatusOr<v1::Session> UndeleteSession(Parts& parts, CallContext& context,
                                            const v1::UndeleteSessionRequest& request);

// batch_delete.cc
absl::StatusOr<v1::BatchDeleteSessionsResponse> BatchDeleteSessions(
    Parts& parts, CallContext& context, const v1::BatchDeleteSessionsRequest& request);

// fork_rewind.cc
absl::StatusOr<v1::ForkSessionResponse> ForkSession(Parts& parts, CallContext& context,
                                                    const v1::ForkSessionRequest& request);
absl::StatusOr<v1::RewindSessionResponse> RewindSession(Parts& parts, CallContext& context,
                                                        const v1::RewindSessionRequest& request);

// Deletes what has expired and purges what is due, up to `limit` sessions; those that are busy
// wait. Returns how many it dealt with.
int SweepSessions(Parts& parts, int limit);

}  // namespace mneme::server
