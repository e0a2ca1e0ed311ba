#include "server/core/generation_log.h"

#include <algorithm>
#include <stop_token>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "server/core/cancel_status.h"
#include "server/core/errors.h"
#include "server/core/received_output.h"

namespace mneme::server {
namespace {

using Cancel = CallContext::Cancel;

// Of an event of Output(), if not more come at once.
constexpr int kFewTokens = 256;

}  // namespace

void GenerationLog::Add(v1::GenerateResponse event) {
  event.set_sequence(static_cast<int64_t>(marks_.size()) + 1);
  event.AppendToString(&bytes_);
  marks_.push_back({bytes_.size(), static_cast<int64_t>(token_ids_.size())});
}

void GenerationLog::Seal() {
  if (!HasOpen()) return;
  v1::GenerateResponse event;
  event.mutable_delta()->Swap(&open_);
  open_.Clear();
  Add(std::move(event));
}

void GenerationLog::Append(v1::GenerateResponse event) {
  MutexLock lock(&mutex_);
  Seal();
  Add(std::move(event));
  changed_.NotifyAll();
}

void GenerationLog::AppendOutput(v1::GenerateResponse::Delta delta) {
  MutexLock lock(&mutex_);
  if (!first_output_) first_output_ = Clock::now();
  // An event stays within what a client takes, however long nobody reads.
  if (open_.token_ids_size() >= options_.max_unsent_tokens ||
      static_cast<int64_t>(open_.text().size()) >= kMaxUnsentBytes) {
    Seal();
  }
  token_ids_.insert(token_ids_.end(), delta.token_ids().begin(), delta.token_ids().end());
  if (HasOpen()) {
    open_.mutable_text()->append(delta.text());
    open_.mutable_token_ids()->MergeFrom(delta.token_ids());
    open_.mutable_logprobs()->MergeFrom(delta.logprobs());
  } else {
    open_ = std::move(delta);
  }
  changed_.NotifyAll();
}

void GenerationLog::End(absl::Status status) {
  bool was_unattended = false;
  {
    MutexLock lock(&mutex_);
    Seal();
    status_ = std::move(status);
    bytes_.shrink_to_fit();
    marks_.shrink_to_fit();
    token_ids_.shrink_to_fit();
    was_unattended =
        std::exchange(unattended_until_, Clock::time_point::max()) != Clock::time_point::max();
    changed_.NotifyAll();
  }
  if (was_unattended) options_.on_unattended(false);
}

void GenerationLog::OnRoom(std::function<void()> wake) {
  MutexLock lock(&mutex_);
  wake_ = std::move(wake);
}

bool GenerationLog::Full() {
  MutexLock lock(&mutex_);
  // Without the reader that has left nothing will make room: the turn goes on to its end, which
  // max_output_tokens bounds. The first one is on its way.
  waiting_for_room_ =
      unattended_until_ == Clock::time_point::max() &&
      (static_cast<int64_t>(token_ids_.size()) - read_.tokens >= options_.max_unsent_tokens ||
       static_cast<int64_t>(bytes_.size() + open_.text().size() - read_.bytes) >= kMaxUnsentBytes);
  return waiting_for_room_;
}

std::optional<GenerationLog::Clock::time_point> GenerationLog::first_output() const {
  MutexLock lock(&mutex_);
  return first_output_;
}

absl::Status GenerationLog::Read(CallContext& call, const v1::ResumeGenerationRequest& from,
                                 TurnSink& sink) {
  int64_t sequence = from.after_sequence();
  std::optional<ReceivedOutput> received;
  if (options_.revived && sequence > 0) {
    MNEME_RETURN_IF_ERROR(ReceivedOutput::Check(from));
    received.emplace(from.received());
  }
  int64_t index = received ? 0 : sequence;  // events that were looked at
  MNEME_RETURN_IF_ERROR(Attach(call, index));
  absl::Status diverged;
  bool complete = false;
  {
    std::stop_callback on_cancel(call.stop_token(), [this] {
      MutexLock lock(&mutex_);
      changed_.NotifyAll();
    });
    v1::GenerateResponse event;
    Step step = Step::kEvent;
    while ((step = Next(call, index, &event)) == Step::kEvent) {
      const absl::StatusOr<bool> wanted = received ? received->Cut(event) : true;
      diverged = wanted.status();
      if (!diverged.ok()) break;
      if (*wanted) {
        event.set_sequence(++sequence);
        if (!sink.Send(std::move(event))) break;
      }
      MarkRead(call, ++index);
    }
    complete = step == Step::kEnd;
  }
  absl::Status status = Leave(call, complete);
  return diverged.ok() ? status : diverged;
}

absl::Status GenerationLog::Attach(CallContext& call, int64_t after_sequence) {
  bool was_unattended = false;
  {
    MutexLock readers(&readers_);
    CallContext* before = nullptr;
    {
      MutexLock lock(&mutex_);
      const auto last = static_cast<int64_t>(marks_.size());
      if (after_sequence < 0 || after_sequence > last) {
        FieldErrors errors;
        errors.Add("after_sequence",
                   absl::StrCat("must be the sequence of an event that was sent, 0 to ", last,
                                ", is ", after_sequence),
                   reason::kFieldOutOfRange);
        return errors.ToStatus();
      }
      before = std::exchange(reader_, &call);
      read_ = MarkOf(after_sequence);
      turn_.unattended = false;
      was_unattended =
          std::exchange(unattended_until_, Clock::time_point::max()) != Clock::time_point::max();
    }
    if (before != nullptr) before->RequestCancel(Cancel::kTakenOver);
  }
  if (was_unattended) options_.on_unattended(false);
  MarkRead(call, after_sequence);  // a turn that waits for another reader's room looks again
  return absl::OkStatus();
}

void GenerationLog::MarkRead(const CallContext& call, int64_t sequence) {
  std::function<void()> wake;
  {
    MutexLock lock(&mutex_);
    if (reader_ != &call) return;
    read_ = MarkOf(sequence);
    if (std::exchange(waiting_for_room_, false)) wake = wake_;
  }
  if (wake) wake();
}

GenerationLog::Step GenerationLog::Next(const CallContext& call, int64_t after_sequence,
                                        v1::GenerateResponse* event) {
  const auto index = static_cast<size_t>(after_sequence);
  MutexLock lock(&mutex_);
  while (true) {
    if (reader_ != &call || call.cancelled() != Cancel::kNone) return Step::kStopped;
    if (index == marks_.size()) Seal();
    if (index < marks_.size()) {
      *event = EventAt(index);
      return Step::kEvent;
    }
    if (status_) return Step::kEnd;
    changed_.WaitUntil(&mutex_, call.deadline);
  }
}

absl::Status GenerationLog::Leave(CallContext& call, bool complete) {
  bool cancel = false, unattended = false;
  std::function<void()> wake;
  {
    MutexLock readers(&readers_);  // whoever takes over is done with `call`
    MutexLock lock(&mutex_);
    if (reader_ == &call) {
      reader_ = nullptr;
      if (std::exchange(waiting_for_room_, false)) wake = wake_;  // nothing is in its way now
      if (!status_) {
        // What nobody has heard of cannot be resumed.
        unattended = options_.resume_window > Clock::duration::zero() &&
                     (options_.has_request_id || !marks_.empty());
        cancel = !unattended;
      }
      if (unattended) {
        turn_.unattended = true;
        unattended_until_ = Clock::now() + options_.resume_window;
      }
    }
  }
  Cancel cause = call.cancelled();
  if (cause == Cancel::kNone) cause = Cancel::kClient;
  if (wake) wake();
  if (unattended) options_.on_unattended(true);
  if (cancel) turn_.RequestCancel(cause);

  MutexLock lock(&mutex_);
  while (cancel && !status_) changed_.Wait(&mutex_);
  return complete ? *status_ : CancelStatus(cause);
}

v1::GenerateResponse GenerationLog::EventAt(size_t index) const {
  const size_t begin = index == 0 ? 0 : marks_[index - 1].bytes;
  v1::GenerateResponse event;
  event.ParseFromArray(bytes_.data() + begin, static_cast<int>(marks_[index].bytes - begin));
  return event;
}

bool GenerationLog::ended() const {
  MutexLock lock(&mutex_);
  return status_.has_value();
}

bool GenerationLog::attended() const {
  MutexLock lock(&mutex_);
  return reader_ != nullptr;
}

GenerationLog::Clock::time_point GenerationLog::unattended_until() const {
  MutexLock lock(&mutex_);
  return unattended_until_;
}

int64_t GenerationLog::last_sequence() const {
  MutexLock lock(&mutex_);
  return static_cast<int64_t>(marks_.size()) + (HasOpen() ? 1 : 0);
}

absl::Status GenerationLog::status() const {
  MutexLock lock(&mutex_);
  return status_.value_or(absl::OkStatus());
}

std::optional<v1::GenerateResponse::Final> GenerationLog::final() const {
  MutexLock lock(&mutex_);
  if (!status_ || marks_.empty()) return std::nullopt;
  v1::GenerateResponse last = EventAt(marks_.size() - 1);
  if (!last.has_final()) return std::nullopt;
  return std::move(*last.mutable_final());
}

std::vector<int32_t> GenerationLog::TokensFrom(int64_t count) const {
  MutexLock lock(&mutex_);
  const auto from = std::min<int64_t>(count, static_cast<int64_t>(token_ids_.size()));
  return {token_ids_.begin() + from, token_ids_.end()};
}

std::vector<v1::GenerateResponse> GenerationLog::Output() const {
  std::vector<v1::GenerateResponse> out;
  MutexLock lock(&mutex_);
  const auto add = [&](const v1::GenerateResponse::Delta& delta) {
    if (out.empty() || out.back().delta().token_ids_size() >= kFewTokens) out.emplace_back();
    v1::GenerateResponse::Delta& last = *out.back().mutable_delta();
    last.mutable_text()->append(delta.text());
    last.mutable_token_ids()->MergeFrom(delta.token_ids());
    last.mutable_logprobs()->MergeFrom(delta.logprobs());
  };
  for (size_t i = 0; i < marks_.size(); ++i) {
    if (const v1::GenerateResponse event = EventAt(i); event.has_delta()) add(event.delta());
  }
  if (HasOpen()) add(open_);
  return out;
}

int64_t GenerationLog::bytes() const {
  MutexLock lock(&mutex_);
  return static_cast<int64_t>(bytes_.capacity() + marks_.capacity() * sizeof(Mark) +
                              token_ids_.capacity() * sizeof(int32_t));
}

}  // namespace mneme::server
