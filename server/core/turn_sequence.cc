#include "server/core/turn_sequence.h"

#include <algorithm>
#include <utility>

#include "server/core/turn_journal.h"

namespace mneme::server {
namespace {

using Clock = CallContext::Clock;
using Cancel = CallContext::Cancel;

// Known tokens that are published at once, so that their events have the usual size.
constexpr size_t kPublishAtOnce = 256;

double Seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

}  // namespace

TurnSequence::TurnSequence(const Model& model, Scheduler& scheduler, CallContext& context,
                           TenantUse::Share& share, GenerationLog& log, LoadedState& loaded,
                           TurnReading reading, TurnOptions options)
    : model_(model),
      scheduler_(scheduler),
      context_(context),
      share_(share),
      log_(log),
      loaded_(loaded),
      turn_(std::move(reading)),
      options_(std::move(options)),
      reading_(turn_.input.subspan(turn_.reused)),
      sampler_(options_.sampling),
      matcher_(options_.stop_sequences),
      utf8_(turn_.begun),
      started_(Clock::now()),
      prefill_end_(started_) {
  const auto& input = turn_.input;
  const size_t window = std::min<size_t>(input.size(), options_.sampling.penalty_window_tokens);
  history_.assign(input.end() - static_cast<ptrdiff_t>(window), input.end());
  if (const auto& known = turn_.known; !known.empty() && options_.logprobs == 0) {
    to_accept_ = true;
    joined_.reserve(reading_.size() + known.size() - 1);
    joined_.assign(reading_.begin(), reading_.end());
    // The last is read as if it had just been chosen.
    joined_.insert(joined_.end(), known.begin(), known.end() - 1);
    reading_ = joined_;
  }
  log_.OnRoom([&scheduler] { scheduler.Wake(); });
}

std::span<const engine::TokenId> TurnSequence::ToRead() const {
  const auto rest = reading_.subspan(read_);
  if (next_mark_ == turn_.marks.size()) return rest;
  return rest.first(turn_.marks[next_mark_] - turn_.reused - read_);
}

Sequence::Want TurnSequence::Next() {
  if (at_mark_) return {.kind = Want::Kind::kWait};
  const bool reading = read_ < to_prefill();
  if (!ending_) {
    if (const Cancel cause = context_.cancelled(); cause != Cancel::kNone) {
      const bool asked = cause == Cancel::kRequested;
      Stop(asked                        ? v1::CANCELLED
           : cause == Cancel::kShutdown ? v1::PREEMPTED
                                        : v1::CANCELLED,
           cause);
    } else if (!reading && to_accept_) {
      AcceptKnown();
    } else if (!repeating() && options_.end_time != Clock::time_point::max() &&
               Clock::now() >= options_.end_time) {
      Stop(v1::DURATION, Cancel::kNone);
    }
  }
  if (!ending_ && reading) {
    return {.kind = Want::Kind::kRead, .tokens = ToRead()};
  }
  if (!ending_ && !next_token_.has_value()) {  // an empty input
    if (options_.max_output_tokens > 0) return {.kind = Want::Kind::kRead, .decode = true};
    Finish(options_.length_reason);
    result_.complete = true;
  }
  if (!next_token_.has_value()) return {};
  if (!ending_ && log_.Full()) return {.kind = Want::Kind::kWait};
  return {.kind = Want::Kind::kRead, .tokens = std::span(&*next_token_, 1), .decode = true};
}

void TurnSequence::OnRead(int64_t num_tokens, std::span<const float> logits) {
  share_.Charge(num_tokens);
  if (read_ < to_prefill()) {
    read_ += num_tokens;
    prefilled_.store(read_, std::memory_order_relaxed);
    if (next_mark_ < turn_.marks.size() && turn_.reused + read_ == turn_.marks[next_mark_]) {
      at_mark_ = true;
    }
    if (read_ < to_prefill()) return;
    prefill_end_ = Clock::now();
    if (to_accept_) return;  // by Next()
    if (options_.max_output_tokens > 0) {
      Choose(logits);
    } else {
      Finish(options_.length_reason);
      result_.complete = true;
    }
    return;
  }
  next_token_.reset();
  if (ending_) {
    result_.complete = true;
  } else {
    Choose(logits);
  }
}

void TurnSequence::Stop(v1::FinishReason reason, Cancel cause) {
  result_.cause = cause;
  if (read_ < to_prefill() || result_.output.empty() ||
      (cause != Cancel::kNone && !options_.keep_cancelled)) {
    next_token_.reset();  // nothing to keep
  }
  Finish(reason);
}

void TurnSequence::Finish(v1::FinishReason reason) {
  ending_ = true;
  result_.reason = reason;
}

void TurnSequence::Choose(std::span<const float> logits) {
  const size_t index = result_.output.size();
  Accept(repeating() ? turn_.known[index]
                     : sampler_.Sample(logits, history_, static_cast<int64_t>(index)),
         logits);
}

void TurnSequence::AcceptKnown() {
  to_accept_ = false;
  for (size_t i = 0; i < turn_.known.size(); ++i) {
    if (ending_) {
      OnFailure(DamagedTurn());
      next_token_.reset();
      return;
    }
    Accept(turn_.known[i], {});
    if (i % kPublishAtOnce == kPublishAtOnce - 1) Publish();
  }
}

void TurnSequence::Accept(engine::TokenId id, std::span<const float> logits) {
  Token chosen{.id = id, .is_known = repeating(), .time = Clock::now()};
  history_.push_back(chosen.id);

  v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
  const auto& stops = options_.stop_token_ids;
  if (!options_.ignore_eos && model_.IsEndOfGeneration(chosen.id)) {
    reason = v1::EOS;
  } else if (std::find(stops.begin(), stops.end(), chosen.id) != stops.end()) {
    reason = v1::STOP_TOKEN;
  }
  if (reason != v1::FINISH_REASON_UNSPECIFIED && options_.drop) {
    Finish(reason);  // the session goes on from before the token
    result_.complete = true;
    return;
  }

  chosen.has_text = reason == v1::FINISH_REASON_UNSPECIFIED;
  if (options_.logprobs > 0) {
    chosen.logprobs.set_logprob(engine::Sampler::Logprob(logits, chosen.id));
    for (const auto& top : engine::Sampler::TopLogprobs(logits, options_.logprobs)) {
      auto* out = chosen.logprobs.add_top();
      out->set_token_id(top.token);
      out->set_logprob(top.logprob);
    }
  }
  result_.output.push_back(chosen.id);
  next_token_ = chosen.id;
  chosen_.push_back(std::move(chosen));

  if (!options_.stop_sequences.empty()) {
    Detokenize();
    if (matcher_.match().has_value()) {
      if (options_.drop) DropMatch();
      return Finish(v1::STOP_SEQUENCE);
    }
  }
  if (reason == v1::FINISH_REASON_UNSPECIFIED &&
      static_cast<int64_t>(result_.output.size()) >= options_.max_output_tokens) {
    reason = options_.length_reason;
  }
  if (reason != v1::FINISH_REASON_UNSPECIFIED) Finish(reason);
}

void TurnSequence::Detokenize() {
  for (; !chosen_.empty(); chosen_.pop_front()) {
    Token& token = chosen_.front();
    // A token that shows nothing, or must not be shown, ends a character that is not complete.
    const std::string bytes =
        token.has_text ? model_.tokenizer().TokenBytes(token.id) : std::string();
    const std::string text = bytes.empty() ? utf8_.Flush() : utf8_.Feed(bytes);
    text_bytes_ += static_cast<int64_t>(text.size());
    released_ += matcher_.Feed(text);
    // A token that ends inside a character is complete with the character.
    token.end = text_bytes_ + (utf8_.pending() ? 1 : 0);
    if (token_ends_.empty()) {
      result_.first_token = token.time;
    } else if (!token.is_known) {
      model_.metrics->inter_token_latency.Observe(Seconds(token.time - result_.last_token));
    }
    result_.last_token = token.time;
    token_ends_.push_back(token.end);
    held_.push_back(std::move(token));
  }
}

void TurnSequence::DropMatch() {
  const int64_t match = *matcher_.match();
  const size_t kept = std::find_if(token_ends_.begin(), token_ends_.end(),
                                   [&](int64_t end) { return end > match; }) -
                      token_ends_.begin();
  const size_t dropped = result_.output.size() - kept;
  result_.output.resize(kept);
  for (size_t i = 0; i < dropped && !held_.empty(); ++i) held_.pop_back();
  next_token_.reset();
  if (dropped == 1) {  // which was not read yet
    result_.complete = true;
  } else {
    result_.replay = true;
  }
}

void TurnSequence::Publish() {
  if (at_mark_) {
    turn_.on_mark(turn_.marks[next_mark_++]);
    at_mark_ = false;
    scheduler_.Wake();
  }
  Detokenize();
  if (ending_ && !flushed_) {
    flushed_ = true;
    if (!options_.hold_unfinished) released_ += matcher_.Feed(utf8_.Flush());
    released_ += matcher_.Flush();
  }
  const auto complete = [&](const Token& token) {
    return ending_ || token.end <= matcher_.released_bytes();
  };
  if (released_.empty() && (held_.empty() || !complete(held_.front()))) return;

  v1::GenerateResponse::Delta delta;
  delta.mutable_text()->swap(released_);
  for (; !held_.empty() && complete(held_.front()); held_.pop_front()) {
    Token& token = held_.front();
    delta.add_token_ids(token.id);
    if (options_.logprobs > 0) *delta.add_logprobs() = std::move(token.logprobs);
  }
  const int64_t published = published_.load() + delta.token_ids_size();
  log_.AppendOutput(std::move(delta));
  published_ = published;
  if (published < wake_at_) return;
  MutexLock lock(&mutex_);
  changed_.NotifyAll();
}

void TurnSequence::OnFailure(absl::Status status) {
  result_.failure = std::move(status);
  result_.complete = false;
}

void TurnSequence::OnRemoved() {
  result_.prefilled = std::min(read_, static_cast<int64_t>(turn_.input.size()) - turn_.reused);
  result_.recomputed = read_ - result_.prefilled;
  if (read_ == to_prefill()) {
    // The last of them, or with logprobs all, were read one by one.
    result_.recomputed = static_cast<int64_t>(std::min(turn_.known.size(), result_.output.size()));
  }
  const auto now = Clock::now();
  if (read_ < to_prefill()) prefill_end_ = now;
  result_.prefill_seconds = Seconds(prefill_end_ - started_);
  result_.decode_seconds = Seconds(now - prefill_end_);
  if (result_.cause != Cancel::kNone) {
    model_.metrics->cancel_latency.Observe(Seconds(now - context_.cancelled_at()));
  }
  MutexLock lock(&mutex_);
  removed_ = true;
  changed_.NotifyAll();
}

bool TurnSequence::AwaitRemoval(Clock::time_point until, int64_t num_tokens) {
  MutexLock lock(&mutex_);
  wake_at_ = num_tokens;
  while (!removed_ && published_ < num_tokens) {
    if (!changed_.WaitUntil(&mutex_, until)) break;
  }
  return removed_;
}

}  // namespace mneme::server
