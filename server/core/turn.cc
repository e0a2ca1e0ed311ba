#include "server/core/turn.h"

#include <algorithm>
#include <memory>
#include <new>
#include <span>
#include <stop_token>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "engine/core/status_macros.h"
#include "server/core/cancel_status.h"
#include "server/core/errors.h"
#include "server/core/generate_request.h"
#include "server/core/session_names.h"
#include "server/core/state_io.h"
#include "server/core/turn_journal.h"
#include "server/core/turn_sequence.h"

namespace mneme::server {
namespace {

using Clock = CallContext::Clock;
using Cancel = CallContext::Cancel;

constexpr auto kProgressInterval = std::chrono::milliseconds(500);

// A state that has read so few tokens more than the one before is not worth its copy.
constexpr int64_t kWorthKeeping = 32;

double Seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

class Turn {
 public:
  // `revived`: the session's interrupted turn, to be gone on with; `request` is its.
  Turn(Parts& parts, Generation& generation, const v1::GenerateRequest& request, bool revived)
      : parts_(parts),
        generation_(generation),
        context_(generation.turn),
        log_(generation.log),
        request_(request),
        revived_(revived) {}

  absl::Status Run();

 private:
  bool stateless() const { return request_.session().empty(); }

  absl::Status Prepare();
  absl::Status ResolveModel();
  absl::Status TakeUp();
  absl::Status Hold();
  // Of a turn that holds a slot.
  bool MayReuse() const;
  // Tokens that this turn found read.
  int64_t FoundRead() const { return base_.data.head().position_tokens() + reused_; }
  PrefixCache::Owner PrefixOwner() const {
    return {stateless() ? context_.tenant : name_.tenant, model_->name};
  }
  void BeginWithPrefix();
  TurnReading Reading();
  void KeepPrefix(std::span<const engine::TokenId> tokens, absl::FunctionRef<engine::State()> make);
  // A stateless turn leaves its state to whoever goes on from there.
  void LeavePrefix();
  v1::GenerateResponse Started() const;
  void Decode(TurnSequence& sequence);
  absl::Status Replay();
  absl::Status Commit();
  absl::Status End();
  v1::GenerateResponse Final() const;

  Parts& parts_;
  Generation& generation_;
  CallContext& context_;
  GenerationLog& log_;
  const v1::GenerateRequest& request_;
  const bool revived_;
  const Clock::time_point start_ = Clock::now();

  SessionName name_;
  const Model* model_ = nullptr;
  TurnOptions options_;
  Writer writer_;
  SessionRecord base_;
  TurnInput input_;
  TurnJournal journal_;
  storage::StoredJournal turn_;         // what it begins with
  std::vector<engine::TokenId> known_;  // said before the turn was interrupted
  HeldState held_;
  TurnResult result_;
  bool committed_ = false;
  int64_t version_ = 0;
  int64_t position_ = 0;
  size_t held_bytes_ = 0;
  int64_t recomputed_ = 0;
  int64_t num_input_ = 0;
  int64_t reused_ = 0;  // of the input
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
  if (revived_ || (!stateless() && request_.on_disconnect() == v1::GenerateRequest::CONTINUE)) {
    journal_ = TurnJournal(*parts_.sessions, name_, absl::FromChrono(ResumeWindowOf(request_)),
                           context_.arrival);
    *turn_.mutable_request() = Resolved(request_, *model_, options_);
  }

  if (!stateless()) {
    MNEME_RETURN_IF_ERROR(parts_.storage->CheckBytes(context_));
    MNEME_ASSIGN_OR_RETURN(writer_,
                           TakeWriter(parts_, context_, name_,
                                      request_.conflict_policy() == v1::GenerateRequest::QUEUE));
    MNEME_RETURN_IF_ERROR(ResolveModel());  // as it is now that nobody else writes
    MNEME_RETURN_IF_ERROR(CheckVersion(request_.expected_version(), base_, parts_.metrics));
    MNEME_RETURN_IF_ERROR(revived_ ? TakeUp()
                                   : SettleInterrupted(*parts_.sessions, name_, writer_.lease));
  }
  const storage::Point& head = base_.data.head();
  MNEME_ASSIGN_OR_RETURN(input_,
                         InputOf(*model_, request_, head.position_tokens(), head.last_token()));
  if (input_.tokens.empty() && head.position_tokens() == 0) {
    FieldErrors required;
    required.Add("input", "is required: nothing has been read yet", reason::kFieldRequired);
    return required.ToStatus();
  }
  const auto input = num_input_ = static_cast<int64_t>(input_.tokens.size());
  MNEME_RETURN_IF_ERROR(CheckInputLength(input, parts_.config.limits));
  MNEME_RETURN_IF_ERROR(CheckContext(*model_, head.position_tokens(), input));
  const int64_t room = model_->context_limit() - head.position_tokens() - input;
  if (model_->context_limit() > 0 && room < options_.max_output_tokens) {
    options_.max_output_tokens = room;
    options_.length_reason = v1::CONTEXT_LIMIT;
  }
  return absl::OkStatus();
}

absl::Status Turn::TakeUp() {
  MNEME_ASSIGN_OR_RETURN(auto found, FindInterrupted(*parts_.sessions, name_));
  if (!found || found->turn.generation() != generation_.id() || found->expire_time <= absl::Now() ||
      found->turn.session_uid() != base_.data.uid() ||
      found->turn.version() != base_.data.head().version()) {
    return ResumeExpired(generation_.name);
  }
  known_ = found->output;
  const auto is_token = [&](engine::TokenId id) {
    return id >= 0 && id < model_->tokenizer().vocab_size();
  };
  if (!std::all_of(known_.begin(), known_.end(), is_token) ||
      static_cast<int64_t>(known_.size()) > options_.max_output_tokens) {
    return DamagedTurn();
  }
  journal_.GoOn(*std::move(found));
  journal_.Write({}, writer_.lease);  // the waiting for memory must not let it expire
  return absl::OkStatus();
}

absl::Status Turn::Hold() {
  const auto input = static_cast<int64_t>(input_.tokens.size());
  const TokenCounts counts{
      .queued = input + static_cast<int64_t>(known_.size()),
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
  if (MayReuse()) BeginWithPrefix();
  return absl::OkStatus();
}

bool Turn::MayReuse() const {
  return base_.data.head().position_tokens() == 0 && !request_.no_prefix_reuse() &&
         held_.replica->prefixes->budget_bytes() > 0;
}

void Turn::BeginWithPrefix() {
  // The last token is read by this turn, since its logits are wanted.
  const auto most = std::span(input_.tokens).first(input_.tokens.size() - 1);
  const auto prefix = held_.replica->prefixes->Find(PrefixOwner(), most);
  if (prefix == nullptr) return;
  const auto start = Clock::now();
  try {
    held_.loaded.state = prefix->Clone();
  } catch (const std::bad_alloc&) {
    return;  // what there is has read nothing, and will do
  }
  reused_ = prefix->position;
  held_.restore_seconds += Seconds(Clock::now() - start);
}

void Turn::KeepPrefix(std::span<const engine::TokenId> tokens,
                      absl::FunctionRef<engine::State()> make) {
  held_.replica->prefixes->Keep(PrefixOwner(), tokens,
                                static_cast<int64_t>(held_.loaded.state.size_bytes()), make);
}

TurnReading Turn::Reading() {
  TurnReading reading{
      .input = input_.tokens,
      .reused = reused_,
      .known = known_,
      .begun = UnfinishedCharacter(model_->tokenizer(), base_.data.head().unfinished_character(),
                                   input_.tokens)};
  if (!MayReuse()) return reading;
  // What a session goes on with is its own; only its beginning is likely to be another's, too.
  int64_t last = reused_;
  for (const int64_t mark : {input_.system_end, stateless() ? input_.content_end : 0}) {
    if (mark - last < kWorthKeeping) continue;
    reading.marks.push_back(mark);
    last = mark;
  }
  reading.on_mark = [this](int64_t num_tokens) {
    KeepPrefix(std::span(input_.tokens).first(num_tokens),
               [this] { return held_.loaded.state.Clone(); });
  };
  return reading;
}

void Turn::LeavePrefix() {
  std::vector<engine::TokenId> tokens = input_.tokens;
  tokens.insert(tokens.end(), result_.output.begin(), result_.output.end());
  if (static_cast<int64_t>(tokens.size()) - reused_ < kWorthKeeping) return;
  KeepPrefix(tokens, [this] { return std::move(held_.loaded.state); });
}

v1::GenerateResponse Turn::Started() const {
  v1::GenerateResponse event;
  auto* started = event.mutable_started();
  started->set_generation(generation_.name);
  started->set_resume_token(MakeResumeToken(generation_.name));
  started->set_version(base_.data.head().version());
  started->set_seed(options_.sampling.seed);
  started->set_model_fingerprint(model_->info.fingerprint());
  started->set_input_tokens(num_input_);
  return event;
}

void Turn::Decode(TurnSequence& sequence) {
  std::stop_callback on_cancel(context_.stop_token(), [this] { held_.replica->scheduler->Wake(); });
  const int64_t total = sequence.to_prefill();
  Clock::time_point next_progress = Clock::now() + kProgressInterval;
  while (true) {
    const bool reading = sequence.prefilled() < total;
    // A time that passes while the sequence is out of the batch has to be pointed out to it.
    const auto until = reading ? std::min(next_progress, options_.end_time) : options_.end_time;
    if (sequence.AwaitRemoval(std::min(until, journal_.due()), journal_.due_tokens())) return;
    if (journal_.open()) {
      journal_.Write(log_.TokensFrom(journal_.num_tokens()), writer_.lease);
    }
    const auto now = Clock::now();
    if (now >= options_.end_time) {
      held_.replica->scheduler->Wake();
      // It ends within a step: do not spin until then.
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    if (now >= next_progress && sequence.prefilled() < total) {
      v1::GenerateResponse event;
      event.mutable_progress()->set_prefilled_tokens(sequence.prefilled());
      event.mutable_progress()->set_total_tokens(total);
      log_.Append(std::move(event));
      next_progress = now + kProgressInterval;
    }
  }
}

absl::Status Turn::Replay() {
  held_.loaded = LoadedState();  // its bytes are needed for the new one
  MNEME_ASSIGN_OR_RETURN(
      held_.loaded, RestorePoint(parts_, *model_, *held_.replica, name_.tenant, base_.data.head()));
  std::vector<engine::TokenId> tokens = input_.tokens;
  tokens.insert(tokens.end(), result_.output.begin(), result_.output.end());
  recomputed_ += static_cast<int64_t>(tokens.size());
  return ReadTokens(context_, *model_, held_, tokens);
}

absl::Status Turn::Commit() {
  if (result_.replay) MNEME_RETURN_IF_ERROR(Replay());
  std::vector<engine::TokenId> tokens = std::move(input_.tokens);
  tokens.insert(tokens.end(), result_.output.begin(), result_.output.end());
  // What the turn ends with, if it is written.
  const auto add_end = [&](const SessionRecord& record, SessionStore::Change& change) {
    const storage::Point& head = record.data.head();
    version_ = head.version();
    position_ = head.position_tokens();
    held_bytes_ = head.unfinished_character().size();
    committed_ = true;
    if (!journal_.open()) return;
    std::vector<v1::GenerateResponse> events = log_.Output();
    events.insert(events.begin(), Started());
    events.push_back(Final());
    journal_.AddEnd(events, change);
  };
  AddOutput(static_cast<int64_t>(result_.output.size()), input_.runs);
  MNEME_ASSIGN_OR_RETURN(
      CommitResult commit,
      CommitHead(parts_, *model_, base_, held_,
                 {.ids = tokens, .runs = input_.runs, .finish_reason = result_.reason},
                 {.lease = writer_.lease, .call = &context_, .beside = add_end}));
  journal_.Close();
  commit_seconds_ = commit.seconds;
  parts_.states.Keep(std::move(held_.slot), IdentityOf(commit.record), std::move(held_.loaded));
  return absl::OkStatus();
}

absl::Status Turn::End() {
  MNEME_RETURN_IF_ERROR(result_.failure);
  if (result_.cause == Cancel::kLeaseLost) return CancelStatus(result_.cause);
  if (result_.cause == Cancel::kShutdown && journal_.open() && log_.attended()) {
    // Its reader goes on with it at another server, or at the next.
    journal_.Write(log_.TokensFrom(journal_.num_tokens()), writer_.lease, /*now=*/true);
    generation_.interrupted = true;
    return CancelStatus(result_.cause);
  }
  if (!stateless() && (result_.complete || result_.replay)) {
    MNEME_RETURN_IF_ERROR(Commit());
  } else if (stateless()) {
    position_ += reused_ + result_.prefilled + static_cast<int64_t>(result_.output.size());
    if (result_.complete && MayReuse()) LeavePrefix();
  }
  return absl::OkStatus();
}

v1::GenerateResponse Turn::Final() const {
  v1::GenerateResponse event;
  auto* final = event.mutable_final();
  final->set_finish_reason(result_.reason);
  final->set_committed(committed_);
  final->set_version(version_);
  final->set_position_tokens(position_);
  final->set_held_bytes(static_cast<int32_t>(held_bytes_));
  auto* usage = final->mutable_usage();
  usage->set_input_tokens(result_.prefilled);
  usage->set_reused_input_tokens(FoundRead());
  usage->set_recomputed_tokens(recomputed_);
  usage->set_output_tokens(static_cast<int64_t>(result_.output.size()));
  usage->set_queue_ms(queue_seconds_ * 1e3);
  usage->set_restore_ms(held_.restore_seconds * 1e3);
  usage->set_prefill_ms(result_.prefill_seconds * 1e3);
  if (const auto first = log_.first_output()) {
    usage->set_first_token_ms(Seconds(*first - context_.arrival) * 1e3);
  }
  usage->set_decode_ms(result_.decode_seconds * 1e3);
  usage->set_commit_ms(commit_seconds_ * 1e3);
  usage->set_state_bytes(static_cast<int64_t>(model_->engine->schema().StateBytes(position_)));
  return event;
}

absl::Status Turn::Run() {
  CallRegistry::Call call(parts_.calls, context_);
  MNEME_ASSIGN_OR_RETURN(TenantUse::Share share, parts_.tenants.Begin(context_));
  MNEME_RETURN_IF_ERROR(Prepare());
  MNEME_RETURN_IF_ERROR(Hold());
  if (!revived_) {
    turn_.set_generation(generation_.id());
    turn_.set_payload(context_.request.payload);
    turn_.set_session_uid(base_.data.uid());
    turn_.set_version(base_.data.head().version());
    MNEME_RETURN_IF_ERROR(journal_.Begin(turn_, writer_.lease));
  }
  turn_.Clear();
  log_.Append(Started());

  auto sequence = std::make_shared<TurnSequence>(*model_, *held_.replica->scheduler, context_,
                                                 share, log_, held_.loaded, Reading(), options_);
  held_.replica->scheduler->Add(sequence);
  Decode(*sequence);
  result_ = sequence->result();
  recomputed_ = result_.recomputed;

  ModelMetrics& metrics = *model_->metrics;
  const auto kind = stateless()          ? ModelMetrics::Kind::kStateless
                    : held_.was_resident ? ModelMetrics::Kind::kWarm
                                         : ModelMetrics::Kind::kCold;
  if (const auto first = log_.first_output(); first && !revived_) {
    metrics.time_to_first_token(kind).Observe(Seconds(*first - context_.arrival));
  }
  metrics.request_prefill.Observe(result_.prefill_seconds);
  metrics.request_decode.Observe(result_.decode_seconds);
  if (result_.output.size() > 1) {
    metrics.time_per_output_token.Observe(Seconds(result_.last_token - result_.first_token) /
                                          static_cast<double>(result_.output.size() - 1));
  }
  metrics.input_tokens.Increment(static_cast<double>(result_.prefilled));
  metrics.output_tokens.Increment(static_cast<double>(result_.output.size()));
  metrics.reused_input_tokens.Increment(static_cast<double>(FoundRead()));
  if (result_.cause != Cancel::kNone) parts_.metrics.CountCancelled(CancelName(result_.cause));

  const absl::Status ended = End();
  // Who has the lease now goes on with it, or settles it.
  if (journal_.open() && ReasonOf(ended) == reason::kLeaseLost) generation_.interrupted = true;
  if (!generation_.interrupted) journal_.Discard(writer_.lease);
  MNEME_RETURN_IF_ERROR(ended);
  metrics.recomputed_tokens.Increment(static_cast<double>(recomputed_));
  // Whoever reads Final may start the next turn at once.
  held_.slot.Release();
  held_.loaded = LoadedState();
  writer_.Release();
  share.Release();
  call.End();
  metrics.request_duration.Observe(Seconds(Clock::now() - context_.arrival));
  // What made a client's own call fail is that call's to tell; who comes later learns how the turn
  // ended.
  const bool wanted = result_.cause == Cancel::kNone || result_.cause == Cancel::kRequested ||
                      result_.cause == Cancel::kShutdown;
  if (wanted) parts_.metrics.CountFinished(v1::FinishReason_Name(result_.reason));
  log_.Append(Final());
  return absl::OkStatus();
}

}  // namespace

absl::Status RunTurn(Parts& parts, Generation& generation, const v1::GenerateRequest& request,
                     bool revived) {
  absl::Status status = Turn(parts, generation, request, revived).Run();
  PublishOrphans(parts);
  return status;
}

}  // namespace mneme::server
