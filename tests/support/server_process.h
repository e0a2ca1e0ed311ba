// A real mneme-server as a child process, on a free port, with its sessions in a folder of the
// caller's: for tests that kill it.
//
// A server that ends by itself (a crash, a sanitizer's report) fails the test, with its log, when
// it is killed or goes out of scope. Whoever calls Wait looks at the exit code instead.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "tests/support/child_process.h"

namespace mneme::test {

class ServerProcess {
 public:
  struct Options {
    std::string binary;              // of mneme-server
    std::string model;               // NAME=PATH
    std::filesystem::path folder;    // logs go here
    std::string store;               // its path or URI; "" = <folder>/store
    std::vector<std::string> flags;  // further ones
    std::string address = "127.0.0.1:0";
    std::string metrics_address = "127.0.0.1:0";
    absl::Duration start_timeout = absl::Seconds(120);
  };
  // Waits until it listens. An error quotes what it printed.
  static absl::StatusOr<std::unique_ptr<ServerProcess>> Start(const Options& options);
  // The command that Start runs, for servers that are expected to leave at once.
  static std::vector<std::string> Command(const Options& options);
  ~ServerProcess();

  pid_t pid() const { return child_->pid(); }
  const std::string& address() const { return address_; }
  const std::string& metrics_address() const { return metrics_address_; }
  // SIGKILL, and waits: the port and the store are free afterwards.
  void Kill();
  void Signal(int signal);
  ChildProcess::Result Wait(absl::Duration timeout = absl::Seconds(120));
  // What it has told people so far.
  std::string Out() const { return child_->Out(); }
  // Its log so far.
  std::string Log() const { return child_->Err(); }

 private:
  explicit ServerProcess(std::unique_ptr<ChildProcess> child) : child_(std::move(child)) {}

  void ExpectNoCrash();

  std::unique_ptr<ChildProcess> child_;
  std::string address_, metrics_address_;
  bool signalled_ = false, waited_ = false;
};

}  // namespace mneme::test
