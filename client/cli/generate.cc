// mneme generate: one generation, on a session or on none.
#include "client/cli/context.h"
#include "client/cli/messages.h"
#include "client/cli/output.h"
#include "client/cli/turn.h"
#include "client/cli/turn_flags.h"

namespace mneme::cli {
namespace {

struct GenerateFlags {
  std::string prompt, session, model, system, answer_start;
  bool chat = false, special = false;
  int logprobs = 0;
  int64_t expected_version = 0;
  TurnFlags turn;
};

int Run(client::Client& client, const Context& context, GenerateFlags flags) {
  if (flags.logprobs > 0 && !context.json()) {
    return context.FailUsage("--logprobs needs --json: text alone has no place for them");
  }
  if (flags.prompt.empty() && !StdinIsTty() && flags.session.empty()) flags.prompt = "-";
  auto text = TextOrStdin(flags.prompt);
  if (!text.ok()) return context.Fail(text.status());
  if (text->empty() && flags.session.empty()) {
    return context.FailUsage(
        "nothing to generate from: give a PROMPT, a pipe, or a --session to continue");
  }
  if (text->empty() && !flags.answer_start.empty()) {
    return context.FailUsage(
        "--answer-start needs a PROMPT to answer; a --session alone goes on from where it is");
  }
  v1::GenerateRequest request;
  request.set_session(flags.session);
  request.set_model(flags.session.empty() ? context.ModelOr(flags.model) : flags.model);
  request.set_expected_version(flags.expected_version);
  request.set_logprobs(flags.logprobs);
  request.set_parse_special_tokens(flags.special);
  if (auto s = flags.turn.Fill(request); !s.ok())
    return context.FailUsage(std::string(s.message()));
  const bool chat = flags.chat || !flags.system.empty() || !flags.answer_start.empty();
  if (!text->empty() && chat) {
    Fill({.system = flags.system, .user = *text, .answer_start = flags.answer_start}, request);
  } else if (!text->empty()) {
    request.set_text(*text);
  }
  return EndCommand(context, RunTurn(client, context, client.Generate(request)));
}

}  // namespace

void AddGenerate(CLI::App& app, Context& context) {
  auto* command = app.add_subcommand("generate", "Generate text from a prompt, streaming");
  auto flags = std::make_shared<GenerateFlags>();
  command->add_option("PROMPT", flags->prompt,
                      "Text to continue; '-' reads stdin. On a session it may be left out: the "
                      "session goes on from where it is");
  command->add_option("-s,--session", flags->session, "Run as a turn of this session");
  AddModelFlag(*command, flags->model, "Model to run, if on no session");
  command->add_flag("--chat", flags->chat,
                    "The prompt is a user's message, written through the model's chat template");
  command->add_option("--system", flags->system, "System message before it; implies --chat");
  command->add_option("--answer-start", flags->answer_start,
                      "The answer begins with this, and the model goes on from there; implies "
                      "--chat. The output does not repeat it");
  command->add_flag("--parse-special-tokens", flags->special,
                    "Let the prompt contain control tokens such as <|im_end|>");
  command->add_option("--logprobs", flags->logprobs, "Alternatives a token, 0..20; with --json");
  command->add_option("--expected-version", flags->expected_version,
                      "Run only if the session is at this version");
  flags->turn.AddTo(*command);
  command->footer(R"(
The text goes to stdout as it comes: exact bytes into a pipe, without control characters on a
terminal. With --json each event is a line: started, progress, delta, final.

Examples:
  mneme generate "The capital of France is" --max-tokens 8 --temperature 0
  mneme generate --chat "Write a haiku about rain" --seed 7
  mneme generate --session diary --chat "What did I tell you yesterday?"
  mneme generate --session diary               # go on from where the session is
  git diff | mneme generate --chat - --system "Write a commit message"
  mneme generate "Name three rivers." --answer-start "1. The Nile" --stop 4.
  mneme generate "Once" --json | jq -r 'select(.final) | .final.usage.output_tokens')");
  OnRun(command, context, [&context, flags](client::Client& c) { return Run(c, context, *flags); });
}

}  // namespace mneme::cli
