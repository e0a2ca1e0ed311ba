#include "server/core/ingest.h"

#include <algorithm>
#include <chrono>
#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/core/utf8.h"
#include "server/core/cancel_status.h"
#include "server/core/errors.h"
#include "server/core/generate_request.h"
#include "server/core/ingest_text.h"
#include "server/core/limits.h"
#include "server/core/session_names.h"
#include "server/core/state_io.h"

namespace mneme::server {
namespace {

using Clock = CallContext::Clock;

constexpr int64_t kDefaultCommitTokens = 65536;
constexpr size_t kMaxIngestIdBytes = 64;
// Read at once, so that the commit interval is looked at often enough.
constexpr int64_t kReadTokens = 512;

class IngestImpl final : public Ingest {
 public:
  IngestImpl(Parts& parts, CallContext& context, const v1::IngestRequest::Start& start)
      : parts_(parts),
        context_(context),
        start_(start),
        commit_interval_(
            std::chrono::milliseconds(parts.config.sessions.ingest_commit_interval_ms)) {}
  ~IngestImpl() override { Close(); }

  absl::Status Begin();
  v1::IngestProgress progress() const override { return progress_; }
  absl::Status Write(const v1::IngestRequest::Data& data) override;
  absl::StatusOr<bool> CommitIfDue() override;
  // Where there is nothing to commit, looking once an interval is enough.
  Clock::time_point commit_due() const override {
    return closed_ ? Clock::time_point::max()
                   : std::max(last_commit_, last_look_) + commit_interval_;
  }

 private:
  absl::Status Check();
  absl::Status WriteChecked(const v1::IngestRequest::Data& data);
  absl::Status ReadPieces(bool last);
  absl::Status Read(bool all);
  absl::Status Commit(bool done);
  void Publish();
  // Gives writer and slot back; an uncommitted state is thrown away.
  void Close();

  Parts& parts_;
  CallContext& context_;
  const v1::IngestRequest::Start start_;
  const Clock::duration commit_interval_;
  SessionName name_;
  const Model* model_ = nullptr;
  std::optional<CallRegistry::Call> call_;
  TenantUse::Share share_;
  Writer writer_;
  SessionRecord base_;
  HeldState held_;
  std::optional<IngestText> text_;
  storage::IngestMark mark_;
  int64_t commit_every_ = kDefaultCommitTokens;
  bool text_read_ = false;  // anything in the session, or of this text
  std::vector<engine::TokenId> unread_;
  std::vector<engine::TokenId> uncommitted_;  // read by the state since the last commit
  int64_t consumed_read_ = 0;                 // text offset up to which the state has read
  Clock::time_point last_commit_ = Clock::now();
  Clock::time_point last_look_ = last_commit_;  // of CommitIfDue
  absl::Status failed_;
  bool closed_ = false;
  v1::IngestProgress progress_;
};

absl::Status IngestImpl::Check() {
  FieldErrors errors;
  const std::string& id = start_.ingest_id();
  if (id.empty()) {
    errors.Add("start.ingest_id", "is required", reason::kFieldRequired);
  } else if (id.size() > kMaxIngestIdBytes || !engine::IsValidUtf8(id)) {
    errors.Add("start.ingest_id", "must have 1 to 64 characters");
  }
  if (start_.expected_version() < 0) {
    errors.Add("start.expected_version",
               absl::StrCat("must not be negative, is ", start_.expected_version()),
               reason::kFieldOutOfRange);
  }
  if (start_.commit_every_tokens() < 0) {
    errors.Add("start.commit_every_tokens",
               absl::StrCat("must not be negative, is ", start_.commit_every_tokens()),
               reason::kFieldOutOfRange);
  }
  return errors.ToStatus();
}

absl::Status IngestImpl::Begin() {
  MNEME_RETURN_IF_ERROR(CheckNotDraining(parts_));
  MNEME_ASSIGN_OR_RETURN(name_,
                         ParseSessionName(start_.session(), "start.session", context_.tenant));
  MNEME_RETURN_IF_ERROR(Check());
  call_.emplace(parts_.calls, context_);
  MNEME_ASSIGN_OR_RETURN(share_, parts_.tenants.Begin(context_));
  MNEME_RETURN_IF_ERROR(parts_.storage->CheckBytes(context_));
  MNEME_RETURN_IF_ERROR(parts_.sessions->GetUsable(name_, true).status());
  MNEME_ASSIGN_OR_RETURN(writer_, TakeWriter(parts_, context_, name_, false));
  MNEME_ASSIGN_OR_RETURN(base_, parts_.sessions->GetUsable(name_, true));
  MNEME_ASSIGN_OR_RETURN(model_, parts_.models->ForSession(context_, base_.data));
  const int64_t version = base_.data.head().version();
  if (base_.data.ingest().ingest_id() == start_.ingest_id()) {
    mark_ = base_.data.ingest();
    if (!mark_.done() && mark_.version() != version) {
      return VersionMismatch(base_, parts_.metrics);  // another turn came in between
    }
  } else {
    MNEME_RETURN_IF_ERROR(CheckVersion(start_.expected_version(), base_, parts_.metrics));
    mark_.set_ingest_id(start_.ingest_id());
  }
  if (start_.commit_every_tokens() > 0) commit_every_ = start_.commit_every_tokens();
  text_.emplace(model_->tokenizer(), mark_.durable_bytes());
  text_read_ = base_.data.head().position_tokens() > 0;
  consumed_read_ = mark_.durable_bytes();
  Publish();
  if (mark_.done()) {
    progress_.set_done(true);
    Close();
    return absl::OkStatus();
  }
  MNEME_ASSIGN_OR_RETURN(held_, HoldHead(parts_, context_, *model_, base_,
                                         {.queued = 0, .end = model_->context_limit()}));
  last_commit_ = Clock::now();
  return absl::OkStatus();
}

void IngestImpl::Publish() {
  progress_.set_read_tokens(mark_.read_tokens() + static_cast<int64_t>(uncommitted_.size()));
  progress_.set_received_bytes(text_->received_bytes());
  progress_.set_durable_bytes(mark_.durable_bytes());
  progress_.set_version(base_.data.head().version());
  progress_.set_position_tokens(base_.data.head().position_tokens() +
                                static_cast<int64_t>(uncommitted_.size()));
  progress_.set_state_bytes(
      static_cast<int64_t>(model_->engine->schema().StateBytes(progress_.position_tokens())));
}

absl::Status IngestImpl::Write(const v1::IngestRequest::Data& data) {
  if (!failed_.ok()) return failed_;
  if (progress_.done()) return absl::OkStatus();  // sent again after it was finished
  const absl::Status status = WriteChecked(data);
  if (!status.ok()) {
    failed_ = status;
    Close();
  }
  return status;
}

absl::Status IngestImpl::WriteChecked(const v1::IngestRequest::Data& data) {
  FieldErrors errors;
  if (data.data().size() > kMaxFrameBytes) {
    errors.Add("data.data", absl::StrCat("must have at most 1 MiB, has ", data.data().size()),
               reason::kFieldOutOfRange);
  }
  if (data.offset_bytes() < 0) {
    errors.Add("data.offset_bytes", absl::StrCat("must not be negative, is ", data.offset_bytes()),
               reason::kFieldOutOfRange);
  }
  MNEME_RETURN_IF_ERROR(errors.ToStatus());
  MNEME_RETURN_IF_ERROR(CancelStatus(context_.cancelled()));
  const int64_t received = text_->received_bytes();
  if (data.offset_bytes() > received) {
    return Error(
        absl::StatusCode::kOutOfRange, reason::kIngestGap,
        absl::StrCat("data.offset_bytes is ", data.offset_bytes(), ", expected at most ", received),
        {{"received_bytes", absl::StrCat(received)},
         {"durable_bytes", absl::StrCat(mark_.durable_bytes())}});
  }
  std::string_view bytes = data.data();
  bytes.remove_prefix(
      std::min<size_t>(bytes.size(), static_cast<size_t>(received - data.offset_bytes())));
  const std::optional<int64_t> bad = text_->Append(bytes);
  if (bad.has_value()) {
    errors.Add("data.data", absl::StrCat("must be UTF-8; byte ", *bad, " of the text is not"));
    return errors.ToStatus();
  }
  if (data.last() && text_->unfinished()) {
    errors.Add("data.data", "must be UTF-8; the text ends inside a character");
    return errors.ToStatus();
  }
  MNEME_RETURN_IF_ERROR(ReadPieces(data.last()));
  if (data.last()) {
    MNEME_RETURN_IF_ERROR(Read(true));
    MNEME_RETURN_IF_ERROR(Commit(true));
    Publish();
    progress_.set_done(true);
    Close();
    return absl::OkStatus();
  }
  Publish();
  return absl::OkStatus();
}

absl::Status IngestImpl::ReadPieces(bool last) {
  const engine::SpecialTokens& special = model_->tokenizer().special();
  while (true) {
    const std::string piece = text_->NextPiece(last);
    if (piece.empty()) return absl::OkStatus();
    auto tokens = model_->tokenizer().Encode(piece, start_.parse_special_tokens(), !text_read_);
    if (!tokens.ok()) {
      FieldErrors errors;
      errors.Add("data.data", "cannot be tokenised by this model");
      return errors.ToStatus();
    }
    if (!text_read_ && special.add_bos && special.bos >= 0) unread_.push_back(special.bos);
    text_read_ = true;
    unread_.insert(unread_.end(), tokens->begin(), tokens->end());
    // The text up to here is durable once these tokens are: read them before the next piece, so
    // that every commit falls on the end of a piece.
    MNEME_RETURN_IF_ERROR(Read(false));
  }
}

absl::Status IngestImpl::Read(bool all) {
  // Small pieces are gathered: an engine step costs the same for one token as for many.
  if (!all && static_cast<int64_t>(unread_.size()) < kReadTokens &&
      static_cast<int64_t>(uncommitted_.size() + unread_.size()) < commit_every_ &&
      Clock::now() - last_commit_ < commit_interval_) {
    return absl::OkStatus();
  }
  MNEME_RETURN_IF_ERROR(
      CheckContext(*model_, held_.loaded.state.position, static_cast<int64_t>(unread_.size())));
  // What was committed stays; this would begin the next stretch.
  if (uncommitted_.empty() && !unread_.empty()) {
    MNEME_RETURN_IF_ERROR(parts_.storage->CheckBytes(context_));
  }
  MNEME_RETURN_IF_ERROR(ReadTokens(context_, *model_, held_, unread_));
  model_->metrics->input_tokens.Increment(static_cast<double>(unread_.size()));
  share_.Charge(static_cast<int64_t>(unread_.size()));
  uncommitted_.insert(uncommitted_.end(), unread_.begin(), unread_.end());
  unread_.clear();
  consumed_read_ = text_->consumed_bytes();
  if (all) return absl::OkStatus();  // the caller commits
  if (static_cast<int64_t>(uncommitted_.size()) >= commit_every_ ||
      Clock::now() - last_commit_ >= commit_interval_) {
    MNEME_RETURN_IF_ERROR(Commit(false));
  }
  Publish();
  return absl::OkStatus();
}

absl::StatusOr<bool> IngestImpl::CommitIfDue() {
  if (!failed_.ok()) return failed_;
  const auto now = Clock::now();
  if (now < commit_due()) return false;
  last_look_ = now;
  const int64_t version = base_.data.head().version();
  text_->LookAgain();
  absl::Status status = ReadPieces(false);
  if (status.ok() && !(unread_.empty() && uncommitted_.empty())) status = Read(false);
  if (!status.ok()) {
    failed_ = status;
    Close();
    return status;
  }
  Publish();
  return base_.data.head().version() != version;
}

absl::Status IngestImpl::Commit(bool done) {
  storage::IngestMark mark = mark_;
  mark.set_durable_bytes(consumed_read_);
  mark.set_read_tokens(mark_.read_tokens() + static_cast<int64_t>(uncommitted_.size()));
  mark.set_done(done);
  MNEME_ASSIGN_OR_RETURN(
      CommitResult commit,
      CommitHead(parts_, *model_, base_, held_,
                 {.ids = uncommitted_,
                  .runs = RunsOfText(model_->tokenizer(), v1::TranscriptPart::DOCUMENT,
                                     uncommitted_, base_.data.head().position_tokens())},
                 {.lease = writer_.lease, .turn_end = done, .ingest = &mark}));
  base_ = std::move(commit.record);
  mark_ = base_.data.ingest();
  uncommitted_.clear();
  last_commit_ = Clock::now();
  return absl::OkStatus();
}

void IngestImpl::Close() {
  if (closed_) return;
  closed_ = true;
  if (held_.slot && held_.loaded.state.position == base_.data.head().position_tokens() &&
      failed_.ok()) {
    parts_.states.Keep(std::move(held_.slot), IdentityOf(base_), std::move(held_.loaded));
  } else {
    held_.loaded = LoadedState();
    held_.slot.Release();
  }
  writer_.Release();
  if (call_) call_->End();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Ingest>> StartIngest(Parts& parts, CallContext& context,
                                                    const v1::IngestRequest::Start& start) {
  auto ingest = std::make_unique<IngestImpl>(parts, context, start);
  MNEME_RETURN_IF_ERROR(ingest->Begin());
  return ingest;
}

}  // namespace mneme::server
