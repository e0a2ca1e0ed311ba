// Who said which tokens of a turn: what the transcript keeps beside their ids.
#pragma once

#include <span>
#include <vector>

#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/core/storage.pb.h"

namespace mneme::server {

using RunList = google::protobuf::RepeatedPtrField<storage::StoredRun>;

// `tokens` read at `position`, all of `role` but for a leading BOS.
RunList RunsOfText(const engine::Tokenizer& tokenizer, v1::TranscriptPart::Role role,
                   std::span<const engine::TokenId> tokens, int64_t position);

// `num_tokens` that a chat template made, with `contents` among them.
RunList RunsOfMessages(int64_t num_tokens, std::span<const engine::ContentSpan> contents);

// Appends what the model answered.
void AddOutput(int64_t num_tokens, RunList& runs);

}  // namespace mneme::server
