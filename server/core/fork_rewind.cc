// Fork and rewind: sessions that start from, or go back to, a kept point.
#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "server/core/errors.h"
#include "server/core/limits.h"
#include "server/core/resource_id.h"
#include "server/core/session_fields.h"
#include "server/core/session_names.h"
#include "server/core/sessions.h"
#include "server/core/snapshots.h"
#include "server/core/state_io.h"
#include "server/core/stored_bytes.h"
#include "server/core/transcript.h"
#include "server/core/utf8_stream.h"

namespace mneme::server {
namespace {

absl::Status NotRestorable(const char* why) {
  return Error(absl::StatusCode::kFailedPrecondition, reason::kPositionNotRestorable, why);
}

// Keeps the head as the snapshot `before-rewind`, replacing an older one.
void KeepBeforeRewind(Parts& parts, SessionRecord& record, SessionStore::Change& change) {
  storage::StoredSession& data = record.data;
  storage::SnapshotRef* ref = nullptr;
  for (auto& candidate : *data.mutable_snapshots()) {
    if (candidate.id() == kBeforeRewind) ref = &candidate;
  }
  if (ref == nullptr) ref = data.add_snapshots();
  storage::StoredSnapshot snapshot;
  *snapshot.mutable_point() = data.head();
  snapshot.set_create_time_us(NowMicros());
  change.puts.push_back(SessionStore::SnapshotPut(
      parts.sessions->SnapshotKey({record.name, kBeforeRewind}), ref->record_version(), snapshot));
  ref->set_id(kBeforeRewind);
  ref->set_record_version(ref->record_version() + 1);
  ref->set_version(data.head().version());
  ref->set_position_tokens(data.head().position_tokens());
}

class Rewind {
 public:
  Rewind(Parts& parts, CallContext& context, SessionRecord base, LeaseTable::Lease& lease)
      : parts_(parts), context_(context), base_(std::move(base)), lease_(lease) {}

  absl::Status ToSnapshot(const SnapshotName& name);
  absl::Status ToPosition(int64_t position);
  // Writes the new head.
  absl::StatusOr<SessionRecord> Commit();
  int64_t recomputed() const { return recomputed_; }

 private:
  absl::StatusOr<const Model*> FindModel() const {
    return parts_.models->ForSession(context_, base_.data);
  }
  ReadChunk Reader() {
    return [this](const memstore::ChunkId& id) {
      return parts_.sessions->ReadChunk(base_.name.tenant, id);
    };
  }
  // The latest snapshot that lies on the way to `tokens`; the empty state if there is none.
  absl::StatusOr<storage::Point> NearestPoint(const std::vector<int32_t>& tokens);

  Parts& parts_;
  CallContext& context_;
  const SessionRecord base_;
  LeaseTable::Lease& lease_;
  storage::Point target_;
  std::vector<memstore::NewChunk> new_chunks_;
  HeldState held_;  // of a rewind to a position
  bool has_state_ = false;
  int64_t recomputed_ = 0;
};

absl::Status Rewind::ToSnapshot(const SnapshotName& name) {
  MNEME_ASSIGN_OR_RETURN(const storage::StoredSnapshot stored, parts_.sessions->GetSnapshot(name));
  target_ = stored.point();
  if (!base_.data.damaged()) return absl::OkStatus();
  // Of a damaged session only a point that can be read is worth going back to.
  MNEME_ASSIGN_OR_RETURN(const Model* model, FindModel());
  MNEME_ASSIGN_OR_RETURN(
      held_, TakeSlot(context_, *model, model->SlotBytes(target_.position_tokens()), nullptr,
                      /*queued_tokens=*/0));
  MNEME_ASSIGN_OR_RETURN(held_.loaded,
                         RestorePoint(parts_, *model, *held_.replica, base_.name.tenant, target_));
  has_state_ = true;
  return absl::OkStatus();
}

absl::StatusOr<storage::Point> Rewind::NearestPoint(const std::vector<int32_t>& tokens) {
  std::vector<storage::SnapshotRef> refs(base_.data.snapshots().begin(),
                                         base_.data.snapshots().end());
  std::sort(refs.begin(), refs.end(),
            [](const auto& a, const auto& b) { return a.position_tokens() > b.position_tokens(); });
  for (const storage::SnapshotRef& ref : refs) {
    if (ref.position_tokens() > static_cast<int64_t>(tokens.size())) continue;
    auto stored = parts_.sessions->GetSnapshot({base_.name, ref.id()});
    if (!stored.ok() || stored->point().position_tokens() != ref.position_tokens()) continue;
    // Earlier rewinds leave snapshots of other continuations: only the same tokens count.
    auto read = ReadTranscriptIds(stored->point().transcript(), 0, ref.position_tokens(), Reader());
    if (read.ok() && std::equal(read->begin(), read->end(), tokens.begin())) {
      return stored->point();
    }
  }
  storage::Point start;
  start.set_last_token(-1);
  return start;
}

absl::Status Rewind::ToPosition(int64_t position) {
  const storage::Point& head = base_.data.head();
  if (position > head.position_tokens()) {
    return Error(absl::StatusCode::kOutOfRange, reason::kPositionOutOfRange,
                 absl::StrCat("position_tokens is ", position, ", the session ends at ",
                              head.position_tokens()),
                 {{"position_tokens", absl::StrCat(head.position_tokens())}});
  }
  if (base_.data.no_transcript()) {
    return NotRestorable("the session keeps no transcript; rewind it to a snapshot instead");
  }
  MNEME_ASSIGN_OR_RETURN(const Model* model, FindModel());
  MNEME_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens,
                         ReadTranscriptIds(head.transcript(), 0, position, Reader()));
  MNEME_ASSIGN_OR_RETURN(const storage::Point from, NearestPoint(tokens));
  const auto rest = std::span(tokens).subspan(from.position_tokens());
  recomputed_ = static_cast<int64_t>(rest.size());

  MNEME_ASSIGN_OR_RETURN(
      held_, TakeSlot(context_, *model, model->SlotBytes(position), nullptr, recomputed_));
  MNEME_ASSIGN_OR_RETURN(held_.loaded,
                         RestorePoint(parts_, *model, *held_.replica, base_.name.tenant, from));
  MNEME_RETURN_IF_ERROR(ReadTokens(context_, *model, held_, rest));
  model->metrics->recomputed_tokens.Increment(static_cast<double>(recomputed_));
  has_state_ = true;

  target_ = from;
  if (position > 0) {
    MNEME_ASSIGN_OR_RETURN(engine::EncodedSnapshot encoded, EncodeState(held_));
    for (auto& chunk : encoded.new_chunks) {
      new_chunks_.push_back({chunk.hash, std::move(chunk.bytes)});
    }
    target_.set_manifest(encoded.manifest.Serialize());
    *target_.mutable_settings() = model->settings;
    held_.loaded.manifest =
        std::make_shared<const engine::SnapshotManifest>(std::move(encoded.manifest));
  }
  target_.set_position_tokens(position);
  target_.set_last_token(position > 0 ? tokens.back() : -1);
  target_.set_unfinished_character(UnfinishedCharacter(model->tokenizer(), "", tokens));
  *target_.mutable_transcript() = head.transcript();
  return TruncateTranscript(*target_.mutable_transcript(), position, Reader(), new_chunks_);
}

absl::StatusOr<SessionRecord> Rewind::Commit() {
  const auto change_record = [&](SessionRecord& record, SessionStore::Change& change) {
    storage::StoredSession& data = record.data;
    if (data.uid() != base_.data.uid() || data.head().version() != base_.data.head().version()) {
      return WrittenByOthers(record, lease_, parts_.metrics);
    }
    change.sync = !data.async();
    AddRequestMark(context_, {base_.name}, 0, change.puts);
    if (!data.damaged()) KeepBeforeRewind(parts_, record, change);
    const int64_t version = data.head().version() + 1;
    *data.mutable_head() = target_;
    data.mutable_head()->set_version(version);
    data.mutable_head()->set_epoch(lease_.epoch());
    data.set_damaged(false);
    data.set_rewind_version(version);
    // What an ingest had read may be gone now.
    data.clear_ingest();
    const int64_t now = NowMicros();
    data.set_update_time_us(now);
    data.set_last_used_time_us(now);
    return absl::OkStatus();
  };
  MNEME_ASSIGN_OR_RETURN(SessionRecord written,
                         parts_.sessions->Update(base_.name, change_record, std::move(new_chunks_),
                                                 lease_, /*last_write=*/true));
  if (has_state_) {
    parts_.states.Keep(std::move(held_.slot), IdentityOf(written), std::move(held_.loaded));
  } else {
    parts_.states.Drop(CacheKey(base_.name));
  }
  return written;
}

}  // namespace

absl::StatusOr<v1::ForkSessionResponse> ForkSession(Parts& parts, CallContext& context,
                                                    const v1::ForkSessionRequest& request) {
  MNEME_RETURN_IF_ERROR(CheckNotDraining(parts));
  MNEME_ASSIGN_OR_RETURN(const SourceName from,
                         ParseSourceName(request.name(), "name", context.tenant));
  const SessionName& name = from.session;
  const std::optional<SnapshotName>& snapshot = from.snapshot;
  FieldErrors errors;
  CheckExpectedVersion(request.expected_version(), errors);
  std::vector<std::string> ids(request.session_ids().begin(), request.session_ids().end());
  if (request.count() < 0 || request.count() > kMaxForkChildren) {
    errors.Add("count",
               absl::StrCat("must be in [0, ", kMaxForkChildren, "], is ", request.count()),
               reason::kFieldOutOfRange);
  } else if (ids.empty()) {
    for (int i = 0; i < std::max(1, request.count()); ++i) ids.push_back(MakeSessionId());
  } else if (request.count() != 0 && request.count() != request.session_ids_size()) {
    errors.Add("count", "must be absent or the number of session_ids");
  }
  if (ids.size() > kMaxForkChildren) {
    errors.Add("session_ids",
               absl::StrCat("must have at most ", kMaxForkChildren, " entries, has ", ids.size()),
               reason::kFieldOutOfRange);
  }
  std::set<std::string> seen;
  for (size_t i = 0; i < ids.size() && ids.size() <= kMaxForkChildren; ++i) {
    const std::string field = absl::StrCat("session_ids[", i, "]");
    if (!IsValidId(ids[i])) errors.Add(field, "must match ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$");
    if (!seen.insert(ids[i]).second) errors.Add(field, "is given twice");
  }
  MNEME_RETURN_IF_ERROR(errors.ToStatus());

  // The parent may commit between reading it and writing the children; then chunks that only its
  // old head had are gone, and its new head is as good.
  for (int attempt = 0;; ++attempt) {
    MNEME_ASSIGN_OR_RETURN(const SessionRecord parent, parts.sessions->GetUsable(name, true));
    MNEME_RETURN_IF_ERROR(CheckVersion(request.expected_version(), parent, parts.metrics));
    storage::Point point = parent.data.head();
    if (snapshot.has_value()) {
      MNEME_ASSIGN_OR_RETURN(const auto stored, parts.sessions->GetSnapshot(*snapshot));
      point = stored.point();
    }
    const auto count = static_cast<int64_t>(ids.size());
    MNEME_ASSIGN_OR_RETURN(
        const TenantStorage::Claim claim,
        parts.storage->Take(context, {.sessions = count, .bytes = count * BytesOf(point)}));
    const int64_t now = NowMicros();
    std::vector<SessionRecord> children;
    std::vector<memstore::Put> snapshots;
    for (const std::string& id : ids) {
      SessionRecord child{{context.tenant, id}, 0, parent.data};
      storage::StoredSession& data = child.data;
      data.set_uid(MakeUid());
      data.clear_expire_time_us();
      data.clear_snapshots();
      data.clear_ingest();
      data.clear_rewind_version();  // of the parent's transcript, not of this one
      *data.mutable_head() = point;
      data.set_create_time_us(now);
      data.set_update_time_us(now);
      data.set_last_used_time_us(now);
      data.set_parent(name.str());
      data.set_parent_version(point.version());
      // The child can come back to where it began.
      if (point.position_tokens() > 0) AddAutomaticSnapshot(parts, child, now, snapshots);
      children.push_back(std::move(child));
    }
    std::vector<SessionName> names;
    for (const SessionRecord& child : children) names.push_back(child.name);
    AddRequestMark(context, names, 0, snapshots);
    const absl::Status created = parts.sessions->Create(children, snapshots);
    if (absl::IsFailedPrecondition(created) && attempt < 16) continue;
    if (!created.ok()) {
      return ReasonOf(created).empty()
                 ? Error(absl::StatusCode::kInternal, reason::kInternal, "the fork failed")
                 : created;
    }
    v1::ForkSessionResponse response;
    MNEME_ASSIGN_OR_RETURN(std::vector<v1::Session> sessions, ToProtos(parts, children));
    for (v1::Session& session : sessions) *response.add_sessions() = std::move(session);
    return response;
  }
}

absl::StatusOr<v1::RewindSessionResponse> RewindSession(Parts& parts, CallContext& context,
                                                        const v1::RewindSessionRequest& request) {
  MNEME_RETURN_IF_ERROR(CheckNotDraining(parts));
  MNEME_ASSIGN_OR_RETURN(const SessionName name,
                         ParseSessionName(request.name(), "name", context.tenant));
  FieldErrors errors;
  CheckExpectedVersion(request.expected_version(), errors);
  SnapshotName snapshot;
  switch (request.target_case()) {
    case v1::RewindSessionRequest::kSnapshot: {
      if (IsValidId(request.snapshot())) {
        snapshot = {name, request.snapshot()};
        break;
      }
      MNEME_ASSIGN_OR_RETURN(snapshot,
                             ParseSnapshotName(request.snapshot(), "snapshot", context.tenant));
      if (snapshot.session.session != name.session) {
        errors.Add("snapshot", "must be one of the session's own; fork it otherwise");
      }
      break;
    }
    case v1::RewindSessionRequest::kPositionTokens:
      if (request.position_tokens() < 0) {
        errors.Add("position_tokens",
                   absl::StrCat("must not be negative, is ", request.position_tokens()),
                   reason::kFieldOutOfRange);
      }
      break;
    case v1::RewindSessionRequest::TARGET_NOT_SET:
      errors.Add("target", "is required: snapshot or position_tokens", reason::kFieldRequired);
      break;
  }
  MNEME_RETURN_IF_ERROR(errors.ToStatus());
  const bool to_position = request.target_case() == v1::RewindSessionRequest::kPositionTokens;
  MNEME_RETURN_IF_ERROR(parts.sessions->GetUsable(name, to_position).status());
  CallRegistry::Call call(parts.calls, context);
  MNEME_ASSIGN_OR_RETURN(TenantUse::Share share, parts.tenants.Begin(context));
  MNEME_RETURN_IF_ERROR(parts.storage->CheckBytes(context));
  MNEME_ASSIGN_OR_RETURN(auto writer, TakeWriter(parts, context, name, false));
  MNEME_ASSIGN_OR_RETURN(SessionRecord base, parts.sessions->GetUsable(name, to_position));
  MNEME_RETURN_IF_ERROR(CheckVersion(request.expected_version(), base, parts.metrics));

  Rewind rewind(parts, context, std::move(base), writer.lease);
  MNEME_RETURN_IF_ERROR(to_position ? rewind.ToPosition(request.position_tokens())
                                    : rewind.ToSnapshot(snapshot));
  MNEME_ASSIGN_OR_RETURN(const SessionRecord written, rewind.Commit());
  share.Charge(rewind.recomputed());
  writer.Release();
  v1::RewindSessionResponse response;
  MNEME_ASSIGN_OR_RETURN(*response.mutable_session(), ToProto(parts, written));
  response.set_recomputed_tokens(rewind.recomputed());
  return response;
}

}  // namespace mneme::server
