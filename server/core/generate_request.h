// Checks a generation request and turns it into what the turn works with.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "mneme/v1/generation.pb.h"
#include "server/core/config.h"
#include "server/core/errors.h"
#include "server/core/model_registry.h"
#include "server/core/transcript_runs.h"
#include "server/core/turn_sequence.h"

namespace mneme::server {

// Adds every bad field. `model` may be null (it could not be resolved): then what depends on the
// vocabulary is left out.
void CheckGenerateRequest(const v1::GenerateRequest& request, const Model* model,
                          const Config::Limits& limits, FieldErrors& errors);

// Shared with Tokenize and Score.
void CheckText(const std::string& text, std::string_view field, FieldErrors& errors);
void CheckTokenIds(const v1::TokenIds& ids, std::string_view field, const Model* model,
                   FieldErrors& errors);
void CheckMessages(const v1::Messages& messages, FieldErrors& errors);
// Of an input that is not messages.
void CheckNoFinalMessage(bool continue_final_message, FieldErrors& errors);

// Of a valid request for `model`, whose defaults fill in. Without a seed, a random one is chosen.
TurnOptions OptionsOf(const v1::GenerateRequest& request, const Model& model,
                      const Config::Limits& limits, CallContext::Clock::time_point arrival);

// How long its turn goes on without a reader, or is kept for him if its process dies. The request
// need not have been checked.
CallContext::Clock::duration ResumeWindowOf(const v1::GenerateRequest& request);

// The request with what it left open filled in: whoever does it does the same.
v1::GenerateRequest Resolved(v1::GenerateRequest request, const Model& model,
                             const TurnOptions& options);

// The tokens of `text`, with BOS in front if `add_bos`. `position`: tokens read before.
absl::StatusOr<std::vector<engine::TokenId>> TokensOfText(const Model& model,
                                                          const std::string& text,
                                                          bool parse_special, bool add_bos,
                                                          int64_t position);
// FAILED_PRECONDITION NO_CHAT_TEMPLATE; INVALID_ARGUMENT for an order the template refuses, or a
// final message that cannot be continued. `contents`: as of ChatTemplate::Render.
absl::StatusOr<std::vector<engine::TokenId>> TokensOfMessages(
    const Model& model, const v1::Messages& messages, bool continue_final_message, int64_t position,
    engine::TokenId last_token, std::vector<engine::ContentSpan>* contents = nullptr);

struct TurnInput {
  std::vector<engine::TokenId> tokens;  // may be empty
  RunList runs;                         // what they are, for the transcript
  // What other conversations are likely to begin with, in tokens; 0: nothing.
  int64_t system_end = 0;   // the system message
  int64_t content_end = 0;  // everything but what the template writes last
};
// BOS by AUTO is added to text only: token ids are taken as they are, and chat templates bring
// their own.
absl::StatusOr<TurnInput> InputOf(const Model& model, const v1::GenerateRequest& request,
                                  int64_t position, engine::TokenId last_token);
// So many tokens behind `position` fit into the model's context: else CONTEXT_FULL where it has no
// room at all, INPUT_TOO_LONG with both counts otherwise.
absl::Status CheckContext(const Model& model, int64_t position, int64_t tokens);
// INPUT_TOO_LONG with both counts.
absl::Status CheckInputLength(int64_t tokens, const Config::Limits& limits);

}  // namespace mneme::server
