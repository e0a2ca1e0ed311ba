#include "server/core/scheduler.h"

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/kernels/kernels.h"
#include "gtest/gtest.h"

namespace mneme::server {
namespace {

using std::chrono::seconds;
using std::chrono::steady_clock;

// Reads one token after the other and writes down what it is called for: Next, Read, Publish,
// Failure, eXit.
class Recorder final : public Sequence {
 public:
  Recorder(engine::State state, int64_t tokens) : state_(std::move(state)), tokens_(tokens) {}

  engine::State* state() override { return &state_; }
  Want Next() override {
    Record('N');
    if (on_next) on_next();
    if (waits && waits()) return {.kind = Want::Kind::kWait};
    if (state_.position >= tokens_) return {};
    return {.kind = Want::Kind::kRead, .tokens = std::span(&token_, 1), .decode = true};
  }
  void OnRead(int64_t num_tokens, std::span<const float> logits) override {
    Record('R');
    if (on_read) on_read();
  }
  void Publish() override {
    Record('P');
    if (on_publish) on_publish();
  }
  void OnFailure(absl::Status status) override { Record('F'); }
  void OnRemoved() override {
    MutexLock lock(&mutex_);
    calls_ += 'X';
    changed_.NotifyAll();
  }

  // All calls, once it was removed.
  std::string Calls() {
    MutexLock lock(&mutex_);
    while (!calls_.ends_with('X')) changed_.Wait(&mutex_);
    return calls_;
  }

  std::function<void()> on_next, on_read, on_publish;
  std::function<bool()> waits;

 private:
  void Record(char call) {
    MutexLock lock(&mutex_);
    calls_ += call;
  }

  engine::State state_;
  const int64_t tokens_;
  const engine::TokenId token_ = 1;
  Mutex mutex_;
  CondVar changed_;
  std::string calls_ ABSL_GUARDED_BY(mutex_);
};

// A number that threads wait for.
class Counter {
 public:
  void Increment() {
    MutexLock lock(&mutex_);
    ++value_;
    changed_.NotifyAll();
  }
  bool Reaches(int value) {
    const auto deadline = steady_clock::now() + seconds(20);
    MutexLock lock(&mutex_);
    while (value_ < value) {
      if (!changed_.WaitUntil(&mutex_, deadline)) return value_ >= value;
    }
    return true;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  int value_ ABSL_GUARDED_BY(mutex_) = 0;
};

class SchedulerTest : public testing::Test {
 protected:
  void SetUp() override {
    auto device = engine::CreateDevice(engine::AllBackends().back()->name, /*num_threads=*/2);
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
    auto engine = engine::Engine::Load(
        {.checkpoint_path = std::string(MNEME_TINY_DIR) + "/tiny-llama-q.gguf", .device = device_});
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    scheduler_.emplace(*engine_, Scheduler::Limits(), metrics_.ForModel("tiny"));
  }
  std::shared_ptr<Recorder> Make(int64_t tokens) {
    return std::make_shared<Recorder>(engine_->CreateState(), tokens);
  }

  std::shared_ptr<engine::Device> device_;
  std::unique_ptr<engine::Engine> engine_;
  Metrics metrics_;
  std::optional<Scheduler> scheduler_;
};

TEST_F(SchedulerTest, ASequenceIsAskedThenPublishesThenReads) {
  auto sequence = Make(3);
  scheduler_->Add(sequence);
  EXPECT_EQ(sequence->Calls(), "NPRNPRNPRNPX");
  EXPECT_EQ(scheduler_->num_sequences(), 0);
}

TEST_F(SchedulerTest, WhatAWaitingSequenceHasIsPublished) {
  auto sequence = Make(1);
  Counter published;
  std::atomic<bool> full{false};
  sequence->on_read = [&] { full = true; };
  sequence->waits = [&] { return full.load(); };
  sequence->on_publish = [&] { published.Increment(); };
  scheduler_->Add(sequence);
  EXPECT_TRUE(published.Reaches(2)) << "what was read in the step is not published";
  full = false;
  scheduler_->Wake();
  sequence->Calls();
}

TEST_F(SchedulerTest, SequencesReadTheirLogitsAtTheSameTime) {
  std::atomic<bool> ready{false};
  Counter inside;
  std::vector<std::shared_ptr<Recorder>> sequences = {Make(1), Make(1)};
  std::atomic<int> met{0};
  for (const auto& sequence : sequences) {
    sequence->waits = [&] { return !ready; };
    sequence->on_read = [&] {
      inside.Increment();
      met += inside.Reaches(2);
    };
    scheduler_->Add(sequence);
  }
  ready = true;
  scheduler_->Wake();
  for (const auto& sequence : sequences) sequence->Calls();
  EXPECT_EQ(met, 2);
}

TEST_F(SchedulerTest, PublishesWhileTheEngineIsAtTheNextStep) {
  // With the device's turn taken the engine cannot begin a step.
  std::optional<engine::Turns::Hold> turn;
  auto sequence = Make(2);
  Counter published;
  int publishes = 0;
  sequence->on_next = [&] {
    if (sequence->state()->position == 1) turn.emplace(device_->turns());
  };
  sequence->on_publish = [&] {
    if (++publishes == 2) published.Increment();
  };
  scheduler_->Add(sequence);
  EXPECT_TRUE(published.Reaches(1)) << "nothing is published before the next step is done";
  turn.reset();
  EXPECT_EQ(sequence->Calls(), "NPRNPRNPX");
}

}  // namespace
}  // namespace mneme::server
