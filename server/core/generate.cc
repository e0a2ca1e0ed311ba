#include "server/core/generate.h"

#include <algorithm>
#include <optional>
#include <stop_token>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "server/core/cancel_status.h"
#include "server/core/errors.h"
#include "server/core/generate_request.h"
#include "server/core/session_names.h"
#include "server/core/state_io.h"
#include "server/core/turn_sequence.h"

namespace mneme::server {
namespace {

using Clock = CallContext::Clock;
using Cancel = CallContext::Cancel;

constexpr auto kProgressInterval = std::chrono::milliseconds(500);

double Seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

// Numbers the events and remembers whether anybody still listens.
class EventStream {
 public:
  explicit EventStream(TurnSink& sink) : sink_(sink) {}
  v1::GenerateResponse Next() {
    v1::GenerateResponse response;
    response.set_sequence(++sequence_);
    return response;
  }
  void Send(v1::GenerateResponse response) {
    if (open_) open_ = sink_.Send(std::move(response));
  }

 private:
  TurnSink& sink_;
  int64_t sequence_ = 0;
  bool open_ = true;
};

class Turn {
 public:
  Turn(Parts& parts, CallContext& context, const v1::GenerateRequest& request, TurnSink& sink)
      : parts_(parts), context_(context), request_(request), events_(sink) {}

  absl::Status Run();

 private:
  bool stateless() const { return request_.session().empty(); }

  absl::Status Prepare();
  absl::Status ResolveModel();
  absl::Status Hold();
  void SendStarted();
  void Decode(TurnSequence& sequence);
  absl::Status Replay();
  absl::Status Commit();
  void SendFinal();

  Parts& parts_;
  CallContext& context_;
  const v1::GenerateRequest& request_;
  EventStream events_;
  const Clock::time_point start_ = Clock::now();

  SessionName name_;
  const Model* model_ = nullptr;
  TurnOptions options_;
  std::string generation_;
  Writer writer_;
  SessionRecord base_;
  TurnInput input_;
  HeldState held_;
  TurnResult result_;
  std::optional<Clock::time_point> first_sent_;
  bool committed_ = false;
  int64_t version_ = 0;
  int64_t position_ = 0;
  size_t held_bytes_ = 0;
  int64_t recomputed_ = 0;
  double queue_seconds_ = 0;
  double commit_seconds_ = 0;
};

absl::Status Turn::ResolveModel() {
  if (stateless()) {
    MNEME_ASSIGN_OR_RETURN(model_, parts_.models->Find(context_, request_.model(), "model"));
    return absl::OkStatus();
  }
  MNEME_ASSIGN_OR_RETURN(base_, parts_.sessions->GetUsable(name_, true));
  MNEME_ASSIGN_OR_RETURN(model_, parts_.models->ForSession(context_, base_.data));
  return absl::OkStatus();
}

absl::Status Turn::Prepare() {
  if (!stateless()) {
    MNEME_ASSIGN_OR_RETURN(name_, ParseSessionName(request_.session(), "session", context_.tenant));
  }
  // Every bad field is reported, whether or not session and model can be found.
  const absl::Status resolved = ResolveModel();
  FieldErrors errors;
  CheckGenerateRequest(request_, model_, parts_.config.limits, errors);
  MNEME_RETURN_IF_ERROR(errors.ToStatus());
  MNEME_RETURN_IF_ERROR(resolved);
  options_ = OptionsOf(request_, *model_, parts_.config.limits, context_.arrival);
  options_.hold_unfinished = !stateless();

  if (!stateless()) {
    MNEME_ASSIGN_OR_RETURN(writer_,
                           TakeWriter(parts_, context_, name_,
                                      request_.conflict_policy() == v1::GenerateRequest::QUEUE));
    MNEME_RETURN_IF_ERROR(ResolveModel());  // as it is now that nobody else writes
    MNEME_RETURN_IF_ERROR(CheckVersion(request_.expected_version(), base_, parts_.metrics));
  }
  const storage::Point& head = base_.data.head();
  MNEME_ASSIGN_OR_RETURN(input_,
                         InputOf(*model_, request_, head.position_tokens(), head.last_token()));
  if (input_.tokens.empty() && head.position_tokens() == 0) {
    FieldErrors required;
    required.Add("input", "is required: nothing has been read yet", reason::kFieldRequired);
    return required.ToStatus();
  }
  const auto input = static_cast<int64_t>(input_.tokens.size());
  MNEME_RETURN_IF_ERROR(CheckInputLength(input, parts_.config.limits));
  MNEME_RETURN_IF_ERROR(CheckContext(*model_, head.position_tokens(), input));
  const int64_t room = model_->context_limit() - head.position_tokens() - input;
  if (model_->context_limit() > 0 && room < options_.max_output_tokens) {
    options_.max_output_tokens = room;
    options_.length_reason = v1::CONTEXT_LIMIT;
  }
  return absl::OkStatus();
}

absl::Status Turn::Hold() {
  const auto input = static_cast<int64_t>(input_.tokens.size());
  const TokenCounts counts{
      .queued = input,
      .end = base_.data.head().position_tokens() + input + options_.max_output_tokens};
  if (stateless()) {
    MNEME_ASSIGN_OR_RETURN(held_, HoldCopy(parts_, context_, *model_, nullptr, counts));
  } else {
    MNEME_ASSIGN_OR_RETURN(held_, HoldHead(parts_, context_, *model_, base_, counts));
  }
  queue_seconds_ = Seconds(Clock::now() - start_) - held_.restore_seconds;
  model_->metrics->request_queue.Observe(queue_seconds_);
  version_ = base_.data.head().version();
  position_ = base_.data.head().position_tokens();
  held_bytes_ = base_.data.head().unfinished_character().size();
  return absl::OkStatus();
}

void Turn::SendStarted() {
  auto event = events_.Next();
  auto* started = event.mutable_started();
  started->set_generation(generation_);
  started->set_version(version_);
  started->set_seed(options_.sampling.seed);
  started->set_model_fingerprint(model_->info.fingerprint());
  started->set_input_tokens(static_cast<int64_t>(input_.tokens.size()));
  events_.Send(std::move(event));
}

void Turn::Decode(TurnSequence& sequence) {
  std::stop_callback on_cancel(context_.stop_token(), [this] { model_->scheduler->Wake(); });
  const auto total = static_cast<int64_t>(input_.tokens.size());
  Clock::time_point next_progress = Clock::now() + kProgressInterval;
  while (true) {
    const bool reading = sequence.prefilled() < total;
    // Waits longer than a step, so that an idle thread costs nothing; a deadline that passes while
    // the sequence is out of the batch has to be pointed out to it.
    const auto until = std::min({reading ? next_progress : Clock::now() + std::chrono::seconds(1),
                                 context_.deadline, options_.end_time});
    TurnSequence::Output output = sequence.Take(until);
    if (output.delta.token_ids_size() > 0 || !output.delta.text().empty()) {
      if (!first_sent_) first_sent_ = Clock::now();
      auto event = events_.Next();
      *event.mutable_delta() = std::move(output.delta);
      events_.Send(std::move(event));
    } else if (output.removed) {
      return;
    }
    const auto now = Clock::now();
    if (now >= context_.deadline || now >= options_.end_time) {
      model_->scheduler->Wake();
      // It ends within a step: do not spin until then.
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    if (now >= next_progress && sequence.prefilled() < total) {
      auto event = events_.Next();
      event.mutable_progress()->set_prefilled_tokens(sequence.prefilled());
      event.mutable_progress()->set_total_tokens(total);
      events_.Send(std::move(event));
      next_progress = now + kProgressInterval;
    }
  }
}

absl::Status Turn::Replay() {
  held_.loaded = LoadedState();  // its bytes are needed for the new one
  MNEME_ASSIGN_OR_RETURN(held_.loaded,
                         RestorePoint(parts_, *model_, name_.tenant, base_.data.head()));
  std::vector<engine::TokenId> tokens = input_.tokens;
  tokens.insert(tokens.end(), result_.output.begin(), result_.output.end());
  recomputed_ += static_cast<int64_t>(tokens.size());
  return ReadTokens(context_, *model_, held_.loaded, tokens);
}

absl::Status Turn::Commit() {
  if (result_.replay) MNEME_RETURN_IF_ERROR(Replay());
  std::vector<engine::TokenId> tokens = std::move(input_.tokens);
  tokens.insert(tokens.end(), result_.output.begin(), result_.output.end());
  AddOutput(static_cast<int64_t>(result_.output.size()), input_.runs);
  MNEME_ASSIGN_OR_RETURN(
      CommitResult commit,
      CommitHead(parts_, *model_, base_, held_.loaded,
                 {.ids = tokens, .runs = input_.runs, .finish_reason = result_.reason},
                 {.lease = writer_.lease}));
  committed_ = true;
  commit_seconds_ = commit.seconds;
  version_ = commit.record.data.head().version();
  position_ = commit.record.data.head().position_tokens();
  held_bytes_ = commit.record.data.head().unfinished_character().size();
  parts_.states->Keep(std::move(held_.slot), IdentityOf(commit.record), std::move(held_.loaded));
  return absl::OkStatus();
}

void Turn::SendFinal() {
  auto event = events_.Next();
  auto* final = event.mutable_final();
  final->set_finish_reason(result_.reason);
  final->set_committed(committed_);
  final->set_version(version_);
  final->set_position_tokens(position_);
  final->set_held_bytes(static_cast<int32_t>(held_bytes_));
  auto* usage = final->mutable_usage();
  usage->set_input_tokens(result_.prefilled);
  usage->set_reused_input_tokens(base_.data.head().position_tokens());
  usage->set_recomputed_tokens(recomputed_);
  usage->set_output_tokens(static_cast<int64_t>(result_.output.size()));
  usage->set_queue_ms(queue_seconds_ * 1e3);
  usage->set_restore_ms(held_.restore_seconds * 1e3);
  usage->set_prefill_ms(result_.prefill_seconds * 1e3);
  if (first_sent_) usage->set_first_token_ms(Seconds(*first_sent_ - context_.arrival) * 1e3);
  usage->set_decode_ms(result_.decode_seconds * 1e3);
  usage->set_commit_ms(commit_seconds_ * 1e3);
  usage->set_state_bytes(static_cast<int64_t>(model_->engine->schema().StateBytes(position_)));
  events_.Send(std::move(event));
}

absl::Status Turn::Run() {
  MNEME_RETURN_IF_ERROR(CheckNotDraining(parts_));
  generation_ =
      absl::StrCat("tenants/", context_.tenant, "/generations/g", MakeSessionId().substr(1));
  CallRegistry::Call call(parts_.calls, context_, generation_);
  MNEME_RETURN_IF_ERROR(Prepare());
  MNEME_RETURN_IF_ERROR(Hold());
  SendStarted();

  auto sequence = std::make_shared<TurnSequence>(
      *model_, context_, held_.loaded, input_.tokens,
      UnfinishedCharacter(model_->tokenizer(), base_.data.head().unfinished_character(),
                          input_.tokens),
      options_);
  model_->scheduler->Add(sequence);
  Decode(*sequence);
  result_ = sequence->result();

  ModelMetrics& metrics = *model_->metrics;
  const auto kind = stateless()          ? ModelMetrics::Kind::kStateless
                    : held_.was_resident ? ModelMetrics::Kind::kWarm
                                         : ModelMetrics::Kind::kCold;
  if (first_sent_) {
    metrics.time_to_first_token(kind).Observe(Seconds(*first_sent_ - context_.arrival));
  }
  metrics.request_prefill.Observe(result_.prefill_seconds);
  metrics.request_decode.Observe(result_.decode_seconds);
  if (result_.output.size() > 1) {
    metrics.time_per_output_token.Observe(Seconds(result_.last_token - result_.first_token) /
                                          static_cast<double>(result_.output.size() - 1));
  }
  metrics.input_tokens.Increment(static_cast<double>(result_.prefilled));
  metrics.output_tokens.Increment(static_cast<double>(result_.output.size()));
  metrics.reused_input_tokens.Increment(static_cast<double>(base_.data.head().position_tokens()));
  if (result_.cause != Cancel::kNone) parts_.metrics.CountCancelled(CancelName(result_.cause));
  MNEME_RETURN_IF_ERROR(result_.failure);
  if (result_.cause == Cancel::kLeaseLost) return CancelStatus(result_.cause);

  if (!stateless() && (result_.complete || result_.replay)) {
    MNEME_RETURN_IF_ERROR(Commit());
    metrics.recomputed_tokens.Increment(static_cast<double>(recomputed_));
  } else if (stateless()) {
    position_ += result_.prefilled + static_cast<int64_t>(result_.output.size());
  }
  // Whoever reads Final may start the next turn at once.
  held_.slot.Release();
  held_.loaded = LoadedState();
  writer_.Release();
  call.End();
  metrics.request_duration.Observe(Seconds(Clock::now() - context_.arrival));
  if (result_.cause != Cancel::kNone && result_.cause != Cancel::kRequested &&
      result_.cause != Cancel::kShutdown) {
    return CancelStatus(result_.cause);
  }
  parts_.metrics.CountFinished(v1::FinishReason_Name(result_.reason));
  SendFinal();
  return absl::OkStatus();
}

}  // namespace

absl::Status Generate(Parts& parts, CallContext& context, const v1::GenerateRequest& request,
                      TurnSink& sink) {
  return Turn(parts, context, request, sink).Run();
}

}  // namespace mneme::server
