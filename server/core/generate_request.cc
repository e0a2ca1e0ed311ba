#include "server/core/generate_request.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "engine/core/status_macros.h"
#include "engine/core/utf8.h"
#include "server/core/sampling_defaults.h"
#include "server/core/session_names.h"

namespace mneme::server {
namespace {

using v1::GenerateRequest;

constexpr int kMaxStopSequences = 16;
constexpr int kMaxStopBytes = 256;
constexpr int kMaxStopTokens = 64;
constexpr int kMaxLogprobs = 20;
constexpr int kMaxLogitBias = 1024;
constexpr int kMaxMessages = 4096;
constexpr int64_t kMaxResumeSeconds = 600;
constexpr std::chrono::seconds kDefaultResumeWindow{60};

void OutOfRange(FieldErrors& errors, std::string_view field, std::string text) {
  errors.Add(field, std::move(text), reason::kFieldOutOfRange);
}

// Written so that NaN is out of every range.
void CheckRange(double value, double low, double high, std::string_view field,
                FieldErrors& errors) {
  if (value >= low && value <= high) return;
  OutOfRange(errors, field, absl::StrCat("must be in [", low, ", ", high, "], is ", value));
}

void CheckSampling(const v1::Sampling& s, const Model* model, FieldErrors& errors) {
  for (const SamplingField& field : kSamplingFields) {
    if (!HasSampling(s, field)) continue;
    const double value = GetSampling(s, field);
    if (field.Accepts(value)) continue;
    OutOfRange(errors, absl::StrCat("sampling.", field.name),
               absl::StrCat(field.Expected(), ", is ", value));
  }
  if (s.logit_bias_size() > kMaxLogitBias) {
    OutOfRange(
        errors, "sampling.logit_bias",
        absl::StrCat("must have at most ", kMaxLogitBias, " entries, has ", s.logit_bias_size()));
    return;
  }
  for (const auto& [id, bias] : s.logit_bias()) {
    const std::string field = absl::StrCat("sampling.logit_bias[", id, "]");
    CheckRange(bias, -100, 100, field, errors);
    if (id < 0 || (model != nullptr && id >= model->tokenizer().vocab_size())) {
      errors.Add(field, "is not a token id of the model");
    }
  }
}

}  // namespace

void CheckText(const std::string& text, std::string_view field, FieldErrors& errors) {
  const size_t valid = engine::ValidUtf8Bytes(text);
  if (valid == text.size()) return;
  errors.Add(field, absl::StrCat("must be UTF-8; byte ", valid, " is not"));
}

void CheckTokenIds(const v1::TokenIds& ids, std::string_view field, const Model* model,
                   FieldErrors& errors) {
  for (int i = 0; i < ids.ids_size(); ++i) {
    const int32_t id = ids.ids(i);
    if (id >= 0 && (model == nullptr || id < model->tokenizer().vocab_size())) continue;
    const std::string limit =
        model == nullptr ? "" : absl::StrCat(" below ", model->tokenizer().vocab_size());
    errors.Add(absl::StrCat(absl::string_view(field.data(), field.size()), ".ids[", i, "]"),
               absl::StrCat("must be a token id", limit, ", is ", id));
    return;  // one is enough to find it
  }
}

void CheckMessages(const v1::Messages& messages, FieldErrors& errors) {
  if (messages.messages_size() == 0) {
    errors.Add("messages", "must have at least one message", reason::kFieldRequired);
  } else if (messages.messages_size() > kMaxMessages) {
    OutOfRange(errors, "messages",
               absl::StrCat("must have at most ", kMaxMessages, " messages, has ",
                            messages.messages_size()));
    return;
  }
  for (int i = 0; i < messages.messages_size(); ++i) {
    const v1::Message& message = messages.messages(i);
    const std::string field = absl::StrCat("messages.messages[", i, "]");
    if (message.role() != "system" && message.role() != "user" && message.role() != "assistant") {
      errors.Add(field + ".role", "must be system, user or assistant");
    }
    CheckText(message.content(), field + ".content", errors);
  }
}

void CheckNoFinalMessage(bool continue_final_message, FieldErrors& errors) {
  if (!continue_final_message) return;
  errors.Add("continue_final_message",
             "needs messages, the last of them the assistant's; a session goes on without input");
}

void CheckGenerateRequest(const GenerateRequest& request, const Model* model,
                          const Config::Limits& limits, FieldErrors& errors) {
  if (!request.session().empty() && !request.model().empty()) {
    errors.Add("model", "must be empty with a session: the session has its model");
  }
  switch (request.input_case()) {
    case GenerateRequest::kText:
      CheckText(request.text(), "text", errors);
      break;
    case GenerateRequest::kTokenIds:
      CheckTokenIds(request.token_ids(), "token_ids", model, errors);
      break;
    case GenerateRequest::kMessages:
      CheckMessages(request.messages(), errors);
      break;
    case GenerateRequest::INPUT_NOT_SET:
      break;
  }
  if (!request.has_messages()) CheckNoFinalMessage(request.continue_final_message(), errors);
  if (!GenerateRequest::AddBos_IsValid(request.add_bos())) {
    errors.Add("add_bos", "is not one of the values of AddBos");
  } else if (request.add_bos() == GenerateRequest::ADD_BOS_ALWAYS && model != nullptr &&
             model->tokenizer().special().bos < 0) {
    errors.Add("add_bos", "must not be ADD_BOS_ALWAYS: the model has no BOS token");
  }
  if (!GenerateRequest::EndHandling_IsValid(request.end_handling())) {
    errors.Add("end_handling", "is not one of the values of EndHandling");
  }
  if (!GenerateRequest::ConflictPolicy_IsValid(request.conflict_policy())) {
    errors.Add("conflict_policy", "is not one of the values of ConflictPolicy");
  }
  if (!GenerateRequest::CommitPolicy_IsValid(request.commit_policy())) {
    errors.Add("commit_policy", "is not one of the values of CommitPolicy");
  }
  if (!GenerateRequest::OnDisconnect_IsValid(request.on_disconnect())) {
    errors.Add("on_disconnect", "is not one of the values of OnDisconnect");
  }
  if (request.has_resume_window()) {
    const auto& window = request.resume_window();
    const double seconds = static_cast<double>(window.seconds()) + window.nanos() * 1e-9;
    if (window.nanos() < 0 || window.nanos() > 999'999'999 || seconds <= 0 ||
        seconds > kMaxResumeSeconds) {
      OutOfRange(errors, "resume_window", "must be more than 0 s and at most 600 s");
    }
  }
  CheckSampling(request.sampling(), model, errors);
  if (request.stop_sequences_size() > kMaxStopSequences) {
    OutOfRange(errors, "stop_sequences",
               absl::StrCat("must have at most ", kMaxStopSequences, " entries, has ",
                            request.stop_sequences_size()));
  }
  for (int i = 0; i < std::min(request.stop_sequences_size(), kMaxStopSequences); ++i) {
    const std::string field = absl::StrCat("stop_sequences[", i, "]");
    const std::string& stop = request.stop_sequences(i);
    if (stop.empty()) errors.Add(field, "must not be empty");
    if (stop.size() > kMaxStopBytes) {
      OutOfRange(errors, field,
                 absl::StrCat("must have at most ", kMaxStopBytes, " bytes, has ", stop.size()));
    }
    CheckText(stop, field, errors);
  }
  if (request.stop_token_ids_size() > kMaxStopTokens) {
    OutOfRange(errors, "stop_token_ids",
               absl::StrCat("must have at most ", kMaxStopTokens, " entries, has ",
                            request.stop_token_ids_size()));
  }
  for (int i = 0; i < std::min(request.stop_token_ids_size(), kMaxStopTokens); ++i) {
    const int32_t id = request.stop_token_ids(i);
    if (id < 0 || (model != nullptr && id >= model->tokenizer().vocab_size())) {
      errors.Add(absl::StrCat("stop_token_ids[", i, "]"),
                 absl::StrCat("must be a token id of the model, is ", id));
    }
  }
  if (request.has_max_output_tokens()) {
    CheckRange(static_cast<double>(request.max_output_tokens()), 0,
               static_cast<double>(limits.max_output_tokens), "max_output_tokens", errors);
  }
  if (request.has_max_duration()) {
    const auto& d = request.max_duration();
    if (d.seconds() < 0 || d.nanos() < 0 || d.nanos() > 999'999'999 ||
        (d.seconds() == 0 && d.nanos() == 0) || d.seconds() > 315'576'000'000) {
      OutOfRange(errors, "max_duration", "must be a positive duration");
    }
  }
  if (request.logprobs() < 0 || request.logprobs() > kMaxLogprobs) {
    OutOfRange(errors, "logprobs",
               absl::StrCat("must be in [0, ", kMaxLogprobs, "], is ", request.logprobs()));
  }
  if (request.expected_version() < 0) {
    OutOfRange(errors, "expected_version",
               absl::StrCat("must not be negative, is ", request.expected_version()));
  }
}

TurnOptions OptionsOf(const GenerateRequest& request, const Model& model,
                      const Config::Limits& limits, CallContext::Clock::time_point arrival) {
  TurnOptions out;
  const v1::Sampling s = WithDefaults(request.sampling(), model.info.default_sampling());
  out.sampling.temperature = s.temperature();
  out.sampling.top_p = s.top_p();
  out.sampling.top_k = s.top_k();
  out.sampling.min_p = s.min_p();
  out.sampling.repetition_penalty = s.repetition_penalty();
  out.sampling.presence_penalty = s.presence_penalty();
  out.sampling.frequency_penalty = s.frequency_penalty();
  out.sampling.penalty_window_tokens = s.penalty_window_tokens();
  for (const auto& [id, bias] : s.logit_bias()) out.sampling.logit_bias.push_back({id, bias});
  std::sort(out.sampling.logit_bias.begin(), out.sampling.logit_bias.end());
  out.sampling.seed = s.has_seed() ? s.seed() : RandomU64();
  out.stop_sequences.assign(request.stop_sequences().begin(), request.stop_sequences().end());
  out.stop_token_ids.assign(request.stop_token_ids().begin(), request.stop_token_ids().end());
  out.ignore_eos = request.ignore_eos();
  out.drop = request.end_handling() == GenerateRequest::DROP;
  out.keep_cancelled = request.commit_policy() == GenerateRequest::COMMIT_PARTIAL;
  out.max_output_tokens = request.has_max_output_tokens()
                              ? request.max_output_tokens()
                              : std::min<int64_t>(1024, limits.max_output_tokens);
  // More than a century would overflow the clock, and is no limit.
  if (request.has_max_duration() && request.max_duration().seconds() < 3'000'000'000) {
    out.end_time = arrival + std::chrono::seconds(request.max_duration().seconds()) +
                   std::chrono::nanoseconds(request.max_duration().nanos());
  }
  out.logprobs = request.logprobs();
  return out;
}

CallContext::Clock::duration ResumeWindowOf(const GenerateRequest& request) {
  using Duration = CallContext::Clock::duration;
  if (request.on_disconnect() != GenerateRequest::CONTINUE) return Duration::zero();
  if (!request.has_resume_window()) return kDefaultResumeWindow;
  const auto& window = request.resume_window();
  return std::chrono::seconds(std::clamp<int64_t>(window.seconds(), 0, kMaxResumeSeconds)) +
         std::chrono::nanoseconds(window.nanos());
}

GenerateRequest Resolved(GenerateRequest request, const Model& model, const TurnOptions& options) {
  *request.mutable_sampling() = WithDefaults(request.sampling(), model.info.default_sampling());
  request.mutable_sampling()->set_seed(options.sampling.seed);
  request.set_max_output_tokens(static_cast<int32_t>(options.max_output_tokens));
  return request;
}

absl::StatusOr<std::vector<engine::TokenId>> TokensOfText(const Model& model,
                                                          const std::string& text,
                                                          bool parse_special, bool add_bos,
                                                          int64_t position) {
  auto tokens = model.tokenizer().Encode(text, parse_special, position == 0);
  if (!tokens.ok()) {
    FieldErrors errors;
    errors.Add("text", "cannot be tokenised by this model");
    return errors.ToStatus();
  }
  if (add_bos) tokens->insert(tokens->begin(), model.tokenizer().special().bos);
  return tokens;
}

absl::StatusOr<std::vector<engine::TokenId>> TokensOfMessages(
    const Model& model, const v1::Messages& messages, bool continue_final_message, int64_t position,
    engine::TokenId last_token, std::vector<engine::ContentSpan>* contents) {
  const engine::ChatTemplate* chat = model.engine->chat_template();
  if (chat == nullptr) {
    return Error(
        absl::StatusCode::kFailedPrecondition, reason::kNoChatTemplate,
        absl::StrCat("the model takes no messages: ", model.engine->chat_template_problem(),
                     "; send text or token_ids instead"));
  }
  std::vector<engine::ChatMessage> list;
  for (const v1::Message& message : messages.messages()) {
    list.push_back({message.role(), message.content()});
  }
  auto tokens =
      chat->Render(list,
                   {.continues = position > 0,
                    .after_end_of_turn = position > 0 && model.IsEndOfGeneration(last_token),
                    .continue_final_message = continue_final_message},
                   contents);
  if (!tokens.ok()) {
    FieldErrors errors;
    errors.Add("messages", absl::StrCat("are refused by the model's chat template: ",
                                        tokens.status().message()));
    return errors.ToStatus();
  }
  return tokens;
}

absl::StatusOr<TurnInput> InputOf(const Model& model, const GenerateRequest& request,
                                  int64_t position, engine::TokenId last_token) {
  const engine::SpecialTokens& special = model.tokenizer().special();
  const bool always = request.add_bos() == GenerateRequest::ADD_BOS_ALWAYS;
  TurnInput input;
  switch (request.input_case()) {
    case GenerateRequest::kText: {
      if (request.text().empty()) return input;
      const bool automatic = request.add_bos() == GenerateRequest::ADD_BOS_AUTO &&
                             special.add_bos && special.bos >= 0 && position == 0;
      MNEME_ASSIGN_OR_RETURN(input.tokens,
                             TokensOfText(model, request.text(), request.parse_special_tokens(),
                                          always || automatic, position));
      break;
    }
    case GenerateRequest::kTokenIds:
      input.tokens.assign(request.token_ids().ids().begin(), request.token_ids().ids().end());
      if (always && !input.tokens.empty()) input.tokens.insert(input.tokens.begin(), special.bos);
      break;
    case GenerateRequest::kMessages: {
      std::vector<engine::ContentSpan> contents;
      MNEME_ASSIGN_OR_RETURN(input.tokens, TokensOfMessages(model, request.messages(),
                                                            request.continue_final_message(),
                                                            position, last_token, &contents));
      input.runs = RunsOfMessages(static_cast<int64_t>(input.tokens.size()), contents);
      const auto end = [](const engine::ContentSpan& content) {
        return static_cast<int64_t>(content.end) - (content.trail_bytes > 0 ? 1 : 0);
      };
      if (!contents.empty()) {
        if (contents.front().role == "system") input.system_end = end(contents.front());
        input.content_end = end(contents.back());
      }
      return input;
    }
    case GenerateRequest::INPUT_NOT_SET:
      return input;
  }
  input.content_end = static_cast<int64_t>(input.tokens.size());
  input.runs = RunsOfText(model.tokenizer(), v1::TranscriptPart::PROMPT, input.tokens, position);
  return input;
}

absl::Status CheckContext(const Model& model, int64_t position, int64_t tokens) {
  const int64_t limit = model.context_limit();
  if (limit == 0 || position + tokens <= limit) return absl::OkStatus();
  const std::string read = absl::StrCat(position), most = absl::StrCat(limit);
  if (position >= limit) {
    return Error(absl::StatusCode::kFailedPrecondition, reason::kContextFull,
                 absl::StrCat("the session has read ", read, " tokens, all that the context of ",
                              model.name, " takes; rewind it, or start another one"),
                 {{"position_tokens", read}, {"context_limit_tokens", most}});
  }
  return Error(absl::StatusCode::kInvalidArgument, reason::kInputTooLong,
               absl::StrCat("the input has ", tokens, " tokens, behind ", read, " the context of ",
                            model.name, " has room for ", limit - position),
               {{"input_tokens", absl::StrCat(tokens)},
                {"max_input_tokens", absl::StrCat(limit - position)},
                {"context_limit_tokens", most}});
}

absl::Status CheckInputLength(int64_t tokens, const Config::Limits& limits) {
  if (tokens <= limits.max_input_tokens) return absl::OkStatus();
  return Error(absl::StatusCode::kInvalidArgument, reason::kInputTooLong,
               absl::StrCat("the input has ", tokens, " tokens, at most ", limits.max_input_tokens,
                            " are allowed in one call; use IngestSession"),
               {{"input_tokens", absl::StrCat(tokens)},
                {"max_input_tokens", absl::StrCat(limits.max_input_tokens)}});
}

}  // namespace mneme::server
