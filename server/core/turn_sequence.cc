#include "server/core/turn_sequence.h"

#include <algorithm>
#include <utility>

namespace mneme::server {
namespace {

using Clock = CallContext::Clock;
using Cancel = CallContext::Cancel;

double Seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

}  // namespace

TurnSequence::TurnSequence(const Model& model, CallContext& context, Metrics& metrics,
                           LoadedState& loaded, const std::vector<engine::TokenId>& input,
                           std::string begun, TurnOptions options)
    : model_(model),
      context_(context),
      metrics_(metrics),
      loaded_(loaded),
      input_(input),
      options_(std::move(options)),
      sampler_(options_.sampling),
      matcher_(options_.stop_sequences),
      utf8_(std::move(begun)),
      started_(Clock::now()),
      prefill_end_(started_) {
  const size_t window = std::min<size_t>(input_.size(), options_.sampling.penalty_window_tokens);
  history_.assign(input_.end() - static_cast<ptrdiff_t>(window), input_.end());
}

Sequence::Want TurnSequence::Next() {
  if (!ending_) {
    if (const Cancel cause = context_.cancelled(); cause != Cancel::kNone) {
      const bool asked = cause == Cancel::kRequested;
      Stop(asked                        ? v1::CANCELLED
           : cause == Cancel::kShutdown ? v1::PREEMPTED
                                        : v1::CANCELLED,
           cause);
    } else if (options_.end_time != Clock::time_point::max() && Clock::now() >= options_.end_time) {
      Stop(v1::DURATION, Cancel::kNone);
    }
  }
  if (!ending_ && read_ < static_cast<int64_t>(input_.size())) {
    return {.kind = Want::Kind::kRead, .tokens = std::span(input_).subspan(read_)};
  }
  if (!ending_ && !next_token_.has_value()) {
    // An empty input goes on from the logits that were stored with the state.
    if (options_.max_output_tokens == 0) {
      Finish(options_.length_reason);
      result_.complete = true;
    } else {
      Sample(loaded_.logits);
    }
  }
  if (!next_token_.has_value()) return {};
  if (!ending_ && OutputFull()) return {.kind = Want::Kind::kWait};
  return {.kind = Want::Kind::kRead, .tokens = std::span(&*next_token_, 1), .decode = true};
}

void TurnSequence::OnRead(int64_t num_tokens, std::span<const float> logits) {
  if (read_ < static_cast<int64_t>(input_.size())) {
    read_ += num_tokens;
    prefilled_.store(read_, std::memory_order_relaxed);
    if (read_ < static_cast<int64_t>(input_.size())) return;
    prefill_end_ = Clock::now();
    if (options_.max_output_tokens > 0) {
      Sample(logits);
    } else {
      SaveLogits(logits);
      Finish(options_.length_reason);
      result_.complete = true;
    }
    return;
  }
  next_token_.reset();
  if (ending_) {
    SaveLogits(logits);
    result_.complete = true;
  } else {
    Sample(logits);
  }
}

void TurnSequence::SaveLogits(std::span<const float> logits) {
  if (logits.data() != loaded_.logits.data()) {
    loaded_.logits.assign(logits.begin(), logits.end());
  }
}

void TurnSequence::Stop(v1::FinishReason reason, Cancel cause) {
  result_.cause = cause;
  if (read_ < static_cast<int64_t>(input_.size()) || result_.output.empty() ||
      (cause != Cancel::kNone && !options_.keep_cancelled)) {
    next_token_.reset();  // nothing to keep
  }
  Finish(reason);
}

void TurnSequence::Finish(v1::FinishReason reason) {
  ending_ = true;
  result_.reason = reason;
  std::string text = options_.hold_unfinished ? "" : matcher_.Feed(utf8_.Flush());
  text += matcher_.Flush();
  Emit(std::move(text));
}

void TurnSequence::Sample(std::span<const float> logits) {
  const auto now = Clock::now();
  const int64_t index = static_cast<int64_t>(result_.output.size());
  const engine::TokenId token = sampler_.Sample(logits, history_, index);
  history_.push_back(token);
  if (index == 0) {
    result_.first_token = now;
  } else {
    metrics_.inter_token_latency.Observe(Seconds(now - result_.last_token));
  }
  result_.last_token = now;

  v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
  const auto& stops = options_.stop_token_ids;
  if (!options_.ignore_eos && model_.IsEndOfGeneration(token)) {
    reason = v1::EOS;
  } else if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
    reason = v1::STOP_TOKEN;
  }
  if (reason != v1::FINISH_REASON_UNSPECIFIED && options_.drop) {
    SaveLogits(logits);  // those before the token are what the session goes on from
    Finish(reason);
    result_.complete = true;
    return;
  }

  HeldToken held{token, 0, {}};
  if (options_.logprobs > 0) {
    held.logprobs.set_logprob(engine::Sampler::Logprob(logits, token));
    for (const auto& top : engine::Sampler::TopLogprobs(logits, options_.logprobs)) {
      auto* out = held.logprobs.add_top();
      out->set_token_id(top.token);
      out->set_logprob(top.logprob);
    }
  }
  result_.output.push_back(token);
  next_token_ = token;

  // A token that shows nothing, or must not be shown, ends a character that is not complete.
  const std::string bytes = reason == v1::FINISH_REASON_UNSPECIFIED
                                ? model_.tokenizer().TokenBytes(token)
                                : std::string();
  const std::string text = bytes.empty() ? utf8_.Flush() : utf8_.Feed(bytes);
  text_bytes_ += static_cast<int64_t>(text.size());
  std::string released = matcher_.Feed(text);
  // A token that ends inside a character is complete with the character.
  held.end = text_bytes_ + (utf8_.pending() ? 1 : 0);
  token_ends_.push_back(held.end);
  held_.push_back(std::move(held));

  if (matcher_.match().has_value()) {
    if (options_.drop) {
      const int64_t match = *matcher_.match();
      const size_t kept = std::find_if(token_ends_.begin(), token_ends_.end(),
                                       [&](int64_t end) { return end > match; }) -
                          token_ends_.begin();
      const size_t dropped = result_.output.size() - kept;
      result_.output.resize(kept);
      for (size_t i = 0; i < dropped && !held_.empty(); ++i) held_.pop_back();
      next_token_.reset();
      if (dropped == 1) {
        SaveLogits(logits);
        result_.complete = true;
      } else {
        result_.replay = true;
      }
    }
    Emit(std::move(released));
    Finish(v1::STOP_SEQUENCE);
    return;
  }
  Emit(std::move(released));
  if (reason == v1::FINISH_REASON_UNSPECIFIED &&
      static_cast<int64_t>(result_.output.size()) >= options_.max_output_tokens) {
    reason = options_.length_reason;
  }
  if (reason != v1::FINISH_REASON_UNSPECIFIED) Finish(reason);
}

void TurnSequence::Emit(std::string text) {
  MutexLock lock(&mutex_);
  pending_.mutable_text()->append(text);
  pending_bytes_ += static_cast<int64_t>(text.size());
  while (!held_.empty() && (ending_ || held_.front().end <= matcher_.released_bytes())) {
    pending_.add_token_ids(held_.front().id);
    if (options_.logprobs > 0) *pending_.add_logprobs() = std::move(held_.front().logprobs);
    held_.pop_front();
  }
  changed_.NotifyAll();
}

bool TurnSequence::OutputFull() {
  MutexLock lock(&mutex_);
  waiting_for_room_ = pending_.token_ids_size() + taken_tokens_ >= options_.max_unsent_tokens ||
                      pending_bytes_ + taken_bytes_ >= kMaxUnsentBytes;
  return waiting_for_room_;
}

void TurnSequence::OnFailure(absl::Status status) {
  result_.failure = std::move(status);
  result_.complete = false;
}

void TurnSequence::OnRemoved() {
  result_.prefilled = read_;
  const auto now = Clock::now();
  if (read_ < static_cast<int64_t>(input_.size())) prefill_end_ = now;
  result_.prefill_seconds = Seconds(prefill_end_ - started_);
  result_.decode_seconds = Seconds(now - prefill_end_);
  if (result_.cause != Cancel::kNone) {
    metrics_.cancel_latency.Observe(Seconds(now - context_.cancelled_at()));
  }
  MutexLock lock(&mutex_);
  removed_ = true;
  changed_.NotifyAll();
}

TurnSequence::Output TurnSequence::Take(Clock::time_point until) {
  Output out;
  bool wake = false;
  {
    MutexLock lock(&mutex_);
    taken_tokens_ = taken_bytes_ = 0;
    const auto has_output = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return pending_.token_ids_size() > 0 || !pending_.text().empty();
    };
    if (waiting_for_room_) {
      waiting_for_room_ = false;
      wake = true;
    }
    if (!wake) {
      while (!has_output() && !removed_) {
        if (!changed_.WaitUntil(&mutex_, until)) break;
      }
    }
    out.delta.Swap(&pending_);
    pending_.Clear();
    taken_tokens_ = out.delta.token_ids_size();
    taken_bytes_ = pending_bytes_;
    pending_bytes_ = 0;
    if (waiting_for_room_) {  // became full while we waited
      waiting_for_room_ = false;
      wake = true;
    }
    out.removed = removed_;
  }
  if (wake) model_.scheduler->Wake();
  return out;
}

}  // namespace mneme::server
