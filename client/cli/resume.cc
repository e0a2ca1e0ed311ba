// mneme resume: what a generation says behind the last event that was read of it.
#include "client/cli/context.h"
#include "client/cli/turn.h"

namespace mneme::cli {
namespace {

struct ResumeFlags {
  std::string generation;
  int64_t after = 0;
};

int Run(client::Client& client, const Context& context, const ResumeFlags& flags) {
  v1::ResumeGenerationRequest request;
  request.set_generation(flags.generation);
  request.set_after_sequence(flags.after);
  return EndCommand(context, RunTurn(client, context, client.ResumeGeneration(request)));
}

}  // namespace

void AddResume(CLI::App& app, Context& context) {
  auto* command = app.add_subcommand("resume", "Read a generation again, or the rest of it");
  auto flags = std::make_shared<ResumeFlags>();
  command
      ->add_option("GENERATION", flags->generation,
                   "As `mneme generate -v` says it, or started.generation of --json")
      ->required();
  command
      ->add_option("--after", flags->after,
                   "Begin behind the event of this sequence; default with the first")
      ->check(CLI::NonNegativeNumber);
  command->footer(R"(
The server keeps what a generation said for a while after its end (generations.keep). One stream at a
time reads it: this one takes the place of another.

Examples:
  mneme generate --chat "Tell me a long story" -v     # says the name on stderr
  mneme resume g-abcdefghijklmnopqrst                 # in another terminal: from its beginning
  mneme resume g-abcdefghijklmnopqrst --after 120 --json)");
  OnRun(command, context, [&context, flags](client::Client& c) { return Run(c, context, *flags); });
}

}  // namespace mneme::cli
