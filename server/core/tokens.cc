#include "server/core/tokens.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/sampler/sampler.h"
#include "server/core/errors.h"
#include "server/core/generate_request.h"
#include "server/core/session_names.h"
#include "server/core/state_io.h"

namespace mneme::server {
namespace {

constexpr int kMaxLogprobs = 20;

void SetLogprobs(std::span<const float> logits, engine::TokenId token, int top, v1::Logprobs& out) {
  out.set_logprob(engine::Sampler::Logprob(logits, token));
  if (top == 0) return;
  for (const auto& entry : engine::Sampler::TopLogprobs(logits, top)) {
    auto* add = out.add_top();
    add->set_token_id(entry.token);
    add->set_logprob(entry.logprob);
  }
}

}  // namespace

absl::StatusOr<v1::TokenizeResponse> Tokenize(Parts& parts, CallContext& context,
                                              const v1::TokenizeRequest& request) {
  auto model = parts.models->Find(context, request.model(), "model");
  FieldErrors errors;
  switch (request.input_case()) {
    case v1::TokenizeRequest::kText:
      CheckText(request.text(), "text", errors);
      CheckNoFinalMessage(request.continue_final_message(), errors);
      break;
    case v1::TokenizeRequest::kMessages:
      CheckMessages(request.messages(), errors);
      break;
    case v1::TokenizeRequest::INPUT_NOT_SET:
      errors.Add("input", "is required: text or messages", reason::kFieldRequired);
      break;
  }
  if (model.ok() && request.add_bos() && (*model)->tokenizer().special().bos < 0) {
    errors.Add("add_bos", "must be false: the model has no BOS token");
  }
  MNEME_RETURN_IF_ERROR(errors.ToStatus());
  MNEME_RETURN_IF_ERROR(model.status());

  std::vector<engine::TokenId> tokens;
  if (request.input_case() == v1::TokenizeRequest::kText) {
    MNEME_ASSIGN_OR_RETURN(tokens,
                           TokensOfText(**model, request.text(), request.parse_special_tokens(),
                                        request.add_bos(), 0));
  } else {
    MNEME_ASSIGN_OR_RETURN(tokens, TokensOfMessages(**model, request.messages(),
                                                    request.continue_final_message(), 0, -1));
  }
  v1::TokenizeResponse response;
  for (engine::TokenId token : tokens) {
    response.add_token_ids(token);
    response.add_pieces((*model)->tokenizer().TokenBytes(token, /*show_special=*/true));
  }
  return response;
}

absl::StatusOr<v1::DetokenizeResponse> Detokenize(Parts& parts, CallContext& context,
                                                  const v1::DetokenizeRequest& request) {
  MNEME_ASSIGN_OR_RETURN(const Model* model, parts.models->Find(context, request.model(), "model"));
  FieldErrors errors;
  const int64_t vocab = model->tokenizer().vocab_size();
  for (int i = 0; i < request.token_ids_size(); ++i) {
    if (request.token_ids(i) >= 0 && request.token_ids(i) < vocab) continue;
    errors.Add(absl::StrCat("token_ids[", i, "]"),
               absl::StrCat("must be in [0, ", vocab, "), is ", request.token_ids(i)));
    break;
  }
  MNEME_RETURN_IF_ERROR(errors.ToStatus());
  const std::vector<engine::TokenId> ids(request.token_ids().begin(), request.token_ids().end());
  v1::DetokenizeResponse response;
  response.set_text(model->tokenizer().Decode(ids));
  return response;
}

absl::StatusOr<v1::ScoreResponse> Score(Parts& parts, CallContext& context,
                                        const v1::ScoreRequest& request) {
  MNEME_RETURN_IF_ERROR(CheckNotDraining(parts));
  SessionName name;
  SessionRecord record;
  const Model* model = nullptr;
  const bool stateless = request.session().empty();
  if (!stateless) {
    MNEME_ASSIGN_OR_RETURN(name, ParseSessionName(request.session(), "session", context.tenant));
  }
  const absl::Status resolved = [&]() -> absl::Status {
    if (stateless) {
      MNEME_ASSIGN_OR_RETURN(model, parts.models->Find(context, request.model(), "model"));
      return absl::OkStatus();
    }
    MNEME_ASSIGN_OR_RETURN(record, parts.sessions->GetUsable(name, true));
    MNEME_ASSIGN_OR_RETURN(model, parts.models->ForSession(context, record.data));
    return absl::OkStatus();
  }();
  FieldErrors errors;
  if (!stateless && !request.model().empty()) {
    errors.Add("model", "must be empty with a session: the session has its model");
  }
  switch (request.input_case()) {
    case v1::ScoreRequest::kText:
      CheckText(request.text(), "text", errors);
      if (request.text().empty()) errors.Add("text", "is required", reason::kFieldRequired);
      break;
    case v1::ScoreRequest::kTokenIds:
      CheckTokenIds(request.token_ids(), "token_ids", model, errors);
      if (request.token_ids().ids_size() == 0) {
        errors.Add("token_ids", "is required", reason::kFieldRequired);
      }
      break;
    case v1::ScoreRequest::INPUT_NOT_SET:
      errors.Add("input", "is required: text or token_ids", reason::kFieldRequired);
      break;
  }
  if (request.logprobs() < 0 || request.logprobs() > kMaxLogprobs) {
    errors.Add("logprobs",
               absl::StrCat("must be in [0, ", kMaxLogprobs, "], is ", request.logprobs()),
               reason::kFieldOutOfRange);
  }
  MNEME_RETURN_IF_ERROR(errors.ToStatus());
  MNEME_RETURN_IF_ERROR(resolved);

  const int64_t position = record.data.head().position_tokens();
  std::vector<engine::TokenId> tokens;
  if (request.input_case() == v1::ScoreRequest::kText) {
    const auto& special = model->tokenizer().special();
    MNEME_ASSIGN_OR_RETURN(
        tokens, TokensOfText(*model, request.text(), request.parse_special_tokens(),
                             position == 0 && special.add_bos && special.bos >= 0, position));
  } else {
    tokens.assign(request.token_ids().ids().begin(), request.token_ids().ids().end());
  }
  const auto count = static_cast<int64_t>(tokens.size());
  MNEME_RETURN_IF_ERROR(CheckInputLength(count, parts.config.limits));
  MNEME_RETURN_IF_ERROR(CheckContext(*model, position, count));

  CallRegistry::Call call(parts.calls, context);
  MNEME_ASSIGN_OR_RETURN(TenantUse::Share share, parts.tenants.Begin(context));
  MNEME_ASSIGN_OR_RETURN(HeldState held,
                         HoldCopy(parts, context, *model, stateless ? nullptr : &record,
                                  {.queued = count, .end = position + count}));
  v1::ScoreResponse response;
  for (engine::TokenId token : tokens) {
    response.add_token_ids(token);
    response.add_logprobs();
  }
  if (position == 0) response.set_unscored_tokens(1);  // nothing says what begins a text
  // The last token need not be read.
  const auto vocab = static_cast<size_t>(model->engine->info().vocab_size);
  const auto context_tokens = std::span(tokens).first(count - 1);
  MNEME_RETURN_IF_ERROR(ReadTokens(
      context, *model, held, context_tokens, [&](int64_t first, std::span<const float> logits) {
        for (size_t row = 0; row * vocab < logits.size(); ++row) {
          const auto next = static_cast<int>(first) + static_cast<int>(row);
          SetLogprobs(logits.subspan(row * vocab, vocab), tokens[next], request.logprobs(),
                      *response.mutable_logprobs(next));
        }
      }));
  model->metrics->input_tokens.Increment(static_cast<double>(count - 1));
  share.Charge(count - 1);
  double total = 0;
  for (const auto& entry : response.logprobs()) total += entry.logprob();
  response.set_total_logprob(total);
  return response;
}

}  // namespace mneme::server
