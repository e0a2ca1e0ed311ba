#include "server/core/state_io.h"

#include <algorithm>
#include <chrono>
#include <new>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "server/core/cancel_status.h"
#include "server/core/device_status.h"
#include "server/core/errors.h"
#include "server/core/model_mismatch.h"
#include "server/core/snapshots.h"
#include "server/core/transcript.h"
#include "server/core/utf8_stream.h"

namespace mneme::server {
namespace {

using Clock = std::chrono::steady_clock;

double Since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

absl::Status Corrupt() {
  return Error(absl::StatusCode::kDataLoss, reason::kStateCorrupt,
               "the stored state failed its checks; rewind to a good snapshot");
}

// Where a call for `want` had best run; null if every device of the model has failed.
const Replica* ChooseReplica(const Model& model, const StateCache::Identity* want) {
  const Replica* best = nullptr;
  int64_t fewest = 0;
  for (const Replica& replica : model.replicas) {
    if (!replica.device().Fault().ok()) continue;
    if (want != nullptr && replica.states->Contains(want->key, want->version)) return &replica;
    const int64_t calls = replica.states->running() + replica.states->waiting();
    if (best == nullptr || calls < fewest) {
      best = &replica;
      fewest = calls;
    }
  }
  return best;
}

class ReadSequence final : public Sequence {
 public:
  ReadSequence(CallContext& context, ModelMetrics& metrics, engine::State* state,
               std::span<const engine::TokenId> tokens, const RowsFn& on_rows)
      : context_(context),
        metrics_(metrics),
        state_(state),
        tokens_(tokens),
        on_rows_(on_rows),
        before_(on_rows != nullptr && state->position > 0) {}

  engine::State* state() override { return state_; }

  Want Next() override {
    if (const auto cause = context_.cancelled(); cause != CallContext::Cancel::kNone) {
      status_ = CancelStatus(cause);
      cancelled_ = true;
      return {};
    }
    if (before_) return {.kind = Want::Kind::kRead, .decode = true};
    if (read_ == static_cast<int64_t>(tokens_.size())) return {};
    return {.kind = Want::Kind::kRead,
            .tokens = tokens_.subspan(read_),
            .all_logits = on_rows_ != nullptr};
  }

  void OnRead(int64_t num_tokens, std::span<const float> logits) override {
    if (on_rows_) on_rows_(before_ ? 0 : read_ + 1, logits);
    before_ = false;
    read_ += num_tokens;
  }

  void OnFailure(absl::Status status) override { status_ = std::move(status); }

  void OnRemoved() override {
    if (cancelled_) {
      metrics_.cancel_latency.Observe(
          std::chrono::duration<double>(Clock::now() - context_.cancelled_at()).count());
    }
    MutexLock lock(&mutex_);
    removed_ = true;
    done_.NotifyAll();
  }

  absl::Status Wait() {
    MutexLock lock(&mutex_);
    while (!removed_) done_.Wait(&mutex_);
    return status_;
  }

 private:
  CallContext& context_;
  ModelMetrics& metrics_;
  engine::State* const state_;
  const std::span<const engine::TokenId> tokens_;
  const RowsFn& on_rows_;
  bool before_;  // the logits before the first token are still to come
  int64_t read_ = 0;
  absl::Status status_;  // of the batch until removed
  bool cancelled_ = false;
  Mutex mutex_;
  CondVar done_;
  bool removed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

void MarkDamaged(Parts& parts, const SessionRecord& seen) {
  // Best effort: if it cannot be written, the next turn finds the damage again.
  (void)parts.sessions->Update(seen.name, [&](SessionRecord& record, SessionStore::Change&) {
    if (record.data.uid() != seen.data.uid() ||
        record.data.head().version() != seen.data.head().version()) {
      return absl::AbortedError("changed");
    }
    record.data.set_damaged(true);
    return absl::OkStatus();
  });
}

absl::StatusOr<HeldState> TakeSlot(CallContext& context, const Model& model, int64_t bytes,
                                   const StateCache::Identity* want, int64_t queued_tokens) {
  while (true) {
    const Replica* replica = ChooseReplica(model, want);
    // None is left: the first one tells why.
    if (replica == nullptr) return CheckDevice(model.replicas.front().device());
    MNEME_ASSIGN_OR_RETURN(
        auto grant, replica->states->Acquire(context, model.name, bytes, want, queued_tokens));
    if (!replica->device().Fault().ok()) continue;  // it failed while the call waited
    HeldState held;
    held.slot = std::move(grant.slot);
    held.replica = replica;
    held.was_resident = grant.resident.has_value();
    if (held.was_resident) held.loaded = *std::move(grant.resident);
    return held;
  }
}

absl::StatusOr<engine::EncodedSnapshot> EncodeState(const HeldState& held) {
  const engine::Engine& engine = *held.replica->engine;
  try {
    auto encoded = engine::EncodeSnapshot(engine.schema(), held.loaded.state,
                                          engine.snapshot_identity(), held.loaded.manifest.get());
    if (encoded.ok()) return encoded;
    MNEME_RETURN_IF_ERROR(CheckDevice(engine.device()));
    return Error(absl::StatusCode::kInternal, reason::kInternal,
                 "the state could not be encoded; the session is unchanged");
  } catch (const std::bad_alloc&) {
    MNEME_RETURN_IF_ERROR(CheckDevice(engine.device()));
    return OutOfMemory();
  }
}

absl::StatusOr<LoadedState> RestorePoint(Parts& parts, const Model& model, const Replica& replica,
                                         const std::string& tenant, const storage::Point& point) {
  const auto start = Clock::now();
  const engine::Engine& engine = *replica.engine;
  try {
    LoadedState loaded;
    if (point.manifest().empty()) {
      if (point.position_tokens() != 0) return Corrupt();
      loaded.state = engine.CreateState();
      return loaded;
    }
    auto manifest = engine::SnapshotManifest::Parse(point.manifest());
    if (absl::IsFailedPrecondition(manifest.status()) ||
        (manifest.ok() && manifest->format_version != engine::kSnapshotFormat)) {
      return OtherFormat(manifest);
    }
    if (!manifest.ok()) {
      parts.metrics.checksum_failures.Increment();
      return Corrupt();
    }
    if (manifest->schema_hash != engine.schema().hash()) {
      return OtherLayout(point, *manifest, model);
    }
    absl::Status store_error;
    auto decoded = engine::DecodeSnapshot(engine.states(), engine.snapshot_identity(), *manifest,
                                          [&](const engine::ChunkHash& hash) {
                                            auto bytes = parts.sessions->ReadChunk(tenant, hash);
                                            if (!bytes.ok()) store_error = bytes.status();
                                            return bytes;
                                          });
    if (!store_error.ok()) return store_error;
    if (!decoded.ok() || decoded->position != point.position_tokens() ||
        static_cast<int64_t>(decoded->hidden.size()) != engine.hidden_size()) {
      parts.metrics.checksum_failures.Increment();
      return Corrupt();
    }
    loaded.state = *std::move(decoded);
    loaded.manifest = std::make_shared<const engine::SnapshotManifest>(*std::move(manifest));
    parts.metrics.state_restore_store.Observe(Since(start));
    return loaded;
  } catch (const std::bad_alloc&) {
    MNEME_RETURN_IF_ERROR(CheckDevice(replica.device()));
    return OutOfMemory();
  }
}

StateCache::Identity IdentityOf(const SessionRecord& record) {
  const storage::Point& head = record.data.head();
  return {CacheKey(record.name), record.data.uid(), head.version(), head.epoch()};
}

absl::StatusOr<HeldState> HoldHead(Parts& parts, CallContext& context, const Model& model,
                                   const SessionRecord& record, const TokenCounts& counts) {
  const auto start = Clock::now();
  const StateCache::Identity want = IdentityOf(record);
  MNEME_ASSIGN_OR_RETURN(
      HeldState held, TakeSlot(context, model, model.SlotBytes(counts.end), &want, counts.queued));
  held.queue_seconds = Since(start);
  const auto restore = Clock::now();
  if (held.was_resident) {
    held.replica->states->tier().restore.Observe(Since(restore));
  } else {
    auto loaded = RestorePoint(parts, model, *held.replica, record.name.tenant, record.data.head());
    if (!loaded.ok()) {
      if (absl::IsDataLoss(loaded.status())) MarkDamaged(parts, record);
      return loaded.status();
    }
    held.loaded = *std::move(loaded);
  }
  held.restore_seconds = Since(restore);
  return held;
}

absl::StatusOr<HeldState> HoldCopy(Parts& parts, CallContext& context, const Model& model,
                                   const SessionRecord* record, const TokenCounts& counts) {
  const auto start = Clock::now();
  MNEME_ASSIGN_OR_RETURN(HeldState held, TakeSlot(context, model, model.SlotBytes(counts.end),
                                                  nullptr, counts.queued));
  held.queue_seconds = Since(start);
  const auto restore = Clock::now();
  const std::string tenant = record != nullptr ? record->name.tenant : "";
  storage::Point point = record != nullptr ? record->data.head() : storage::Point();
  while (true) {
    auto loaded = RestorePoint(parts, model, *held.replica, tenant, point);
    if (loaded.ok()) {
      held.loaded = *std::move(loaded);
      held.restore_seconds = Since(restore);
      return held;
    }
    if (record == nullptr || !absl::IsDataLoss(loaded.status())) return loaded.status();
    // The session's writer may have committed since and its old chunks be gone.
    MNEME_ASSIGN_OR_RETURN(SessionRecord again, parts.sessions->GetUsable(record->name, true));
    if (again.data.head().version() == point.version()) {
      MarkDamaged(parts, again);
      return loaded.status();
    }
    point = again.data.head();
  }
}

absl::StatusOr<CommitResult> CommitHead(Parts& parts, const Model& model, const SessionRecord& base,
                                        HeldState& held, const NewTokens& tokens,
                                        const CommitOptions& options) {
  const auto start = Clock::now();
  LoadedState& loaded = held.loaded;
  std::shared_ptr<const engine::SnapshotManifest> manifest;  // null at position 0
  std::vector<memstore::NewChunk> new_chunks;
  if (loaded.state.position > 0) {
    MNEME_ASSIGN_OR_RETURN(engine::EncodedSnapshot encoded, EncodeState(held));
    manifest = std::make_shared<const engine::SnapshotManifest>(std::move(encoded.manifest));
    for (auto& chunk : encoded.new_chunks) {
      new_chunks.push_back({chunk.hash, std::move(chunk.bytes)});
    }
  }
  const std::string manifest_bytes = manifest != nullptr ? manifest->Serialize() : std::string();
  parts.metrics.state_save_store.Observe(Since(start));

  const auto change_record = [&](SessionRecord& record, SessionStore::Change& change) {
    storage::StoredSession& data = record.data;
    storage::Point& head = *data.mutable_head();
    if (data.uid() != base.data.uid() || head.version() != base.data.head().version()) {
      return WrittenByOthers(record, options.lease, parts.metrics);
    }
    change.sync = !data.async();
    const int64_t now = NowMicros();
    if (!data.no_transcript()) {
      storage::StoredTurn turn;
      turn.set_position_tokens(head.position_tokens());
      turn.set_version(head.version() + 1);
      turn.set_commit_time_us(now);
      turn.set_finish_reason(tokens.finish_reason);
      *turn.mutable_runs() = tokens.runs;
      MNEME_RETURN_IF_ERROR(AppendTranscript(
          *head.mutable_transcript(), tokens.ids, turn,
          [&](const memstore::ChunkId& id) {
            return parts.sessions->ReadChunk(base.name.tenant, id);
          },
          change.new_chunks));
    }
    head.set_version(head.version() + 1);
    head.set_epoch(options.lease.epoch());
    head.set_position_tokens(loaded.state.position);
    head.set_manifest(manifest_bytes);
    *head.mutable_settings() = model.settings;
    *data.mutable_checkpoint() = CheckpointInfoOf(model.info);
    record.manifest = manifest;
    if (!tokens.ids.empty()) head.set_last_token(tokens.ids.back());
    head.set_unfinished_character(
        UnfinishedCharacter(model.tokenizer(), head.unfinished_character(), tokens.ids));
    data.set_update_time_us(now);
    data.set_last_used_time_us(now);
    if (options.call != nullptr) {
      AddRequestMark(*options.call, {base.name}, head.version(), change.puts);
    }
    if (options.beside) options.beside(record, change);
    if (options.ingest != nullptr) {
      *data.mutable_ingest() = *options.ingest;
      data.mutable_ingest()->set_version(head.version());
    }
    if (!options.turn_end || !data.snapshot_at_turn_end() || data.snapshot_max_count() == 0) {
      return absl::OkStatus();
    }
    AddAutomaticSnapshot(parts, record, now, change.puts, manifest.get());
    int automatic = 0;
    for (const auto& s : data.snapshots()) automatic += s.automatic();
    for (int i = 0; i < data.snapshots_size() && automatic > data.snapshot_max_count();) {
      if (!data.snapshots(i).automatic()) {
        ++i;
        continue;
      }
      change.deletes.push_back({parts.sessions->SnapshotKey({base.name, data.snapshots(i).id()}),
                                data.snapshots(i).record_version()});
      data.mutable_snapshots()->DeleteSubrange(i, 1);
      --automatic;
    }
    return absl::OkStatus();
  };
  auto written = parts.sessions->Update(base.name, change_record, std::move(new_chunks),
                                        options.lease, options.turn_end);
  if (!written.ok()) return written.status();
  if (manifest != nullptr) loaded.manifest = std::move(manifest);
  CommitResult result{*std::move(written), Since(start)};
  model.metrics->commit.Observe(result.seconds);
  return result;
}

absl::Status ReadTokens(CallContext& context, const Model& model, HeldState& held,
                        std::span<const engine::TokenId> tokens, const RowsFn& on_rows) {
  auto sequence =
      std::make_shared<ReadSequence>(context, *model.metrics, &held.loaded.state, tokens, on_rows);
  // The batch looks at the context before every step; nothing is to be woken.
  held.replica->scheduler->Add(sequence);
  return sequence->Wait();
}

}  // namespace mneme::server
