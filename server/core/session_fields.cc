#include "server/core/session_fields.h"

#include "absl/strings/str_cat.h"
#include "engine/core/utf8.h"
#include "server/core/session_store.h"

namespace mneme::server {
namespace {

constexpr int kMaxDisplayNameBytes = 128;
constexpr int kMaxLabels = 16;
constexpr int kMaxLabelBytes = 63;
constexpr int kMaxSnapshots = 64;
constexpr int64_t kMaxSpanSeconds = int64_t{100} * 366 * 24 * 3600;

// Microseconds of a positive span of at most a century; 0 after reporting a bad one.
int64_t SpanMicros(const google::protobuf::Duration& d, const char* field, FieldErrors& errors) {
  const int64_t us = d.seconds() >= 0 && d.seconds() <= kMaxSpanSeconds && d.nanos() >= 0 &&
                             d.nanos() <= 999'999'999
                         ? d.seconds() * 1'000'000 + (d.nanos() + 999) / 1000
                         : 0;
  if (us == 0) {
    errors.Add(field, "must be a positive duration of at most 100 years", reason::kFieldOutOfRange);
  }
  return us;
}

}  // namespace

void CheckExpectedVersion(int64_t expected, FieldErrors& errors) {
  if (expected < 0) {
    errors.Add("expected_version", absl::StrCat("must not be negative, is ", expected),
               reason::kFieldOutOfRange);
  }
}

void SetTimestamp(int64_t micros, google::protobuf::Timestamp* out) {
  out->set_seconds(micros / 1'000'000);
  out->set_nanos(static_cast<int32_t>(micros % 1'000'000 * 1000));
}

void SetDisplayName(const v1::Session& session, storage::StoredSession& out, FieldErrors& errors) {
  if (session.display_name().size() > kMaxDisplayNameBytes) {
    errors.Add("session.display_name",
               absl::StrCat("must have at most ", kMaxDisplayNameBytes, " bytes, has ",
                            session.display_name().size()),
               reason::kFieldOutOfRange);
  }
  if (!engine::IsValidUtf8(session.display_name()))
    errors.Add("session.display_name", "must be UTF-8");
  out.set_display_name(session.display_name());
}

void SetLabels(const v1::Session& session, storage::StoredSession& out, FieldErrors& errors) {
  if (session.labels_size() > kMaxLabels) {
    errors.Add(
        "session.labels",
        absl::StrCat("must have at most ", kMaxLabels, " entries, has ", session.labels_size()),
        reason::kFieldOutOfRange);
    return;
  }
  for (const auto& [key, value] : session.labels()) {
    if (key.empty() || key.size() > kMaxLabelBytes || value.size() > kMaxLabelBytes) {
      errors.Add("session.labels",
                 absl::StrCat("must have keys of 1 to ", kMaxLabelBytes,
                              " bytes and values of at most ", kMaxLabelBytes),
                 reason::kFieldOutOfRange);
      break;
    }
    if (!engine::IsValidUtf8(key) || !engine::IsValidUtf8(value)) {
      errors.Add("session.labels", "must be UTF-8");
      break;
    }
  }
  *out.mutable_labels() = session.labels();
}

void SetSnapshotPolicy(const v1::Session& session, storage::StoredSession& out,
                       FieldErrors& errors) {
  const v1::SnapshotPolicy& policy = session.snapshot_policy();
  const int count = policy.has_max_count() ? policy.max_count() : 8;
  if (count < 0 || count > kMaxSnapshots) {
    errors.Add("session.snapshot_policy.max_count",
               absl::StrCat("must be in [0, ", kMaxSnapshots, "], is ", count),
               reason::kFieldOutOfRange);
  }
  out.set_snapshot_at_turn_end(policy.has_at_turn_end() ? policy.at_turn_end() : true);
  out.set_snapshot_max_count(count);
}

void SetExpiration(const v1::Session& session, storage::StoredSession& out, FieldErrors& errors) {
  const int64_t now = NowMicros();
  switch (session.expiration_case()) {
    case v1::Session::kExpireTime: {
      const auto& t = session.expire_time();
      if (t.seconds() <= now / 1'000'000 || t.seconds() > now / 1'000'000 + kMaxSpanSeconds ||
          t.nanos() < 0 || t.nanos() > 999'999'999) {
        errors.Add("session.expire_time", "must be in the future, within 100 years",
                   reason::kFieldOutOfRange);
        return;
      }
      out.set_expire_time_us(t.seconds() * 1'000'000 + t.nanos() / 1000);
      return;
    }
    case v1::Session::kTtl:
      out.set_expire_time_us(now + SpanMicros(session.ttl(), "session.ttl", errors));
      return;
    case v1::Session::EXPIRATION_NOT_SET:
      out.set_expire_time_us(0);
      return;
  }
}

void SetIdleTtl(const v1::Session& session, storage::StoredSession& out, FieldErrors& errors) {
  out.set_idle_ttl_us(
      session.has_idle_ttl() ? SpanMicros(session.idle_ttl(), "session.idle_ttl", errors) : 0);
}

}  // namespace mneme::server
