// Runs one generation in front of a person or a script: streams its text, lets Ctrl-C end it
// well, and reports how it went.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "client/cli/context.h"
#include "client/client.h"

namespace mneme::cli {

struct TurnResult {
  absl::Status status;
  std::optional<v1::GenerateResponse::Final> final;
  bool started = false;      // the server has begun with it
  bool interrupted = false;  // by Ctrl-C
  bool ended_in_newline = true;
};

// stdout: the text, or with --json one line per event. stderr, if it is a terminal: progress of a
// long input; with -v the generation's name, for `mneme resume`. The first Ctrl-C cancels the turn
// so that the server says what it kept; the second drops the call.
TurnResult RunTurn(client::Client& client, const Context& context,
                   absl::StatusOr<client::GenerateStream> stream);

// Of a command that is one generation: what is left to say of it, and the exit code.
int EndCommand(const Context& context, const TurnResult& result);

// "12 tokens, 45.1 tok/s, first after 80 ms, position 1234, version 5".
std::string TurnSummary(const v1::GenerateResponse::Final& final);

}  // namespace mneme::cli
