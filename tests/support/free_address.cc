#include "tests/support/free_address.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace mneme::test {

std::string OwnLoopback() {
  const auto id = static_cast<uint32_t>(getpid());  // Linux gives at most 22 bits
  return absl::StrCat("127.", 128 + (id >> 16 & 63), ".", id >> 8 & 255, ".", id & 255);
}

std::string FreeAddress() {
  const std::string ip = OwnLoopback();
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  EXPECT_EQ(inet_pton(AF_INET, ip.c_str(), &address.sin_addr), 1);
  socklen_t size = sizeof(address);
  EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
  close(fd);
  return absl::StrCat(ip, ":", ntohs(address.sin_port));
}

int ListenOnLoopback(int* port) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  if (listener < 0 || bind(listener, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      listen(listener, 64) != 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    perror("listen");
    abort();
  }
  *port = ntohs(address.sin_port);
  return listener;
}

}  // namespace mneme::test
