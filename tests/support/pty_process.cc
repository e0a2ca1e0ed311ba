#include "tests/support/pty_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

extern char** environ;

namespace mneme::test {

// As forkpty does, but by posix_spawn: this process may have threads. The leader of a session gets
// the first terminal that it opens as its controlling one, so Ctrl-C reaches it as SIGINT.
absl::StatusOr<std::unique_ptr<PtyProcess>> PtyProcess::Start(
    std::vector<std::string> command,
    const std::vector<std::pair<std::string, std::string>>& environment) {
  const int terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  char device[128] = {};
  if (terminal < 0 || grantpt(terminal) != 0 || unlockpt(terminal) != 0 ||
      ptsname_r(terminal, device, sizeof(device)) != 0) {
    if (terminal >= 0) close(terminal);
    return absl::InternalError(absl::StrCat("no terminal: ", strerror(errno)));
  }
  const winsize size{.ws_row = 40, .ws_col = 120, .ws_xpixel = 0, .ws_ypixel = 0};
  ioctl(terminal, TIOCSWINSZ, &size);

  std::vector<char*> argv;
  for (std::string& argument : command) argv.push_back(argument.data());
  argv.push_back(nullptr);
  std::vector<std::string> variables;
  for (const auto& [name, value] : environment) variables.push_back(absl::StrCat(name, "=", value));
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string variable = *entry;
    const bool replaced =
        std::any_of(environment.begin(), environment.end(),
                    [&](const auto& added) { return variable.rfind(added.first + "=", 0) == 0; });
    if (!replaced && variable.rfind("MNEME_", 0) != 0) variables.push_back(variable);
  }
  std::vector<char*> envp;
  for (std::string& variable : variables) envp.push_back(variable.data());
  envp.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, device, O_RDWR, 0);
  posix_spawn_file_actions_adddup2(&actions, 0, 1);
  posix_spawn_file_actions_adddup2(&actions, 0, 2);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);
  pid_t pid = -1;
  const int error = posix_spawn(&pid, argv[0], &actions, &attributes, argv.data(), envp.data());
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    close(terminal);
    return absl::InternalError(absl::StrCat("cannot start ", command[0], ": ", strerror(error)));
  }
  return std::unique_ptr<PtyProcess>(new PtyProcess(pid, terminal));
}

PtyProcess::~PtyProcess() {
  if (!ended_) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  close(terminal_);
}

void PtyProcess::Type(std::string_view keys) {
  while (!keys.empty()) {
    const ssize_t written = write(terminal_, keys.data(), keys.size());
    if (written <= 0) return;  // it has ended: Expect and Wait tell
    keys.remove_prefix(static_cast<size_t>(written));
  }
}

bool PtyProcess::ReadSome(absl::Duration timeout) {
  pollfd poll_fd{.fd = terminal_, .events = POLLIN, .revents = 0};
  if (poll(&poll_fd, 1, static_cast<int>(absl::ToInt64Milliseconds(timeout))) <= 0) return true;
  char buffer[4096];
  const ssize_t count = read(terminal_, buffer, sizeof(buffer));
  if (count <= 0) return false;  // EIO: nobody has the terminal open any more
  screen_.append(buffer, static_cast<size_t>(count));
  return true;
}

bool PtyProcess::Expect(std::string_view text, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  for (bool open = true;;) {
    const size_t at = screen_.find(text, found_);
    if (at != std::string::npos) {
      found_ = at + text.size();
      return true;
    }
    if (!open || absl::Now() >= deadline) return false;
    open = ReadSome(absl::Milliseconds(50));
  }
}

bool PtyProcess::ExpectKeysAreRead(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  for (;;) {
    termios settings;
    if (tcgetattr(terminal_, &settings) == 0 && (settings.c_lflag & ICANON) == 0) return true;
    if (absl::Now() >= deadline || !ReadSome(absl::Milliseconds(5))) return false;
  }
}

int PtyProcess::Wait(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (!ended_) {
    // It may wait for somebody to read.
    if (!ReadSome(absl::Milliseconds(20))) absl::SleepFor(absl::Milliseconds(2));
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      ended_ = true;
      code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    } else if (absl::Now() >= deadline) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
      ended_ = true;
    }
  }
  while (screen_.size() < (1 << 20)) {  // what it wrote last
    const size_t before = screen_.size();
    if (!ReadSome(absl::ZeroDuration()) || screen_.size() == before) break;
  }
  return code_;
}

}  // namespace mneme::test
