// Ctrl-C as a call on an ordinary thread, so that the handler may take locks and make RPCs.
#pragma once

#include <functional>

namespace mneme::cli {

// While one lives, SIGINT and SIGTERM call `handler(n)` for the n-th signal, one call at a time,
// instead of ending the program. After the handler's third call the program ends with status 130:
// something must be stuck. One at a time in a process.
class OnInterrupt {
 public:
  explicit OnInterrupt(std::function<void(int)> handler);
  ~OnInterrupt();  // restores what was; the handler is not running afterwards
  OnInterrupt(const OnInterrupt&) = delete;
  OnInterrupt& operator=(const OnInterrupt&) = delete;

  bool interrupted() const;

 private:
  struct Impl;
  Impl* impl_;
};

}  // namespace mneme::cli
