// What a session has read and answered, for people and for scripts.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "client/client.h"

namespace mneme::cli {

// Calls `turn` with each turn in order, whole: what the server's pages cut is put together again.
absl::Status ForEachTurn(const client::Client& client, v1::ReadTranscriptRequest request,
                         const std::function<void(const v1::TranscriptTurn&)>& turn);

// "version 3, 2026-11-29 10:12:03, position 58, 37 tokens, eos"; what is not known is left out.
std::string TurnHeading(const v1::TranscriptTurn& turn);

// One "role: text" for each speaker, in order, each with its newline. What tokenizer and chat
// template put around them only if `with_template`.
std::string TurnText(const v1::TranscriptTurn& turn, bool with_template);

// The end of a conversation, to remind a person of it: its last turns as far as they are short, and
// documents by their size. "" if nothing is known of it.
std::string Reminder(const client::Client& client, const std::string& session);

}  // namespace mneme::cli
