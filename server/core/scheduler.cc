#include "server/core/scheduler.h"

#include <algorithm>
#include <iterator>
#include <new>
#include <utility>

#include "server/core/device_status.h"
#include "server/core/errors.h"

namespace mneme::server {
namespace {

// Bounds the memory for logits of sequences that want all of them.
constexpr int64_t kMaxLogitBytes = 8 << 20;
// Prefills go on, however many sequences decode.
constexpr int64_t kMinPrefillTokens = 16;

}  // namespace

Scheduler::Scheduler(engine::Engine& engine, Limits limits, ModelMetrics& metrics)
    : engine_(engine), limits_(limits), metrics_(metrics), thread_([this] { Run(); }) {}

Scheduler::~Scheduler() {
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void Scheduler::Add(std::shared_ptr<Sequence> sequence) {
  MutexLock lock(&mutex_);
  added_.push_back(std::move(sequence));
  ++count_;
  changed_.NotifyAll();
}

void Scheduler::Wake() {
  MutexLock lock(&mutex_);
  awake_ = true;
  changed_.NotifyAll();
}

int64_t Scheduler::num_sequences() const {
  MutexLock lock(&mutex_);
  return count_;
}

void Scheduler::Run() {
  bool busy = false;
  while (true) {
    {
      MutexLock lock(&mutex_);
      while (!busy && !awake_ && added_.empty() && !stop_) changed_.Wait(&mutex_);
      if (stop_) return;
      awake_ = false;
      active_.insert(active_.begin(), std::make_move_iterator(added_.begin()),
                     std::make_move_iterator(added_.end()));
      added_.clear();
    }
    busy = Step();
  }
}

void Scheduler::Plan() {
  jobs_.clear();
  struct Prefill {
    std::list<std::shared_ptr<Sequence>>::iterator it;
    Sequence::Want want;
  };
  std::vector<Prefill> prefills;
  int64_t budget = limits_.max_step_tokens;
  for (auto it = active_.begin(); it != active_.end();) {
    const Sequence::Want want = (*it)->Next();
    if (want.kind == Sequence::Want::Kind::kDone) {
      it = Remove(it);
      continue;
    }
    if (want.kind == Sequence::Want::Kind::kRead) {
      if (want.decode) {
        jobs_.push_back(
            {it->get(), {.state = (*it)->state(), .tokens = want.tokens, .num_logits = 1}});
        --budget;
      } else {
        prefills.push_back({it, want});
      }
    }
    ++it;
  }
  budget = std::max(budget, kMinPrefillTokens);
  const int64_t vocab = engine_.info().vocab_size;
  const int64_t most_logits = std::max<int64_t>(1, kMaxLogitBytes / 4 / vocab);
  for (Prefill& prefill : prefills) {
    if (budget <= 0) break;
    const auto& want = prefill.want;
    const int64_t wanted = static_cast<int64_t>(want.tokens.size());
    int64_t n = std::min({wanted, budget, limits_.prefill_chunk_tokens});
    if (want.all_logits) n = std::min(n, most_logits);
    budget -= n;
    jobs_.push_back({prefill.it->get(),
                     {.state = (*prefill.it)->state(),
                      .tokens = want.tokens.first(n),
                      .num_logits = want.all_logits ? n : (n == wanted ? 1 : 0)}});
    active_.splice(active_.end(), active_, prefill.it);
  }
}

std::list<std::shared_ptr<Sequence>>::iterator Scheduler::Remove(
    std::list<std::shared_ptr<Sequence>>::iterator it) {
  removed_.push_back(std::move(*it));
  return active_.erase(it);
}

void Scheduler::Publish() {
  for (const auto& sequence : active_) sequence->Publish();
  if (removed_.empty()) return;
  {
    MutexLock lock(&mutex_);
    count_ -= static_cast<int64_t>(removed_.size());
  }
  for (const auto& sequence : removed_) {
    sequence->Publish();
    sequence->OnRemoved();
  }
  removed_.clear();
}

absl::Status Scheduler::Forward(std::vector<int>& non_finite) {
  const int64_t vocab = engine_.info().vocab_size;
  int64_t rows = 0;
  for (const Job& job : jobs_) rows += job.slice.num_logits;
  try {
    if (static_cast<int64_t>(logits_.size()) < rows * vocab) logits_.resize(rows * vocab);
  } catch (const std::bad_alloc&) {
    Publish();
    return absl::ResourceExhaustedError("there is no memory for logits");
  }
  slices_.clear();
  float* next = logits_.data();
  for (Job& job : jobs_) {
    job.slice.logits = job.slice.num_logits > 0 ? next : nullptr;
    next += job.slice.num_logits * vocab;
    slices_.push_back(job.slice);
  }
  const engine::Engine::Ticket ticket = engine_.Submit(slices_);
  Publish();
  return engine_.Wait(ticket, &non_finite);
}

bool Scheduler::Step() {
  Plan();
  if (jobs_.empty()) {
    Publish();
    return false;
  }
  metrics_.batch_size.Observe(static_cast<double>(jobs_.size()));

  std::vector<int> non_finite;
  const absl::Status status = Forward(non_finite);
  std::vector<const Job*> read;
  std::vector<const Sequence*> failed;
  for (size_t i = 0; i < jobs_.size(); ++i) {
    const Job& job = jobs_[i];
    const bool bad = std::find(non_finite.begin(), non_finite.end(), i) != non_finite.end();
    if (bad) {
      metrics_.state_not_finite.Increment();
      job.sequence->OnFailure(
          Error(absl::StatusCode::kInternal, reason::kStateNotFinite,
                "the model produced a value that is not finite; the session is unchanged"));
      failed.push_back(job.sequence);
    } else if (!status.ok() && non_finite.empty()) {
      job.sequence->OnFailure(EngineFailure(status, engine_.device()));
      failed.push_back(job.sequence);
    } else {
      read.push_back(&job);
    }
  }
  const int64_t vocab = engine_.info().vocab_size;
  engine_.ForEach(static_cast<int64_t>(read.size()), [&](int64_t i) {
    const engine::EngineSlice& slice = read[i]->slice;
    read[i]->sequence->OnRead(static_cast<int64_t>(slice.tokens.size()),
                              std::span(slice.logits, slice.num_logits * vocab));
  });
  for (auto it = active_.begin(); !failed.empty() && it != active_.end();) {
    it = std::find(failed.begin(), failed.end(), it->get()) != failed.end() ? Remove(it)
                                                                            : std::next(it);
  }
  return true;
}

}  // namespace mneme::server
