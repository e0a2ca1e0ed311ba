// What one generation says: written by its turn, read by one call at a time, kept to be read again.
//
// The two are strangers. The turn appends and never waits, except that its sequence leaves the
// batch while too much is unread; a reader begins behind any event, takes one after the other at
// its own pace, and may go and come back. Every reader gets the same events, byte for byte: an
// event is fixed once it was read, and until then output is added to the last one, so that a slow
// reader gets fewer and larger ones. Only a generation that another process had begun is cut into
// other events than those that were sent: its readers say what they have (received_output.h).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/core/mutex.h"
#include "mneme/v1/generation.pb.h"
#include "server/core/call_context.h"
#include "server/core/turn_sink.h"

namespace mneme::server {

class GenerationLog {
 public:
  using Clock = CallContext::Clock;

  struct Options {
    // More is not written ahead of a reader: the turn waits.
    int64_t max_unsent_tokens = 1024;
    // How long the turn goes on without a reader; zero: it is cancelled with its reader's cause.
    Clock::duration resume_window = Clock::duration::zero();
    // Another process had begun it.
    bool revived = false;
    // The reader can come back although it has not read anything.
    bool has_request_id = false;
    // Told when the last reader leaves a running turn (true), and when one comes or the turn ends
    // (false). Called without locks that matter to a reader or the turn; must not block.
    std::function<void(bool)> on_unattended = [](bool) {};
  };
  static constexpr int64_t kMaxUnsentBytes = 256 << 10;

  // `turn` is the context of the turn that writes, and outlives the log.
  GenerationLog(CallContext& turn, Options options) : turn_(turn), options_(std::move(options)) {}

  // Of the turn.

  // Started, Progress or Final; numbers it.
  void Append(v1::GenerateResponse event);
  // What the model says: whole UTF-8 and whole tokens.
  void AppendOutput(v1::GenerateResponse::Delta delta);
  // Nothing follows. Once.
  void End(absl::Status status);
  // Whether too much is unread; then `OnRoom`'s function is called when that may have changed.
  bool Full();
  // Before the first call of Full().
  void OnRoom(std::function<void()> wake);
  // When the first output came.
  std::optional<Clock::time_point> first_output() const;

  // Of calls.

  // Sends what follows event `from.after_sequence` to `sink`, then what is yet to come. Ends the
  // call that reads now, if there is one, with STREAM_TAKEN_OVER. If `call` is cancelled or its
  // sink takes no more, its cause as a status: with CONTINUE at once, else when the turn has ended.
  // INVALID_ARGUMENT FIELD_OUT_OF_RANGE if there is no such event yet; of a revived generation as
  // ReceivedOutput says.
  absl::Status Read(CallContext& call, const v1::ResumeGenerationRequest& from, TurnSink& sink);

  // Of everybody.

  bool ended() const;
  bool attended() const;
  // When the turn is to be cancelled, unless a reader comes; max() if it is not.
  Clock::time_point unattended_until() const;
  int64_t last_sequence() const;
  // OK before the end.
  absl::Status status() const;
  // The last event, if it is one.
  std::optional<v1::GenerateResponse::Final> final() const;
  // The token ids of the output behind the first `count`.
  std::vector<int32_t> TokensFrom(int64_t count) const;
  // All output, in few events.
  std::vector<v1::GenerateResponse> Output() const;
  // Memory that it takes.
  int64_t bytes() const;

 private:
  enum class Step { kEvent, kEnd, kStopped };

  absl::Status Attach(CallContext& call, int64_t after_sequence);
  // The reader's client has what comes up to this event.
  void MarkRead(const CallContext& call, int64_t sequence);
  Step Next(const CallContext& call, int64_t after_sequence, v1::GenerateResponse* event);
  absl::Status Leave(CallContext& call, bool complete);
  // Fixes `open_`.
  void Seal() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Add(v1::GenerateResponse event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  v1::GenerateResponse EventAt(size_t index) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool HasOpen() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return open_.token_ids_size() > 0 || !open_.text().empty();
  }

  // Up to the end of an event.
  struct Mark {
    size_t bytes = 0;
    int64_t tokens = 0;
  };
  Mark MarkOf(int64_t sequence) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return sequence == 0 ? Mark() : marks_[sequence - 1];
  }

  CallContext& turn_;
  const Options options_;

  // Held while one reader ends another, which therefore is still there; never while waiting.
  Mutex readers_ ABSL_ACQUIRED_BEFORE(mutex_);
  mutable Mutex mutex_;
  CondVar changed_;
  std::function<void()> wake_ ABSL_GUARDED_BY(mutex_);
  std::string bytes_ ABSL_GUARDED_BY(mutex_);        // of all events that are fixed
  std::vector<Mark> marks_ ABSL_GUARDED_BY(mutex_);  // of each of them
  v1::GenerateResponse::Delta open_ ABSL_GUARDED_BY(mutex_);
  std::vector<int32_t> token_ids_ ABSL_GUARDED_BY(mutex_);  // of output, with those in open_
  std::optional<Clock::time_point> first_output_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Status> status_ ABSL_GUARDED_BY(mutex_);
  CallContext* reader_ ABSL_GUARDED_BY(mutex_) = nullptr;
  Mark read_ ABSL_GUARDED_BY(mutex_);  // by the reader
  bool waiting_for_room_ ABSL_GUARDED_BY(mutex_) = false;
  Clock::time_point unattended_until_ ABSL_GUARDED_BY(mutex_) = Clock::time_point::max();
};

}  // namespace mneme::server
