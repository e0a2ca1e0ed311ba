#include "client/cli/interrupt.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <thread>

namespace mneme::cli {
namespace {

std::atomic<int> signal_pipe{-1};

void Notify(int) {
  const int fd = signal_pipe.load(std::memory_order_relaxed);
  const char byte = 's';
  if (fd >= 0 && write(fd, &byte, 1) < 0) {
    // A full pipe means that signals are waiting already.
  }
}

}  // namespace

struct OnInterrupt::Impl {
  std::function<void(int)> handler;
  int fds[2] = {-1, -1};
  std::atomic<int> count{0};
  struct sigaction old_int, old_term;
  std::thread thread;
};

OnInterrupt::OnInterrupt(std::function<void(int)> handler) : impl_(new Impl) {
  impl_->handler = std::move(handler);
  if (pipe2(impl_->fds, O_CLOEXEC) != 0) return;  // no descriptors: Ctrl-C just ends the program
  signal_pipe = impl_->fds[1];
  impl_->thread = std::thread([impl = impl_] {
    char byte;
    while (read(impl->fds[0], &byte, 1) == 1 && byte == 's') {
      const int count = ++impl->count;
      impl->handler(count);
      if (count >= 3) _exit(130);
    }
  });
  struct sigaction action = {};
  action.sa_handler = Notify;  // without SA_RESTART: a read from the terminal gives up
  sigaction(SIGINT, &action, &impl_->old_int);
  sigaction(SIGTERM, &action, &impl_->old_term);
}

OnInterrupt::~OnInterrupt() {
  if (impl_->thread.joinable()) {
    sigaction(SIGINT, &impl_->old_int, nullptr);
    sigaction(SIGTERM, &impl_->old_term, nullptr);
    signal_pipe = -1;
    const char byte = 'q';
    if (write(impl_->fds[1], &byte, 1) == 1) impl_->thread.join();
    close(impl_->fds[0]);
    close(impl_->fds[1]);
  }
  delete impl_;
}

bool OnInterrupt::interrupted() const { return impl_->count > 0; }

}  // namespace mneme::cli
