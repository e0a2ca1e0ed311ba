#include "client/cli/line_reader.h"

#include <histedit.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <string_view>

#include "client/cli/output.h"
#include "client/cli/user_folder.h"

namespace mneme::cli {
namespace {

// xterm's bracketed paste: switched on, the terminal puts the marks around what is pasted.
constexpr char kMarkPastes[] = "\033[?2004h", kDoNotMarkPastes[] = "\033[?2004l";
constexpr std::wstring_view kPasteEnd = L"\033[201~";

bool TerminalMarksPastes() {
  const char* terminal = std::getenv("TERM");
  return StderrIsTty() && terminal != nullptr && std::string_view(terminal) != "dumb";
}

// Terminals paste a newline as Enter. One at the end would only stand in the way of the person's
// own.
std::wstring WithoutControls(const std::wstring& pasted) {
  std::wstring text;
  for (const wchar_t c : pasted) {
    if (c == L'\r') {
      text += L'\n';
    } else if (c >= L' ' || c == L'\n' || c == L'\t') {
      text += c;
    }
  }
  while (!text.empty() && text.back() == L'\n') text.pop_back();
  return text;
}

// What libedit runs at the mark that begins a paste.
unsigned char InsertPaste(EditLine* edit, int) {
  std::wstring pasted;
  for (wchar_t c; el_wgetc(edit, &c) == 1;) {
    pasted += c;
    if (pasted.ends_with(kPasteEnd)) {
      pasted.resize(pasted.size() - kPasteEnd.size());
      break;
    }
  }
  const std::wstring text = WithoutControls(pasted);
  return text.empty() || el_winsertstr(edit, text.c_str()) == 0 ? CC_REFRESH : CC_ERROR;
}

}  // namespace

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

LineReader::LineReader(std::string history_file) : impl_(std::make_unique<Impl>()) {
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
  el_set(impl_->edit, EL_ADDFN, "insert-paste", "Insert what the terminal pastes", InsertPaste);
  el_set(impl_->edit, EL_BIND, "\033[200~", "insert-paste", nullptr);
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

LineReader::Event LineReader::Read(const std::string& prompt, std::string* line) {
  if (impl_->edit == nullptr) {
    if (!std::getline(std::cin, *line)) return Event::kEnd;
    if (!line->empty() && line->back() == '\r') line->pop_back();
    return Event::kLine;
  }
  impl_->prompt = prompt;
  int count = 0;
  const bool marks = TerminalMarksPastes();
  if (marks) std::cerr << kMarkPastes << std::flush;
  errno = 0;
  const char* text = el_gets(impl_->edit, &count);
  const bool interrupted = errno == EINTR;
  if (marks) std::cerr << kDoNotMarkPastes << std::flush;
  if (text == nullptr || count <= 0) {
    if (interrupted) {
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
  const std::string folder = UserFolder("XDG_STATE_HOME", ".local/state");
  if (folder.empty()) return "";
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  return error ? "" : folder + "/history";
}

}  // namespace mneme::cli
