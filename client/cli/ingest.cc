// mneme ingest: a long text into a session.
#include <openssl/evp.h>

#include <fstream>
#include <iostream>
#include <thread>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/context.h"
#include "client/cli/input_file.h"
#include "client/cli/interrupt.h"
#include "client/cli/json.h"
#include "client/cli/open_session.h"
#include "client/cli/output.h"
#include "client/cli/progress_bar.h"

namespace mneme::cli {
namespace {

struct IngestFlags {
  std::string file, session, model, ingest_id;
  bool again = false, create = false, special = false;
  int64_t expected_version = 0, commit_every = 0;
  double max_outage_s = 60;
};

// The same text into the same session has the same id, so that running the command again resumes.
absl::StatusOr<std::string> IdOfContent(const std::string& session, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot open ", path));
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> hash(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  bool good = hash && EVP_DigestInit_ex(hash.get(), EVP_sha256(), nullptr) == 1 &&
              EVP_DigestUpdate(hash.get(), session.data(), session.size() + 1) == 1;
  std::string buffer(1 << 20, '\0');
  while (good && file) {
    file.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    good = EVP_DigestUpdate(hash.get(), buffer.data(), static_cast<size_t>(file.gcount())) == 1;
  }
  if (file.bad()) return absl::DataLossError(absl::StrCat("cannot read ", path));
  if (!good || EVP_DigestFinal_ex(hash.get(), digest, &size) != 1) {
    return absl::InternalError("SHA-256 failed");
  }
  const absl::string_view half(reinterpret_cast<const char*>(digest), 16);
  return absl::StrCat("file-", absl::BytesToHexString(half));
}

int Run(client::Client& client, const Context& context, IngestFlags flags) {
  const bool pipe = flags.file == "-";
  auto session = client::SessionName(context.tenant, flags.session);
  if (!session.ok()) return context.Fail(session.status());
  std::ifstream file;
  int64_t total = -1;
  if (!pipe) {
    const auto size = OpenInput(flags.file, file);
    if (!size.ok()) return context.FailHere(std::string(size.status().message()));
    total = *size;
    if (flags.ingest_id.empty() && !flags.again) {
      auto id = IdOfContent(*session, flags.file);
      if (!id.ok()) return context.Fail(id.status());
      flags.ingest_id = *id;
    }
  }
  if (flags.create || !flags.model.empty()) {
    auto opened = OpenSession(client, context, *session, flags.model,
                              flags.create ? IfAbsent::kCreate : IfAbsent::kFail);
    if (!opened.ok()) return context.Fail(opened.status());
  }

  ProgressBar bar(total);
  std::stop_source stop;
  OnInterrupt interrupt([&](int count) {
    // A pipe that gives nothing keeps the sender waiting: then the second Ctrl-C ends the program.
    if (count > 1) _exit(kInterrupted);
    stop.request_stop();
  });
  client::IngestOptions options;
  options.session = *session;
  options.ingest_id = flags.ingest_id;
  options.expected_version = flags.expected_version;
  options.commit_every_tokens = flags.commit_every;
  options.parse_special_tokens = flags.special;
  options.max_outage = absl::Seconds(flags.max_outage_s);
  options.stop = stop.get_token();
  const absl::Time begin = absl::Now();
  bool first = true, was_complete = false;
  int64_t first_tokens = 0;
  v1::IngestProgress latest;
  options.on_progress = [&](const v1::IngestProgress& progress) {
    latest = progress;
    if (context.json()) std::cout << Dump(ToJson(progress)) << "\n" << std::flush;
    if (first && progress.durable_bytes() > 0) {
      first_tokens = progress.read_tokens();
      was_complete = progress.done();
      if (!context.json() && !was_complete) {
        bar.Message(absl::StrCat("resuming after ", HumanBytes(progress.durable_bytes())));
      }
    }
    first = false;
    if (!context.json()) {
      bar.Update(std::max(progress.received_bytes(), progress.durable_bytes()),
                 progress.read_tokens(), progress.state_bytes());
    }
  };
  options.on_retry = [&](const absl::Status& why, absl::Duration wait) {
    if (!context.json()) {
      bar.Message(absl::StrFormat("connection lost after %s durable (%s); trying again in %s",
                                  HumanBytes(latest.durable_bytes()), std::string(why.message()),
                                  absl::FormatDuration(absl::Trunc(wait, absl::Milliseconds(1)))));
    }
  };
  auto done = pipe ? client.Ingest(std::cin, options) : client.Ingest(file, options);
  if (!context.json() && !was_complete) bar.Finish();
  if (interrupt.interrupted() && !done.ok()) {
    if (!context.json()) {
      std::cerr << "mneme: stopped; " << HumanBytes(latest.durable_bytes())
                << " are durable. The same command continues there\n";
    }
    return kInterrupted;
  }
  if (!done.ok()) {
    const std::string reason = client::ErrorOf(done.status()).reason;
    const int code = context.Fail(done.status());
    if (reason == "VERSION_MISMATCH" && !context.json() && !flags.again) {
      std::cerr << "  hint: the session took another turn since this text was begun; --again reads "
                   "the whole text anew\n";
    }
    return code;
  }
  if (context.json()) return kOk;
  if (was_complete) {
    std::cout << "Already ingested: " << HumanCount(done->read_tokens())
              << " tokens of this text are in " << client::IdOf(*session)
              << ". Use --again to read it a second time.\n";
    return kOk;
  }
  const double seconds = absl::ToDoubleSeconds(absl::Now() - begin);
  const auto tokens = static_cast<double>(done->read_tokens() - first_tokens);
  std::cout << absl::StrFormat(
      "Ingested %s (%s tokens) in %.1f s, %s tokens/s. Session %s: version %d, position %s, state "
      "%s.\n",
      HumanBytes(done->durable_bytes()), HumanCount(done->read_tokens()), seconds,
      HumanRate(seconds > 0 ? tokens / seconds : 0), std::string(client::IdOf(*session)),
      done->version(), HumanCount(done->position_tokens()), HumanBytes(done->state_bytes()));
  return kOk;
}

}  // namespace

void AddIngest(CLI::App& app, Context& context) {
  auto* command = app.add_subcommand("ingest", "Let a session read a long text");
  auto flags = std::make_shared<IngestFlags>();
  command->add_option("FILE", flags->file, "UTF-8 text; '-' reads stdin")->required();
  command->add_option("-s,--session", flags->session, "The session that reads it")->required();
  command->add_flag("--create", flags->create, "Create the session if there is none");
  AddModelFlag(*command, flags->model, "Model of a session that --create makes");
  command->add_option(
      "--ingest-id", flags->ingest_id,
      "Names this ingest, so that it can be resumed; default: made from the session "
      "and the file's content, random for stdin");
  command->add_flag("--again", flags->again, "Read the text even if this session has read it");
  command->add_option("--commit-every-tokens", flags->commit_every,
                      "Make progress durable so often; server default 65536");
  command->add_option("--expected-version", flags->expected_version,
                      "Start only if the session is at this version");
  command->add_flag("--parse-special-tokens", flags->special,
                    "Let the text contain control tokens such as <|im_end|>");
  command
      ->add_option("--max-outage", flags->max_outage_s,
                   "Keep trying so many seconds while the server is away")
      ->capture_default_str();
  command->footer(R"(
Progress goes to stderr: a bar on a terminal, else a line every 5 s. However long the text, the
session's state keeps its size. If the connection breaks, or you press Ctrl-C, what is durable stays;
the same command continues there.

Examples:
  mneme ingest book.txt --session reader --create
  mneme generate --session reader --chat "Who is the story about?"
  zcat logs.gz | mneme ingest - --session ops --ingest-id logs-monday
  mneme ingest book.txt --session reader --json | tail -1 | jq .position_tokens)");
  OnRun(command, context, [&context, flags](client::Client& c) { return Run(c, context, *flags); });
}

}  // namespace mneme::cli
