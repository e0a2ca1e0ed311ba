// One turn inside the batch: reads the input, then generates until something ends it.
//
// The batch's side chooses tokens, looks for stops and writes the output into the generation's log.
// When too much of that is unread the sequence leaves the batch and keeps its state until the
// client has read. The turn's thread waits for the end.
//
// A turn that another process had begun has `known` tokens, which were chosen already: they are
// read behind the input, like it, and then go the way of tokens that are chosen. With logprobs each
// is read by itself, since what the model had to say about it is needed again.
//
// Text is made of a token in Publish(), while the engine reads the token; unless the turn has stop
// sequences: then it is made with the choice, since a match must end the turn before the state
// reads on.
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/core/mutex.h"
#include "engine/sampler/sampler.h"
#include "mneme/v1/generation.pb.h"
#include "server/core/call_context.h"
#include "server/core/generation_log.h"
#include "server/core/model_registry.h"
#include "server/core/scheduler.h"
#include "server/core/state_cache.h"
#include "server/core/stop_matcher.h"
#include "server/core/tenant_use.h"
#include "server/core/utf8_stream.h"

namespace mneme::server {

struct TurnOptions {
  engine::SamplingOptions sampling;
  std::vector<std::string> stop_sequences;
  std::vector<engine::TokenId> stop_token_ids;
  bool ignore_eos = false;
  bool drop = false;           // end_handling DROP
  bool keep_cancelled = true;  // commit_policy COMMIT_PARTIAL, on a session
  // A character that is unfinished at the end is left to the session's next turn.
  bool hold_unfinished = false;
  int64_t max_output_tokens = 0;
  v1::FinishReason length_reason = v1::MAX_TOKENS;  // where max_output_tokens ends the turn
  CallContext::Clock::time_point end_time = CallContext::Clock::time_point::max();
  int logprobs = 0;
};

// What a turn has before it says anything new.
struct TurnReading {
  // May be empty if the state has read something. Must outlive the sequence.
  std::span<const engine::TokenId> input;
  int64_t reused = 0;  // tokens of it that the state has read already
  std::vector<engine::TokenId> known;
  std::string begun;  // UnfinishedCharacter() of everything up to the end of the input
  // At these tokens of the input, ascending and behind `reused`, the sequence leaves the batch for
  // a step, and on_mark is called meanwhile, when the state has read exactly so many.
  std::vector<int64_t> marks;
  std::function<void(int64_t num_tokens)> on_mark;
};

struct TurnResult {
  absl::Status failure;  // of the engine: the state must be thrown away
  v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
  CallContext::Cancel cause = CallContext::Cancel::kNone;
  // What the turn adds to the session after its input, in order.
  std::vector<engine::TokenId> output;
  // The state has read input and output.
  bool complete = false;
  // It has read more than that (DROP): restore the base and read input and output again.
  bool replay = false;
  int64_t prefilled = 0;   // of the input, without what was reused
  int64_t recomputed = 0;  // of the known tokens
  double prefill_seconds = 0;
  double decode_seconds = 0;
  CallContext::Clock::time_point first_token = {};
  CallContext::Clock::time_point last_token = {};
};

class TurnSequence final : public Sequence {
 public:
  // All references must outlive the sequence's removal.
  TurnSequence(const Model& model, Scheduler& scheduler, CallContext& context,
               TenantUse::Share& share, GenerationLog& log, LoadedState& loaded,
               TurnReading reading, TurnOptions options);

  // Of the turn's thread. Waits until the sequence was removed, or `until`, or so many tokens were
  // published; true if it was removed.
  bool AwaitRemoval(CallContext::Clock::time_point until, int64_t num_tokens = INT64_MAX);
  // What is read before the turn says anything new, and how far that is.
  int64_t to_prefill() const { return static_cast<int64_t>(reading_.size()); }
  int64_t prefilled() const { return prefilled_.load(std::memory_order_relaxed); }
  // After removal.
  const TurnResult& result() const { return result_; }

  // Of the batch.
  engine::State* state() override { return &loaded_.state; }
  Want Next() override;
  void OnRead(int64_t num_tokens, std::span<const float> logits) override;
  void Publish() override;
  void OnFailure(absl::Status status) override;
  void OnRemoved() override;

 private:
  struct Token {
    engine::TokenId id = 0;
    bool has_text = false;  // false: ends the turn, and is not shown
    bool is_known = false;
    CallContext::Clock::time_point time;
    int64_t end = 0;  // offset in the text up to which it must be released
    v1::Logprobs logprobs;
  };

  // What comes was said before.
  bool repeating() const { return result_.output.size() < turn_.known.size(); }
  void Choose(std::span<const float> logits);
  // As if they had just been chosen.
  void AcceptKnown();
  // What is to be read next, up to the next mark.
  std::span<const engine::TokenId> ToRead() const;
  void Accept(engine::TokenId id, std::span<const float> logits);
  // Appends the text of the tokens that have none yet.
  void Detokenize();
  // Drops the tokens from the one in which the match begins.
  void DropMatch();
  void Stop(v1::FinishReason reason, CallContext::Cancel cause);
  void Finish(v1::FinishReason reason);

  const Model& model_;
  Scheduler& scheduler_;
  CallContext& context_;
  TenantUse::Share& share_;
  GenerationLog& log_;
  LoadedState& loaded_;
  const TurnReading turn_;
  const TurnOptions options_;
  std::vector<engine::TokenId> joined_;       // if reading_ is not just of the input
  std::span<const engine::TokenId> reading_;  // what is left to read

  // Of the batch. A token is chosen, then held until its text is released, then published.
  engine::Sampler sampler_;
  std::vector<engine::TokenId> history_;
  std::deque<Token> chosen_;
  std::deque<Token> held_;
  std::vector<int64_t> token_ends_;  // of every token in the text
  StopMatcher matcher_;
  Utf8Stream utf8_;
  int64_t text_bytes_ = 0;  // given to the matcher
  std::string released_;    // by the matcher, to be published
  int64_t read_ = 0;        // of reading_
  size_t next_mark_ = 0;
  bool at_mark_ = false;    // the sequence is out of the batch for it
  bool to_accept_ = false;  // turn_.known, once reading_ was read
  bool ending_ = false;
  bool flushed_ = false;                       // nothing follows in the text
  std::optional<engine::TokenId> next_token_;  // sampled, not read yet
  CallContext::Clock::time_point started_, prefill_end_;
  TurnResult result_;

  std::atomic<int64_t> prefilled_{0};
  // The turn's thread sleeps until so many were published.
  std::atomic<int64_t> published_{0}, wake_at_{INT64_MAX};
  Mutex mutex_;
  CondVar changed_;
  bool removed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace mneme::server
