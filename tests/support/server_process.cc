#include "tests/support/server_process.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace mneme::test {
namespace {

// The rest of the first whole line that begins with `prefix`, or "".
std::string AfterPrefix(const std::string& text, const std::string& prefix) {
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) return "";
    if (text.compare(begin, prefix.size(), prefix) == 0) {
      return text.substr(begin + prefix.size(), end - begin - prefix.size());
    }
    begin = end + 1;
  }
  return "";
}

}  // namespace

std::vector<std::string> ServerProcess::Command(const Options& options) {
  std::vector<std::string> command = {
      options.binary,
      "--model",
      options.model,
      "--store.path",
      options.store.empty() ? (options.folder / "store").string() : options.store,
      "--listen.address",
      options.address,
      "--listen.metrics_address",
      options.metrics_address,
      "--engine.threads",
      "1"};
  command.insert(command.end(), options.flags.begin(), options.flags.end());
  return command;
}

absl::StatusOr<std::unique_ptr<ServerProcess>> ServerProcess::Start(const Options& options) {
  auto child = ChildProcess::Start(
      {.command = Command(options), .folder = options.folder, .name = "server"});
  if (!child.ok()) return child.status();
  std::unique_ptr<ServerProcess> server(new ServerProcess(*std::move(child)));
  const absl::Time deadline = absl::Now() + options.start_timeout;
  while (absl::Now() < deadline) {
    const std::string out = server->child_->Out();
    server->address_ = AfterPrefix(out, "listening on ");
    if (!server->address_.empty()) {
      const std::string metrics = AfterPrefix(out, "metrics on http://");
      server->metrics_address_ = metrics.substr(0, metrics.find('/'));
      return server;
    }
    if (server->child_->Ended()) break;
    absl::SleepFor(absl::Milliseconds(2));
  }
  const ChildProcess::Result result = server->child_->Wait(absl::ZeroDuration());
  return absl::UnavailableError(absl::StrCat("mneme-server did not start, exit code ", result.code,
                                             "\n", result.out, result.err));
}

ServerProcess::~ServerProcess() { ExpectNoCrash(); }

void ServerProcess::Kill() {
  ExpectNoCrash();
  waited_ = true;
  child_->Signal(SIGKILL);
  child_->Wait();
}

void ServerProcess::Signal(int signal) {
  signalled_ = true;
  child_->Signal(signal);
}

ChildProcess::Result ServerProcess::Wait(absl::Duration timeout) {
  waited_ = true;
  return child_->Wait(timeout);
}

void ServerProcess::ExpectNoCrash() {
  if (address_.empty() || waited_) return;  // Start tells why it never listened
  const bool ended = child_->Ended();
  const int code = ended ? child_->Wait(absl::ZeroDuration()).code : 0;
  // A sanitizer may be in the middle of its report.
  const std::string log = Log();
  if ((ended && (!signalled_ || code != 0)) || log.find("Sanitizer: ") != std::string::npos) {
    ADD_FAILURE() << "mneme-server " << (ended ? absl::StrCat("ended with code ", code) : "runs")
                  << ", its log:\n"
                  << log;
  }
}

}  // namespace mneme::test
