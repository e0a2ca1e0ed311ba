#include "tests/support/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

extern char** environ;

namespace mneme::test {
namespace {

std::filesystem::path With(const std::filesystem::path& prefix, const char* suffix) {
  return prefix.string() + suffix;
}

}  // namespace

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TemporaryFolder::TemporaryFolder() {
  std::string name = (std::filesystem::temp_directory_path() / "mneme-test-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) {
    perror("mkdtemp");
    abort();
  }
  path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Start(const Options& options) {
  const std::filesystem::path prefix = options.folder / options.name;
  std::ofstream(With(prefix, ".in"), std::ios::binary) << options.input;

  std::vector<std::string> arguments = options.command;
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  std::vector<std::string> environment;
  for (const auto& [name, value] : options.environment) {
    environment.push_back(absl::StrCat(name, "=", value));
  }
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string variable = *entry;
    bool passed = variable.rfind("MNEME_", 0) != 0;
    for (const auto& [name, value] : options.environment) {
      passed = passed && variable.rfind(name + "=", 0) != 0;
    }
    if (passed) environment.push_back(variable);
  }
  std::vector<char*> envp;
  for (std::string& entry : environment) envp.push_back(entry.data());
  envp.push_back(nullptr);

  const std::string in = With(prefix, ".in"), out = With(prefix, ".out"),
                    err = With(prefix, ".err");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  const int create = O_WRONLY | O_CREAT | O_TRUNC | O_APPEND;
  posix_spawn_file_actions_addopen(&actions, 0, in.c_str(), O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, out.c_str(), create, 0600);
  posix_spawn_file_actions_addopen(&actions, 2, err.c_str(), create, 0600);
  pid_t pid = -1;
  const int error = posix_spawn(&pid, argv[0], &actions, nullptr, argv.data(), envp.data());
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    return absl::InternalError(absl::StrCat("cannot start ", arguments[0], ": ", strerror(error)));
  }
  return std::unique_ptr<ChildProcess>(new ChildProcess(pid, prefix));
}

ChildProcess::Result ChildProcess::Run(const Options& options, absl::Duration timeout) {
  auto child = Start(options);
  if (!child.ok()) return {.err = std::string(child.status().message())};
  return (*child)->Wait(timeout);
}

ChildProcess::~ChildProcess() {
  if (ended_) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

void ChildProcess::Signal(int signal) {
  if (!ended_) kill(pid_, signal);
}

bool ChildProcess::Ended() {
  int status = 0;
  if (!ended_ && waitpid(pid_, &status, WNOHANG) == pid_) {
    ended_ = true;
    code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  return ended_;
}

ChildProcess::Result ChildProcess::Wait(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (!Ended() && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(2));
  if (!ended_) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    ended_ = true;
  }
  return {code_, Out(), Err()};
}

std::string ChildProcess::Out() const { return ReadFile(With(prefix_, ".out")); }
std::string ChildProcess::Err() const { return ReadFile(With(prefix_, ".err")); }

}  // namespace mneme::test
