// Limits that no setting changes; GetServerInfo reports them beside those that one does.
#pragma once

#include <cstddef>

namespace mneme::server {

inline constexpr size_t kMaxFrameBytes = 1 << 20;  // of ingest, export and import
inline constexpr int kMaxPageSize = 1000;          // of lists; more is coerced
inline constexpr int kMaxBatchSessions = 1000;     // of BatchDeleteSessions
inline constexpr int kMaxForkChildren = 64;        // of one ForkSession
// Of a session, beside its automatic ones: each is a reference in the session's record.
inline constexpr int kMaxKeptSnapshots = 256;

}  // namespace mneme::server
