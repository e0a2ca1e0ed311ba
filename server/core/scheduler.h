// Continuous batching: one thread per model that steps the engine over all sequences that want
// tokens read.
//
// Every decoding sequence takes part in every step with one token. What is left of
// max_step_tokens goes to prefills, at most prefill_chunk_tokens each, in turn; so a long input
// delays the next token of a running stream by one bounded step. Cancellation is looked at before
// every step, by the sequences themselves.
//
// Between two steps the engine waits, so only what the next one needs happens there: all sequences
// choose their tokens at once, on the engine's threads. Texts and messages are made while the
// engine is at the next step.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "engine/core/mutex.h"
#include "engine/engine.h"
#include "server/core/metrics.h"

namespace mneme::server {

// One state that reads tokens. One method runs at a time, on the scheduler's thread but for OnRead;
// nothing is called after OnRemoved. They must be quick and never block on a client.
class Sequence {
 public:
  struct Want {
    enum class Kind { kRead, kWait, kDone } kind = Kind::kDone;
    // To read next; the scheduler may take a prefix. None: only the logits after what was read.
    std::span<const engine::TokenId> tokens;
    bool decode = false;  // at most one token, that somebody is waiting for
    // Logits of every token; else only after the last one of `tokens`.
    bool all_logits = false;
  };

  virtual ~Sequence() = default;
  // The state is the scheduler's from Add until OnRemoved.
  virtual engine::State* state() = 0;
  // Before each step. kWait: not now, Wake() will follow. kDone: remove me.
  virtual Want Next() = 0;
  // The first `num_tokens` wanted tokens were read. `logits`: [num_tokens, V] for all_logits,
  // [1, V] if the last wanted token was read, else empty. On any thread, while other sequences'
  // OnRead runs on others. What Next() does not need is left to Publish().
  virtual void OnRead(int64_t num_tokens, std::span<const float> logits) = 0;
  // After Next(), while the engine is at the step: what somebody waits for outside.
  virtual void Publish() {}
  // The state must be thrown away. OnRemoved follows.
  virtual void OnFailure(absl::Status status) = 0;
  virtual void OnRemoved() = 0;
};

class Scheduler {
 public:
  struct Limits {
    int64_t prefill_chunk_tokens = 256;
    int64_t max_step_tokens = 512;
  };
  Scheduler(engine::Engine& engine, Limits limits, ModelMetrics& metrics);
  // Every sequence must have been removed.
  ~Scheduler();

  void Add(std::shared_ptr<Sequence> sequence);
  // Something changed: ask the sequences again.
  void Wake();
  int64_t num_sequences() const;

 private:
  struct Job {
    Sequence* sequence;
    engine::EngineSlice slice;
  };

  void Run();
  // False if nothing wants to be read now.
  bool Step();
  void Plan();
  // Lets the sequences publish, and those that are done go.
  void Publish();
  absl::Status Forward(std::vector<int>& non_finite);
  // From active_ to removed_.
  std::list<std::shared_ptr<Sequence>>::iterator Remove(
      std::list<std::shared_ptr<Sequence>>::iterator it);

  engine::Engine& engine_;
  const Limits limits_;
  ModelMetrics& metrics_;

  mutable Mutex mutex_;
  CondVar changed_;
  std::vector<std::shared_ptr<Sequence>> added_ ABSL_GUARDED_BY(mutex_);
  bool awake_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t count_ ABSL_GUARDED_BY(mutex_) = 0;

  // Of the scheduler's thread.
  std::list<std::shared_ptr<Sequence>> active_;     // prefills that were served move to the end
  std::vector<std::shared_ptr<Sequence>> removed_;  // not told yet
  std::vector<Job> jobs_;
  std::vector<engine::EngineSlice> slices_;
  std::vector<float> logits_;
  std::thread thread_;
};

}  // namespace mneme::server
