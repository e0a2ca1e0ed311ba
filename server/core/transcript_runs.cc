#include "server/core/transcript_runs.h"

namespace mneme::server {
namespace {

using Part = v1::TranscriptPart;

storage::StoredRun* AddRun(Part::Role role, int64_t num_tokens, RunList& runs) {
  storage::StoredRun* run = runs.Add();
  run->set_role(role);
  run->set_num_tokens(num_tokens);
  return run;
}

Part::Role RoleOf(const std::string& message_role) {
  return message_role == "system" ? Part::SYSTEM
         : message_role == "user" ? Part::USER
                                  : Part::ASSISTANT;
}

}  // namespace

RunList RunsOfText(const engine::Tokenizer& tokenizer, Part::Role role,
                   std::span<const engine::TokenId> tokens, int64_t position) {
  RunList runs;
  if (!tokens.empty() && tokens.front() == tokenizer.special().bos) {
    AddRun(Part::TEMPLATE, 1, runs);
    tokens = tokens.subspan(1);
  }
  if (tokens.empty()) return runs;
  storage::StoredRun* run = AddRun(role, static_cast<int64_t>(tokens.size()), runs);
  if (position == 0) {
    // SentencePiece's space in front of a document.
    const auto first = tokens.first(1);
    run->set_lead_bytes(static_cast<int32_t>(tokenizer.Decode(first, /*at_start=*/false).size() -
                                             tokenizer.Decode(first, /*at_start=*/true).size()));
  }
  return runs;
}

RunList RunsOfMessages(int64_t num_tokens, std::span<const engine::ContentSpan> contents) {
  RunList runs;
  int64_t at = 0;
  for (const engine::ContentSpan& content : contents) {
    const auto begin = static_cast<int64_t>(content.begin);
    const auto end = static_cast<int64_t>(content.end);
    if (begin > at) AddRun(Part::TEMPLATE, begin - at, runs);
    storage::StoredRun* run = AddRun(RoleOf(content.role), end - begin, runs);
    run->set_lead_bytes(static_cast<int32_t>(content.lead_bytes));
    run->set_trail_bytes(static_cast<int32_t>(content.trail_bytes));
    at = end;
  }
  if (num_tokens > at) AddRun(Part::TEMPLATE, num_tokens - at, runs);
  return runs;
}

void AddOutput(int64_t num_tokens, RunList& runs) {
  if (num_tokens > 0) AddRun(Part::ASSISTANT, num_tokens, runs)->set_generated(true);
}

}  // namespace mneme::server
