// ImportSession. The file is hostile: what its header says is held against the model before
// anything is kept, and kept is no more than limits.state_memory_bytes has room for. Nothing of it
// is in the store until all of it has been checked; then one transaction makes the session.
#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "engine/core/status_macros.h"
#include "engine/state/schema_text.h"
#include "server/core/cancel_status.h"
#include "server/core/device_status.h"
#include "server/core/errors.h"
#include "server/core/limits.h"
#include "server/core/model_mismatch.h"
#include "server/core/session_export.h"
#include "server/core/session_file.h"
#include "server/core/session_names.h"
#include "server/core/sessions.h"
#include "server/core/snapshots.h"
#include "server/core/state_io.h"
#include "server/core/transcript.h"
#include "server/core/utf8_stream.h"

namespace mneme::server {
namespace {

constexpr int64_t kMaxPosition = int64_t{1} << 62;

// FAILED_PRECONDITION MODEL_MISMATCH: no model that may be used has the file's checkpoint.
absl::Status OtherCheckpointThanFile(const SessionFileHeader& header,
                                     const std::vector<const Model*>& models) {
  const std::string file = absl::BytesToHexString(header.model_fingerprint);
  const auto fingerprint = [](const Model& model) {
    return absl::BytesToHexString(model.engine->model_fingerprint());
  };
  const std::string here = absl::StrJoin(models, ", ", [&](std::string* out, const Model* model) {
    absl::StrAppend(out, model->name, " has ", fingerprint(*model).substr(0, 12));
  });
  return Error(
      absl::StatusCode::kFailedPrecondition, reason::kModelMismatch,
      absl::StrCat("the file is of a checkpoint with fingerprint ", file.substr(0, 12), "; ", here,
                   "; import it where that checkpoint is loaded"),
      {{"session_fingerprint", file},
       {"model_fingerprint", absl::StrJoin(models, ",", [&](std::string* out, const Model* model) {
          absl::StrAppend(out, fingerprint(*model));
        })}});
}

// The first tensor in which two schemas differ, of both; empty where one has fewer.
std::pair<std::string, std::string> FirstDifference(std::string_view a, std::string_view b) {
  const std::vector<std::string> x = absl::StrSplit(absl::string_view(a.data(), a.size()), '\n');
  const std::vector<std::string> y = absl::StrSplit(absl::string_view(b.data(), b.size()), '\n');
  for (size_t i = 0; i < std::max(x.size(), y.size()); ++i) {
    const std::string p = i < x.size() ? x[i] : "", q = i < y.size() ? y[i] : "";
    if (p != q) return {p, q};
  }
  return {};
}

// Tokens and turns of a transcript that came in a file.
class TranscriptCheck {
 public:
  TranscriptCheck(const TranscriptList& list, int64_t vocab_size, const ReadChunk& read)
      : list_(list), vocab_size_(vocab_size), read_(read) {}

  absl::Status Run() {
    int64_t begin = 0;
    for (const storage::TranscriptChunk& chunk : list_) {
      const int64_t end = begin + chunk.num_tokens();
      MNEME_RETURN_IF_ERROR(Chunk(chunk, begin, end));
      begin = end;
    }
    return turn_end_ <= begin ? absl::OkStatus() : DamagedFile("a turn ends after the transcript");
  }
  // Of the last tokens, as many as decide what character is unfinished.
  const std::vector<int32_t>& last_tokens() const { return last_; }

 private:
  absl::Status Chunk(const storage::TranscriptChunk& entry, int64_t begin, int64_t end) {
    MNEME_ASSIGN_OR_RETURN(const std::string bytes, read_(ToChunkId(entry.id())));
    std::vector<int32_t> ids(entry.num_tokens());
    std::memcpy(ids.data(), bytes.data(), ids.size() * sizeof(ids[0]));
    for (const int32_t id : ids) {
      if (id < 0 || id >= vocab_size_) {
        return DamagedFile(absl::StrCat("token id ", id, " is not in the model's vocabulary"));
      }
    }
    last_.insert(last_.end(), ids.end() - std::min<ptrdiff_t>(3, std::ssize(ids)), ids.end());
    last_.erase(last_.begin(), last_.end() - std::min<ptrdiff_t>(3, std::ssize(last_)));
    storage::StoredTurns turns;
    const size_t id_bytes = ids.size() * sizeof(ids[0]);
    if (!turns.ParseFromArray(bytes.data() + id_bytes, static_cast<int>(bytes.size() - id_bytes))) {
      return DamagedFile("a chunk's turns cannot be read");
    }
    for (const storage::StoredTurn& turn : turns.turns()) {
      if (turn.position_tokens() < std::max(begin, turn_end_) || turn.position_tokens() >= end) {
        return DamagedFile("turns overlap, or lie in the wrong chunk");
      }
      MNEME_RETURN_IF_ERROR(Turn(turn));
    }
    return absl::OkStatus();
  }

  absl::Status Turn(const storage::StoredTurn& turn) {
    constexpr int64_t kLastYear = int64_t{253402300799} * 1'000'000;  // of a Timestamp
    if (turn.version() < 0 || turn.commit_time_us() < 0 || turn.commit_time_us() > kLastYear ||
        !v1::FinishReason_IsValid(turn.finish_reason())) {
      return DamagedFile("a turn has a version, a time or an end that cannot be");
    }
    turn_end_ = turn.position_tokens();
    for (const storage::StoredRun& run : turn.runs()) {
      if (run.num_tokens() < 0 || run.num_tokens() > kMaxPosition - turn_end_ ||
          run.lead_bytes() < 0 || run.trail_bytes() < 0 ||
          !v1::TranscriptPart::Role_IsValid(run.role())) {
        return DamagedFile("a turn's run has a role or a length that cannot be");
      }
      turn_end_ += run.num_tokens();
    }
    return absl::OkStatus();
  }

  const TranscriptList& list_;
  const int64_t vocab_size_;
  const ReadChunk& read_;
  int64_t turn_end_ = 0;  // of the turns so far
  std::vector<int32_t> last_;
};

class ImportImpl final : public Import {
 public:
  ImportImpl(Parts& parts, CallContext& context, const v1::ImportSessionRequest::Start& start)
      : parts_(parts),
        context_(context),
        start_(start),
        call_(parts.calls, context),
        reader_([this](const SessionFileHeader& header,
                       const std::vector<FileChunk>& chunks) { return TakeHeader(header, chunks); },
                [this](const FileChunk& chunk, std::string bytes) {
                  if (kept_.contains(chunk.id)) kept_[chunk.id] = std::move(bytes);
                  return absl::OkStatus();
                }) {}

  absl::Status Begin();
  absl::Status Write(std::string_view data) override;
  absl::StatusOr<v1::ImportSessionResponse> Finish() override;

 private:
  absl::Status TakeHeader(const SessionFileHeader& header, const std::vector<FileChunk>& chunks);
  absl::StatusOr<const Model*> FindModel(const SessionFileHeader& header) const;
  absl::Status CheckState(const SessionFileHeader& header) const;
  absl::Status Decode();
  absl::Status CheckTranscript();

  Parts& parts_;
  CallContext& context_;
  const v1::ImportSessionRequest::Start start_;
  CallRegistry::Call call_;
  SessionFileReader reader_;
  SessionRecord record_;
  const Model* model_ = nullptr;
  SessionFileHeader header_;
  HeldState held_;
  TenantUse::Share share_;
  TenantStorage::Claim claim_;
  // What of the file goes into the store.
  std::map<memstore::ChunkId, std::string> kept_;
  int64_t received_bytes_ = 0;
};

absl::Status ImportImpl::Begin() {
  MNEME_RETURN_IF_ERROR(CheckNotDraining(parts_));
  MNEME_RETURN_IF_ERROR(CheckTenantName(start_.parent(), "start.parent", context_.tenant));
  FieldErrors errors("start.");
  record_ = NewRecord(context_, start_.session_id(), start_.session(), errors);
  MNEME_RETURN_IF_ERROR(errors.ToStatus());
  if (!start_.session().model().empty()) {
    MNEME_ASSIGN_OR_RETURN(
        model_, parts_.models->Find(context_, start_.session().model(), "start.session.model"));
  }
  MNEME_ASSIGN_OR_RETURN(share_, parts_.tenants.Begin(context_));
  // Asked again later; here it saves the way of a large file.
  MNEME_ASSIGN_OR_RETURN(claim_, parts_.storage->Take(context_, {.sessions = 1}));
  return CheckNameIsFree(parts_, record_.name);
}

absl::Status ImportImpl::Write(std::string_view data) {
  MNEME_RETURN_IF_ERROR(CancelStatus(context_.cancelled()));
  if (data.size() > kMaxFrameBytes) {
    FieldErrors errors;
    errors.Add("data", absl::StrCat("must have at most 1 MiB, has ", data.size()),
               reason::kFieldOutOfRange);
    return errors.ToStatus();
  }
  received_bytes_ += static_cast<int64_t>(data.size());
  return reader_.Feed(data);
}

absl::StatusOr<const Model*> ImportImpl::FindModel(const SessionFileHeader& header) const {
  std::vector<const Model*> usable;
  for (const auto& [name, model] : parts_.models->models()) {
    if (model_ != nullptr ? model.get() == model_ : context_.MayUseModel(name)) {
      usable.push_back(model.get());
    }
  }
  const Model* found = nullptr;
  for (const Model* model : usable) {
    if (model->engine->model_fingerprint() != header.model_fingerprint) continue;
    if (found == nullptr || model->name == header.model) found = model;
  }
  if (found == nullptr) return OtherCheckpointThanFile(header, usable);
  return found;
}

absl::Status ImportImpl::CheckState(const SessionFileHeader& header) const {
  const engine::StateSchema& schema = model_->engine->schema();
  const storage::Point& point = header.point;
  const int64_t position = point.position_tokens();
  const int64_t limit = model_->context_limit() > 0 ? model_->context_limit() : kMaxPosition;
  if (position > limit) {
    return DamagedFile(absl::StrCat("position ", position, " is beyond the model's limit"));
  }
  if (position == 0 ? point.last_token() != -1
                    : point.last_token() < 0 || point.last_token() >= model_->info.vocab_size()) {
    return DamagedFile("last_token is not in the model's vocabulary");
  }
  if (header.manifest == nullptr) return absl::OkStatus();
  const engine::SnapshotManifest& manifest = *header.manifest;
  if (manifest.format_version != engine::kSnapshotFormat) {
    return Error(absl::StatusCode::kFailedPrecondition, reason::kFormatTooOld,
                 absl::StrCat("the state in the file has format ", manifest.format_version,
                              ", this server continues ", engine::kSnapshotFormat,
                              "; import it with the server that wrote it"),
                 {{"file_format", absl::StrCat(manifest.format_version)},
                  {"server_format", absl::StrCat(engine::kSnapshotFormat)}});
  }
  if (manifest.schema_hash != schema.hash()) {
    const auto [file, here] =
        FirstDifference(header.schema_text, engine::SchemaText(schema.tensors()));
    const absl::Status status = OtherLayout(point, manifest, *model_);
    if (header.schema_text.empty()) return status;
    absl::Status more(status.code(),
                      absl::StrCat(status.message(), "; the first tensor that differs: \"",
                                   absl::CHexEscape(file), "\" in the file, \"", here, "\" here"));
    status.ForEachPayload(
        [&](absl::string_view type, const absl::Cord& payload) { more.SetPayload(type, payload); });
    return more;
  }
  if (manifest.hidden_size != model_->engine->hidden_size()) {
    return DamagedFile("hidden_size is not the model's");
  }
  // What the state can have at most: its own bytes, and at the ends of each class of rings a chunk
  // whose rows have partly left the window.
  uint64_t most = schema.StateBytes(position) + manifest.hidden_size * sizeof(float);
  for (const engine::StateTensor& tensor : schema.tensors()) {
    most += 2 * std::max<uint64_t>(engine::kMaxChunkBytes, tensor.row_bytes());
  }
  uint64_t bytes = 0;
  for (const auto& chunk : manifest.chunks) bytes += chunk.size_bytes;
  if (bytes > most) {
    return DamagedFile(absl::StrCat("its state has ", bytes, " bytes, the model's at most ", most));
  }
  return absl::OkStatus();
}

absl::Status ImportImpl::TakeHeader(const SessionFileHeader& header,
                                    const std::vector<FileChunk>& chunks) {
  MNEME_ASSIGN_OR_RETURN(model_, FindModel(header));
  MNEME_RETURN_IF_ERROR(CheckState(header));
  const v1::Session::Transcript wanted = start_.session().transcript();
  const int64_t position = header.point.position_tokens();
  if (wanted == v1::Session::TOKENS && !header.has_transcript && position > 0) {
    FieldErrors errors;
    errors.Add("start.session.transcript",
               "is TOKENS, but the file was exported without a transcript");
    return errors.ToStatus();
  }
  header_ = header;
  const bool transcript = header.has_transcript && wanted != v1::Session::NONE;
  record_.data.set_no_transcript(!transcript && (position > 0 || wanted == v1::Session::NONE));
  if (!transcript) header_.point.clear_transcript();
  int64_t file_bytes = 0;
  for (const FileChunk& chunk : ChunksInFile(header_)) {
    kept_.emplace(chunk.id, std::string());
    file_bytes += chunk.size_bytes;
  }
  claim_.Release();
  MNEME_ASSIGN_OR_RETURN(claim_,
                         parts_.storage->Take(context_, {.sessions = 1, .bytes = file_bytes}));
  const int64_t bytes = model_->SlotBytes(position) + file_bytes;
  int64_t room = std::numeric_limits<int64_t>::max();
  for (const Replica& replica : model_->replicas) {
    room = std::min(room, replica.states->budget_bytes());
  }
  // Both the file's bytes and the state that is made of them are in memory until the end.
  if (bytes > room) {
    FieldErrors errors;
    errors.Add(
        "data",
        absl::StrCat("needs ", bytes, " bytes to be imported; limits.state_memory_bytes is ", room),
        reason::kFieldOutOfRange);
    return errors.ToStatus();
  }
  MNEME_ASSIGN_OR_RETURN(held_, TakeSlot(context_, *model_, bytes, nullptr, /*queued_tokens=*/0));
  return absl::OkStatus();
}

absl::Status ImportImpl::Decode() {
  engine::Engine& engine = *held_.replica->engine;
  if (header_.manifest == nullptr) {
    held_.loaded.state = engine.CreateState();
    return absl::OkStatus();
  }
  auto decoded = engine::DecodeSnapshot(
      engine.states(), engine.snapshot_identity(), *header_.manifest,
      [&](const engine::ChunkHash& hash) -> absl::StatusOr<std::string> { return kept_.at(hash); });
  if (!decoded.ok()) {
    MNEME_RETURN_IF_ERROR(CheckDevice(engine.device()));
    if (decoded.status().GetPayload(engine::kNotFinitePayload).has_value()) {
      return Error(absl::StatusCode::kInvalidArgument, reason::kStateNotFinite,
                   absl::StrCat("the file's state cannot be used: ", decoded.status().message()));
    }
    return DamagedFile(decoded.status().message());
  }
  held_.loaded.state = *std::move(decoded);
  held_.loaded.manifest = header_.manifest;
  return absl::OkStatus();
}

absl::Status ImportImpl::CheckTranscript() {
  storage::Point& point = header_.point;
  if (point.transcript().empty()) return absl::OkStatus();
  const ReadChunk read = [&](const memstore::ChunkId& id) -> absl::StatusOr<std::string> {
    return kept_.at(id);
  };
  TranscriptCheck check(point.transcript(), model_->info.vocab_size(), read);
  MNEME_RETURN_IF_ERROR(check.Run());
  if (check.last_tokens().back() != point.last_token()) {
    return DamagedFile("last_token is not the transcript's");
  }
  if (UnfinishedCharacter(model_->tokenizer(), "", check.last_tokens()) !=
      point.unfinished_character()) {
    return DamagedFile("unfinished_character is not the transcript's");
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::ImportSessionResponse> ImportImpl::Finish() {
  MNEME_RETURN_IF_ERROR(reader_.Finish());
  try {
    MNEME_RETURN_IF_ERROR(Decode());
  } catch (const std::bad_alloc&) {
    MNEME_RETURN_IF_ERROR(CheckDevice(held_.replica->device()));
    return OutOfMemory();
  }
  MNEME_RETURN_IF_ERROR(CheckTranscript());
  storage::StoredSession& data = record_.data;
  SetModel(*model_, data);
  *data.mutable_head() = header_.point;
  *data.mutable_head()->mutable_settings() = model_->settings;
  record_.manifest = header_.manifest;
  std::vector<memstore::Put> snapshots;
  // The session can come back to where it began.
  if (header_.manifest != nullptr) {
    AddAutomaticSnapshot(parts_, record_, data.create_time_us(), snapshots, header_.manifest.get());
  }
  v1::ImportSessionResponse response;
  if (start_.validate_only()) {
    MNEME_RETURN_IF_ERROR(CheckNameIsFree(parts_, record_.name));
    data.clear_snapshots();
    MNEME_ASSIGN_OR_RETURN(*response.mutable_session(), ToProto(parts_, record_));
  } else {
    std::vector<memstore::NewChunk> new_chunks;
    for (auto& [id, bytes] : kept_) new_chunks.push_back({id, std::move(bytes)});
    kept_.clear();
    std::vector<SessionRecord> records = {std::move(record_)};
    MNEME_RETURN_IF_ERROR(parts_.sessions->Create(records, snapshots, std::move(new_chunks)));
    record_ = std::move(records[0]);
    if (header_.manifest != nullptr) {
      parts_.states.Keep(std::move(held_.slot), IdentityOf(record_), std::move(held_.loaded));
    }
    MNEME_ASSIGN_OR_RETURN(*response.mutable_session(), ToProto(parts_, record_));
  }
  const std::string& here = model_->engine->numerics_id();
  const std::string& source =
      header_.manifest != nullptr ? header_.manifest->identity.numerics_id : here;
  response.set_source_uid(header_.source_uid);
  response.set_source_numerics_id(source);
  response.set_numerics_id(here);
  response.set_same_numerics(source == here);
  response.set_received_bytes(received_bytes_);
  return response;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Import>> StartImport(Parts& parts, CallContext& context,
                                                    const v1::ImportSessionRequest::Start& start) {
  auto import = std::make_unique<ImportImpl>(parts, context, start);
  MNEME_RETURN_IF_ERROR(import->Begin());
  return import;
}

}  // namespace mneme::server
