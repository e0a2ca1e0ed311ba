// mneme export: a session into a file.
#include <filesystem>
#include <fstream>
#include <iostream>
#include <optional>

#include "absl/strings/str_cat.h"
#include "client/cli/context.h"
#include "client/cli/interrupt.h"
#include "client/cli/json.h"
#include "client/cli/output.h"
#include "client/cli/progress_bar.h"

namespace mneme::cli {
namespace {

struct ExportFlags {
  std::string session, file;
  bool no_transcript = false, compress = false, force = false;
};

int Run(client::Client& client, const Context& context, const ExportFlags& flags) {
  const bool pipe = flags.file == "-";
  std::error_code error;
  if (pipe && StdoutIsTty()) {
    return context.FailUsage("the file is not for a terminal: name a file, or redirect stdout");
  }
  if (!pipe && !flags.force && std::filesystem::exists(flags.file, error)) {
    return context.FailHere(flags.file + " is there already (--force replaces it)");
  }
  // A file that is only begun never bears the name.
  const std::string part = flags.file + ".part";
  std::ofstream file;
  if (!pipe) {
    file.open(part, std::ios::binary | std::ios::trunc);
    if (!file) return context.FailHere("cannot write " + part);
  }
  std::stop_source stop;
  OnInterrupt interrupt([&](int) { stop.request_stop(); });
  std::optional<ProgressBar> bar;
  client::ExportOptions options;
  options.session = flags.session;
  options.without_transcript = flags.no_transcript;
  options.compress = flags.compress;
  options.stop = stop.get_token();
  options.on_progress = [&](const client::ExportProgress& progress) {
    if (context.json()) return;
    if (!bar) bar.emplace(flags.compress ? -1 : progress.content_bytes);
    bar->Update(progress.file_bytes);
  };
  auto done = client.ExportSession(pipe ? std::cout : file, options);
  if (bar) bar->Finish();
  if (!pipe) {
    file.close();
    if (done.ok() && !file) done = absl::DataLossError("cannot write " + part);
    if (done.ok()) {
      std::filesystem::rename(part, flags.file, error);
      if (error) done = absl::DataLossError("cannot write " + flags.file);
    }
    if (!done.ok()) std::filesystem::remove(part, error);
  }
  if (stop.stop_requested()) return kInterrupted;
  if (!done.ok()) return context.Fail(done.status());
  if (pipe) return kOk;
  if (context.json()) {
    const Json line{{"file", flags.file},
                    {"file_bytes", done->file_bytes},
                    {"version", done->version},
                    {"position_tokens", done->position_tokens}};
    std::cout << Dump(line) << "\n";
  } else {
    std::cout << "Exported version " << done->version << ", " << HumanCount(done->position_tokens)
              << " tokens, to " << flags.file << ", " << HumanBytes(done->file_bytes) << ".\n";
  }
  return kOk;
}

}  // namespace

void AddExport(CLI::App& app, Context& context) {
  auto* command = app.add_subcommand("export", "Write a session to a file");
  auto flags = std::make_shared<ExportFlags>();
  command->add_option("SESSION", flags->session, "Session, or snapshot as SESSION@SNAPSHOT")
      ->required();
  command->add_option("FILE", flags->file, "'-' writes to stdout")->required();
  command->add_flag("--no-transcript", flags->no_transcript,
                    "Leave out what was read and said; the state goes on just as well");
  command->add_flag("--compress", flags->compress,
                    "With zstd: pays for long transcripts, little for states");
  command->add_flag("-f,--force", flags->force, "Replace a file that is there");
  command->footer(R"(
The file holds the last committed version, whatever is written meanwhile: state and, unless left out,
transcript. `mneme import` makes a session of it that goes on from the same point, on any server that
has the same checkpoint.

Examples:
  mneme export diary diary.mneme
  mneme export diary@v12 - --no-transcript | ssh elsewhere mneme import - --name diary)");
  OnRun(command, context, [&context, flags](client::Client& c) { return Run(c, context, *flags); });
}

}  // namespace mneme::cli
