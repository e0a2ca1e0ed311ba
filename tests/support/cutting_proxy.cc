#include "tests/support/cutting_proxy.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <string>
#include <vector>

#include "tests/support/free_address.h"

namespace mneme::test {
namespace {

sockaddr_in Loopback(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  return address;
}

void SendAtOnce(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

}  // namespace

CuttingProxy::CuttingProxy(const std::string& server)
    : server_port_(std::stoi(server.substr(server.rfind(':') + 1))) {
  listener_ = ListenOnLoopback(&port_);
  thread_ = std::thread([this] { Loop(); });
}

CuttingProxy::~CuttingProxy() {
  stop_ = true;
  thread_.join();
  for (const auto& [client, server] : pairs_) {
    close(client);
    close(server);
  }
  close(listener_);
}

std::string CuttingProxy::address() const { return "127.0.0.1:" + std::to_string(port_); }

bool CuttingProxy::Pass(int from, int to, bool from_server) {
  std::array<char, 1 << 16> bytes;
  const ssize_t received = recv(from, bytes.data(), bytes.size(), 0);
  if (received <= 0) return false;
  int64_t passed = received;
  if (from_server && left_ >= 0) {
    if (received >= left_) {
      passed = left_;
      ++cuts_;
      left_ = -1;
    } else {
      left_ -= received;
    }
  }
  for (int64_t sent = 0; sent < passed;) {
    const ssize_t n = send(to, bytes.data() + sent, passed - sent, MSG_NOSIGNAL);
    if (n <= 0) return false;
    sent += n;
  }
  return passed == received;
}

void CuttingProxy::Loop() {
  while (!stop_) {
    std::vector<pollfd> polled = {{listener_, POLLIN, 0}};
    for (const auto& [client, server] : pairs_) {
      polled.push_back({client, POLLIN, 0});
      polled.push_back({server, POLLIN, 0});
    }
    poll(polled.data(), polled.size(), 10);
    for (size_t i = 1; i < polled.size(); i += 2) {
      const int client = polled[i].fd, server = polled[i + 1].fd;
      const bool open = (polled[i].revents == 0 || Pass(client, server, false)) &&
                        (polled[i + 1].revents == 0 || Pass(server, client, true));
      if (open) continue;
      close(client);
      close(server);
      pairs_.erase(client);
    }
    if ((polled[0].revents & POLLIN) == 0) continue;
    const int client = accept(listener_, nullptr, nullptr);
    const int server = ::socket(AF_INET, SOCK_STREAM, 0);
    const sockaddr_in address = Loopback(server_port_);
    if (connect(server, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
      close(client);
      close(server);
      continue;
    }
    SendAtOnce(client);
    SendAtOnce(server);
    pairs_[client] = server;
  }
}

}  // namespace mneme::test
