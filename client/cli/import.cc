// mneme import: a session out of a file.
#include <unistd.h>

#include <fstream>
#include <iostream>
#include <vector>

#include "client/cli/context.h"
#include "client/cli/input_file.h"
#include "client/cli/interrupt.h"
#include "client/cli/json.h"
#include "client/cli/labels.h"
#include "client/cli/output.h"
#include "client/cli/progress_bar.h"

namespace mneme::cli {
namespace {

struct ImportFlags {
  std::string file, name, model, display_name;
  std::vector<std::string> labels;
  bool no_transcript = false, validate_only = false;
};

int Run(client::Client& client, const Context& context, const ImportFlags& flags) {
  client::ImportOptions options;
  auto& start = options.start;
  if (!flags.name.empty()) {
    auto full = client::SessionName(context.tenant, flags.name);
    if (!full.ok()) return context.FailUsage(std::string(full.status().message()));
    start.set_session_id(std::string(client::IdOf(*full)));
    start.set_parent(full->substr(0, full->find("/sessions/")));
  }
  start.set_validate_only(flags.validate_only);
  // Not the default model: the file knows which checkpoint it is of.
  start.mutable_session()->set_model(flags.model);
  start.mutable_session()->set_display_name(flags.display_name);
  if (flags.no_transcript) start.mutable_session()->set_transcript(v1::Session::NONE);
  if (auto s = AddLabels(flags.labels, *start.mutable_session()); !s.ok()) {
    return context.FailUsage(std::string(s.message()));
  }
  const bool pipe = flags.file == "-";
  std::ifstream file;
  int64_t total = -1;
  if (!pipe) {
    const auto size = OpenInput(flags.file, file);
    if (!size.ok()) return context.FailHere(std::string(size.status().message()));
    total = *size;
  }
  std::stop_source stop;
  OnInterrupt interrupt([&](int count) {
    // A pipe that gives nothing keeps the sender waiting: then the second Ctrl-C ends the program.
    if (count > 1) _exit(kInterrupted);
    stop.request_stop();
  });
  ProgressBar bar(total);
  options.stop = stop.get_token();
  options.on_sent_bytes = [&](int64_t sent) {
    if (!context.json()) bar.Update(sent);
  };
  auto done = client.ImportSession(pipe ? std::cin : file, options);
  bar.Finish();
  if (stop.stop_requested()) return kInterrupted;
  if (!done.ok()) return context.Fail(done.status());
  if (context.json()) {
    std::cout << Dump(ToJson(*done)) << "\n";
    return kOk;
  }
  const v1::Session& session = done->session();
  if (context.names_only()) {
    std::cout << session.name() << "\n";
  } else {
    std::cout << (flags.validate_only ? "Could be imported: " : "Imported ")
              << context.Short(session.name()) << ", version " << session.version() << ", "
              << HumanCount(session.position_tokens()) << " tokens, of "
              << client::IdOf(session.model()) << ".\n";
  }
  if (!done->same_numerics()) {
    std::cerr << "The state was computed by " << Quoted(done->source_numerics_id())
              << ", this server is " << Quoted(done->numerics_id())
              << ": what follows is equal to rounding, not bit for bit.\n";
  }
  return kOk;
}

}  // namespace

void AddImport(CLI::App& app, Context& context) {
  auto* command = app.add_subcommand("import", "Make a session of a file that export wrote");
  auto flags = std::make_shared<ImportFlags>();
  command->add_option("FILE", flags->file, "'-' reads stdin")->required();
  command->add_option("-n,--name", flags->name, "Its id here; left out: the server makes one");
  AddModelFlag(*command, flags->model,
               "Model that goes on with it; default: the one with the file's checkpoint");
  command->add_option("--display-name", flags->display_name, "Free text, at most 128 bytes");
  command->add_option("--label", flags->labels, "KEY=VALUE; may be given again")
      ->expected(1)
      ->take_all();
  command->add_flag("--no-transcript", flags->no_transcript, "Leave the file's transcript out");
  command->add_flag("--validate-only", flags->validate_only,
                    "Check the whole file, but create nothing");
  command->footer(R"(
The session goes on from the file's version and position. It is there once every byte has been checked;
of a file that is damaged, or of another checkpoint, nothing is kept.

Examples:
  mneme import diary.mneme --name diary
  mneme import diary.mneme --validate-only)");
  OnRun(command, context, [&context, flags](client::Client& c) { return Run(c, context, *flags); });
}

}  // namespace mneme::cli
