#include "tests/support/postgres_proxy.h"

#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/free_address.h"

namespace mneme::test {
namespace {

void CloseWithReset(int& fd) {
  if (fd < 0) return;
  const linger at_once{.l_onoff = 1, .l_linger = 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
  close(fd);
  fd = -1;
}

bool SendAll(int fd, const std::string& bytes) {
  for (size_t sent = 0; sent < bytes.size();) {
    const ssize_t n = send(fd, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (n <= 0) return false;
    sent += n;
  }
  return true;
}

// "" at the end.
std::string Receive(int fd) {
  std::string bytes(1 << 16, '\0');
  const ssize_t n = recv(fd, bytes.data(), bytes.size(), 0);
  bytes.resize(n > 0 ? n : 0);
  return bytes;
}

// More bytes than one segment may belong to what was just sent.
std::string ReceiveUntilQuiet(int fd) {
  std::string bytes;
  for (pollfd waits{fd, POLLIN, 0}; poll(&waits, 1, 100) > 0;) {
    const std::string more = Receive(fd);
    if (more.empty()) break;
    bytes += more;
  }
  return bytes;
}

}  // namespace

PostgresProxy::PostgresProxy(const std::filesystem::path& socket) : socket_(socket) {
  listener_ = ListenOnLoopback(&port_);
  thread_ = std::thread([this] { Loop(); });
}

PostgresProxy::~PostgresProxy() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  thread_.join();
  Reset();
  close(listener_);
}

std::string PostgresProxy::Uri(const std::string& database, const std::string& user) const {
  return absl::StrCat("postgresql://", user, "@127.0.0.1:", port_, "/", database);
}

void PostgresProxy::Hang() {
  std::lock_guard<std::mutex> lock(mutex_);
  hang_ = true;
}

void PostgresProxy::Forward() {
  std::lock_guard<std::mutex> lock(mutex_);
  hang_ = false;
}

void PostgresProxy::Reset() {
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto& [number, pair] : pairs_) {
    CloseWithReset(pair.client);
    CloseWithReset(pair.server);
  }
}

void PostgresProxy::FailAt(const std::string& statement, Fault fault) {
  std::lock_guard<std::mutex> lock(mutex_);
  // A Bind message names the empty portal and the statement; the Parse message of one without a
  // name has an empty name and the text. Preparing looks otherwise.
  faults_.emplace_back(std::string(1, '\0') + statement + '\0', fault);
}

bool PostgresProxy::WaitForFaults() {
  std::unique_lock<std::mutex> lock(mutex_);
  return changed_.wait_for(lock, std::chrono::minutes(1), [&] { return faults_.empty(); });
}

void PostgresProxy::DeliverLate() {
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto& [number, pair] : pairs_) {
    if (!pair.faulty || pair.server < 0) continue;
    SendAll(pair.server, pair.held);
    pair.held.clear();
    pollfd waits{pair.server, POLLIN, 0};
    poll(&waits, 1, 10'000);
    ReceiveUntilQuiet(pair.server);
    CloseWithReset(pair.server);
  }
}

void PostgresProxy::Loop() {
  while (true) {
    std::vector<pollfd> polled = {{listener_, POLLIN, 0}};
    std::vector<std::pair<int, bool>> owners = {{-1, false}};  // number of the pair, of its client?
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (stop_) return;
      for (auto it = pairs_.begin(); it != pairs_.end();) {
        it = it->second.client < 0 && it->second.server < 0 ? pairs_.erase(it) : std::next(it);
      }
      for (auto& [number, pair] : pairs_) {
        if (hang_ || pair.faulty) continue;
        polled.push_back({pair.client, POLLIN, 0});
        owners.emplace_back(number, true);
        polled.push_back({pair.server, POLLIN, 0});
        owners.emplace_back(number, false);
      }
    }
    poll(polled.data(), polled.size(), 10);
    std::lock_guard<std::mutex> lock(mutex_);
    if ((polled[0].revents & POLLIN) != 0) {
      Pair pair;
      pair.client = accept(listener_, nullptr, nullptr);
      pair.server = ::socket(AF_UNIX, SOCK_STREAM, 0);
      sockaddr_un address{};
      address.sun_family = AF_UNIX;
      strncpy(address.sun_path, socket_.c_str(), sizeof(address.sun_path) - 1);
      if (connect(pair.server, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
        CloseWithReset(pair.client);
        CloseWithReset(pair.server);
      } else {
        pairs_[next_++] = pair;
      }
    }
    for (size_t i = 1; i < polled.size(); ++i) {
      const auto [number, client] = owners[i];
      Pair& pair = pairs_.at(number);
      if (polled[i].revents == 0 || hang_ || pair.faulty) continue;
      if ((client ? pair.client : pair.server) != polled[i].fd) continue;  // reset meanwhile
      if (client) {
        FromClient(pair);
      } else {
        FromServer(pair);
      }
    }
  }
}

void PostgresProxy::FromClient(Pair& pair) {
  const std::string bytes = Receive(pair.client);
  if (!faults_.empty() && bytes.find(faults_.front().first) != bytes.npos) {
    pair.faulty = true;
    pair.held = bytes;
    FinishFault(pair, faults_.front().second);
    faults_.pop_front();
    changed_.notify_all();
    return;
  }
  if (bytes.empty() || !SendAll(pair.server, bytes)) {
    CloseWithReset(pair.client);
    CloseWithReset(pair.server);
  }
}

void PostgresProxy::FinishFault(Pair& pair, Fault fault) {
  pair.held += ReceiveUntilQuiet(pair.client);
  if (fault == Fault::kNoAnswer) {
    SendAll(pair.server, pair.held);
    pollfd waits{pair.server, POLLIN, 0};
    poll(&waits, 1, 10'000);
    ReceiveUntilQuiet(pair.server);
  }
  CloseWithReset(pair.client);
  if (fault != Fault::kLate) CloseWithReset(pair.server);
}

void PostgresProxy::FromServer(Pair& pair) {
  const std::string bytes = Receive(pair.server);
  if (!bytes.empty() && SendAll(pair.client, bytes)) return;
  CloseWithReset(pair.client);
  CloseWithReset(pair.server);
}

}  // namespace mneme::test
