#include "client/cli/line_reader.h"

#include <histedit.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "client/cli/output.h"

namespace mneme::cli {

struct LineReader::Impl {
  std::string prompt, history_file;
  EditLine* edit = nullptr;
  ::History* history = nullptr;
  HistEvent event;

  static char* Prompt(EditLine* edit) {
    void* self = nullptr;
    el_get(edit, EL_CLIENTDATA, &self);
    return static_cast<Impl*>(self)->prompt.data();
  }
};

LineReader::LineReader(std::string prompt, std::string history_file)
    : impl_(std::make_unique<Impl>()) {
  impl_->prompt = std::move(prompt);
  impl_->history_file = std::move(history_file);
  if (!StdinIsTty()) return;
  // The prompt goes to stderr, so that `mneme chat | tee log` works.
  impl_->edit = el_init("mneme", stdin, stderr, stderr);
  if (impl_->edit == nullptr) return;
  impl_->history = history_init();
  history(impl_->history, &impl_->event, H_SETSIZE, 1000);
  history(impl_->history, &impl_->event, H_SETUNIQUE, 1);
  if (!impl_->history_file.empty()) {
    history(impl_->history, &impl_->event, H_LOAD, impl_->history_file.c_str());
  }
  el_set(impl_->edit, EL_CLIENTDATA, impl_.get());
  el_set(impl_->edit, EL_PROMPT, Impl::Prompt);
  el_set(impl_->edit, EL_EDITOR, "emacs");
  el_set(impl_->edit, EL_HIST, history, impl_->history);
  el_set(impl_->edit, EL_BIND, "^R", "em-inc-search-prev", nullptr);
  el_source(impl_->edit, nullptr);  // the person's own ~/.editrc
}

LineReader::~LineReader() {
  if (impl_->edit == nullptr) return;
  if (!impl_->history_file.empty()) {
    const mode_t old = umask(0077);  // what people type is private
    history(impl_->history, &impl_->event, H_SAVE, impl_->history_file.c_str());
    umask(old);
  }
  history_end(impl_->history);
  el_end(impl_->edit);
}

LineReader::Event LineReader::Read(std::string* line) {
  if (impl_->edit == nullptr) {
    if (!std::getline(std::cin, *line)) return Event::kEnd;
    if (!line->empty() && line->back() == '\r') line->pop_back();
    return Event::kLine;
  }
  int count = 0;
  errno = 0;
  const char* text = el_gets(impl_->edit, &count);
  if (text == nullptr || count <= 0) {
    if (errno == EINTR) {
      el_reset(impl_->edit);
      return Event::kInterrupted;
    }
    return Event::kEnd;
  }
  line->assign(text, static_cast<size_t>(count));
  while (!line->empty() && (line->back() == '\n' || line->back() == '\r')) line->pop_back();
  if (line->find_first_not_of(" \t") != std::string::npos) {
    history(impl_->history, &impl_->event, H_ENTER, line->c_str());
  }
  return Event::kLine;
}

std::string DefaultHistoryFile() {
  std::filesystem::path folder;
  if (const char* state = std::getenv("XDG_STATE_HOME"); state != nullptr && *state == '/') {
    folder = state;
  } else if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/') {
    folder = std::filesystem::path(home) / ".local" / "state";
  } else {
    return "";
  }
  folder /= "mneme";
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  return error ? "" : (folder / "history").string();
}

}  // namespace mneme::cli
