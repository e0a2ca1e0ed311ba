#include "client/cli/turn_flags.h"

#include "client/cli/output.h"

namespace mneme::cli {

void TurnFlags::AddTo(CLI::App& command) {
  const char* sampling = "Sampling";
  command
      .add_option("--temperature", temperature,
                  "0 is greedy; server default 0.8, or the model's own")
      ->group(sampling);
  command.add_option("--top-p", top_p, "Keep the likeliest tokens up to this mass; 1: off")
      ->group(sampling);
  command.add_option("--top-k", top_k, "Keep the k likeliest tokens; 0: off")->group(sampling);
  command.add_option("--min-p", min_p, "Drop tokens below this share of the likeliest; 0: off")
      ->group(sampling);
  command.add_option("--repetition-penalty", repetition_penalty, "1: off")->group(sampling);
  command.add_option("--presence-penalty", presence_penalty, "In [-2, 2]")->group(sampling);
  command.add_option("--frequency-penalty", frequency_penalty, "In [-2, 2]")->group(sampling);
  command.add_option("--seed", seed, "Same seed, state and server: same text; default random")
      ->group(sampling);
  const char* limits = "Limits of a turn";
  command.add_option("-n,--max-tokens", max_tokens, "Most tokens to generate; server default 1024")
      ->group(limits);
  command.add_option("--max-duration", max_duration, "End the turn (well) after e.g. 30s")
      ->group(limits);
  command.add_option("--stop", stop, "Stop before this text; may be given again")
      ->expected(1)
      ->take_all()
      ->group(limits);
  command.add_flag("--ignore-eos", ignore_eos, "Go on after the model's own end")->group(limits);
  command.add_flag("--queue", queue, "Wait for a running turn of the session instead of failing")
      ->group(limits);
  command
      .add_flag("--discard-on-cancel", discard,
                "A cancelled turn leaves no trace; default: what was said is kept")
      ->group(limits);
}

absl::Status TurnFlags::Fill(v1::GenerateRequest& request) const {
  auto& sampling = *request.mutable_sampling();
  if (temperature) sampling.set_temperature(*temperature);
  if (top_p) sampling.set_top_p(*top_p);
  if (repetition_penalty) sampling.set_repetition_penalty(*repetition_penalty);
  if (top_k) sampling.set_top_k(*top_k);
  if (min_p) sampling.set_min_p(*min_p);
  if (presence_penalty) sampling.set_presence_penalty(*presence_penalty);
  if (frequency_penalty) sampling.set_frequency_penalty(*frequency_penalty);
  if (seed) sampling.set_seed(*seed);
  if (max_tokens) request.set_max_output_tokens(*max_tokens);
  if (!max_duration.empty()) {
    auto span = ParseSpan(max_duration);
    if (!span.ok()) return span.status();
    *request.mutable_max_duration() = *span;
  }
  for (const std::string& s : stop) request.add_stop_sequences(s);
  request.set_ignore_eos(ignore_eos);
  if (queue) request.set_conflict_policy(v1::GenerateRequest::QUEUE);
  if (discard) request.set_commit_policy(v1::GenerateRequest::DISCARD);
  return absl::OkStatus();
}

}  // namespace mneme::cli
