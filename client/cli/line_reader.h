// Lines a person types: with editing and a history on a terminal, plain otherwise. What is pasted
// into a terminal is one line with newlines in it, if the terminal marks pastes ("bracketed
// paste").
#pragma once

#include <memory>
#include <optional>
#include <string>

namespace mneme::cli {

class LineReader {
 public:
  enum class Event { kLine, kInterrupted, kEnd };

  // `history_file`: "" keeps no history on disk. It is created with mode 0600.
  explicit LineReader(std::string history_file);
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  // The next line without its newline. kInterrupted: Ctrl-C at the prompt (needs a SIGINT handler
  // without SA_RESTART); kEnd: Ctrl-D or the end of the input.
  Event Read(const std::string& prompt, std::string* line);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// $XDG_STATE_HOME/mneme/history, or under ~/.local/state; "" if there is no home. Makes the folder.
std::string DefaultHistoryFile();

}  // namespace mneme::cli
