#include "client/cli/turn.h"

#include <iostream>
#include <mutex>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/interrupt.h"
#include "client/cli/json.h"
#include "client/cli/output.h"

namespace mneme::cli {

TurnResult RunTurn(client::Client& client, const Context& context,
                   absl::StatusOr<client::GenerateStream> stream) {
  TurnResult result;
  if (!stream.ok()) return {.status = stream.status()};

  std::mutex mutex;
  std::string generation;
  OnInterrupt interrupt([&](int count) {
    std::unique_lock lock(mutex);
    const std::string name = generation;
    lock.unlock();
    const bool asked = count == 1 && !name.empty() &&
                       client.CancelGeneration(name, {.timeout = absl::Seconds(5)}).ok();
    if (!asked) stream->Cancel();
  });

  const bool show_progress = StderrIsTty() && !context.json();
  bool progress_shown = false;
  for (const v1::GenerateResponse& event : *stream) {
    if (event.has_started()) {
      std::lock_guard lock(mutex);
      generation = event.started().generation();
      if (context.verbose && !context.json()) {
        std::cerr << "[generation " << client::IdOf(generation) << "]\n";
      }
    }
    if (context.json()) {
      std::cout << Dump(ToJson(event)) << "\n" << std::flush;
      continue;
    }
    if (event.has_progress() && show_progress) {
      std::cerr << "\r\033[K"
                << Dim(absl::StrCat("reading ", HumanCount(event.progress().prefilled_tokens()),
                                    " of ", HumanCount(event.progress().total_tokens()), " tokens"))
                << std::flush;
      progress_shown = true;
    }
    if (event.has_delta() || event.has_final()) {
      if (progress_shown) std::cerr << "\r\033[K" << std::flush;
      progress_shown = false;
    }
    if (event.has_delta() && !event.delta().text().empty()) {
      std::cout << ForStdout(event.delta().text()) << std::flush;
      result.ended_in_newline = event.delta().text().back() == '\n';
    }
  }
  if (progress_shown) std::cerr << "\r\033[K" << std::flush;
  result.status = stream->Finish().status();
  result.final = stream->final();
  result.started = stream->started().has_value();
  result.interrupted = interrupt.interrupted();
  return result;
}

int EndCommand(const Context& context, const TurnResult& result) {
  if (!context.json() && StdoutIsTty() && !result.ended_in_newline) std::cout << "\n";
  if (result.final && context.verbose && !context.json()) {
    std::cerr << "[" << TurnSummary(*result.final) << "]\n";
  }
  if (result.interrupted) return kInterrupted;
  return result.status.ok() ? kOk : context.Fail(result.status);
}

std::string TurnSummary(const v1::GenerateResponse::Final& final) {
  const auto& usage = final.usage();
  std::string text =
      absl::StrCat("read ", usage.input_tokens(), ", wrote ", usage.output_tokens(), " tokens");
  if (usage.output_tokens() > 1 && usage.decode_ms() > 0) {
    absl::StrAppendFormat(&text, ", %.1f tok/s",
                          static_cast<double>(usage.output_tokens()) * 1000 / usage.decode_ms());
  }
  absl::StrAppendFormat(&text, ", first after %.0f ms", usage.first_token_ms());
  if (final.version() > 0) {  // a session's turn
    absl::StrAppend(&text, ", reused ", usage.reused_input_tokens(), ", recomputed ",
                    usage.recomputed_tokens());
  }
  absl::StrAppend(&text, ", ", absl::AsciiStrToLower(v1::FinishReason_Name(final.finish_reason())));
  if (final.held_bytes() > 0) {
    absl::StrAppend(&text, ", held back ", final.held_bytes(), " bytes of a character");
  }
  if (final.version() > 0) {
    absl::StrAppend(&text, final.committed() ? "; saved as version " : "; not saved, version ",
                    final.version(), ", position ", final.position_tokens());
  }
  return text;
}

}  // namespace mneme::cli
