// A program on a terminal of its own: what a person types goes in, what the person would see comes
// out. For tests of interactive programs.
//
// Threads: one per object. The destructor kills what still runs.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace mneme::test {

class PtyProcess {
 public:
  // `command`: path of the program, arguments. `environment` is added to this process's, of which
  // MNEME_* variables are not passed on.
  static absl::StatusOr<std::unique_ptr<PtyProcess>> Start(
      std::vector<std::string> command,
      const std::vector<std::pair<std::string, std::string>>& environment);
  ~PtyProcess();

  void Type(std::string_view keys);
  // Waits until `text` is shown after everything that earlier calls have found; false after
  // `timeout` or at the program's end.
  bool Expect(std::string_view text, absl::Duration timeout = absl::Seconds(60));
  // Waits until the program reads single keys: an editor shows its prompt a moment before, and keys
  // typed in between are echoed by the terminal and edited by nobody.
  bool ExpectKeysAreRead(absl::Duration timeout = absl::Seconds(60));
  // Waits for the end; the exit status, 128 + the signal, or -1 if it had to be killed.
  int Wait(absl::Duration timeout = absl::Seconds(60));
  // Everything shown so far, control sequences included.
  const std::string& screen() const { return screen_; }

 private:
  PtyProcess(pid_t pid, int terminal) : pid_(pid), terminal_(terminal) {}
  // Reads what is there, waiting for at most `timeout`; false at the end.
  bool ReadSome(absl::Duration timeout);

  pid_t pid_;
  const int terminal_;
  bool ended_ = false;
  int code_ = -1;
  std::string screen_;
  size_t found_ = 0;  // up to here
};

}  // namespace mneme::test
