// The fields of a Session that a client may set: their limits, and how they are stored.
#pragma once

#include "mneme/v1/resources.pb.h"
#include "server/core/errors.h"
#include "server/core/storage.pb.h"

namespace mneme::server {

// Each checks one field of `session`, reporting under "session.", and puts it into `out`.
void SetDisplayName(const v1::Session& session, storage::StoredSession& out, FieldErrors& errors);
void SetLabels(const v1::Session& session, storage::StoredSession& out, FieldErrors& errors);
void SetSnapshotPolicy(const v1::Session& session, storage::StoredSession& out,
                       FieldErrors& errors);
void SetExpiration(const v1::Session& session, storage::StoredSession& out, FieldErrors& errors);
void SetIdleTtl(const v1::Session& session, storage::StoredSession& out, FieldErrors& errors);

// That of a request: not negative.
void CheckExpectedVersion(int64_t expected, FieldErrors& errors);

void SetTimestamp(int64_t micros, google::protobuf::Timestamp* out);

}  // namespace mneme::server
