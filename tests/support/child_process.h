// A program as a child process whose output goes to files: for tests of real binaries.
//
// Threads: one per object. The destructor kills what still runs.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace mneme::test {

class ChildProcess {
 public:
  struct Options {
    std::vector<std::string> command;  // path of the program, arguments
    // Added to this process's environment, of which MNEME_* variables are not passed on.
    std::vector<std::pair<std::string, std::string>> environment;
    std::string input;             // what it reads from standard input
    std::filesystem::path folder;  // holds its input, output and error files
    std::string name = "child";    // of these files: <name>.in, <name>.out, <name>.err
  };
  struct Result {
    int code = -1;  // exit status, or 128 + the signal that ended it; -1: it had to be killed
    std::string out, err;
  };

  static absl::StatusOr<std::unique_ptr<ChildProcess>> Start(const Options& options);
  // Starts it and waits for its end.
  static Result Run(const Options& options, absl::Duration timeout = absl::Seconds(120));
  ~ChildProcess();

  pid_t pid() const { return pid_; }
  void Signal(int signal);
  // True if it has ended; does not wait.
  bool Ended();
  // Kills it after `timeout` (code -1).
  Result Wait(absl::Duration timeout = absl::Seconds(120));
  // What it has written so far.
  std::string Out() const;
  std::string Err() const;

 private:
  ChildProcess(pid_t pid, std::filesystem::path prefix) : pid_(pid), prefix_(std::move(prefix)) {}

  pid_t pid_;
  std::filesystem::path prefix_;
  bool ended_ = false;
  int code_ = -1;
};

// A folder below the system's temporary one, removed with everything in it.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

std::string ReadFile(const std::filesystem::path& path);

}  // namespace mneme::test
