#include "tests/support/http_get.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

namespace mneme::test {

HttpReply HttpGet(const std::string& address, const std::string& path, const std::string& method,
                  const std::string& headers) {
  const size_t colon = address.rfind(':');
  sockaddr_in peer{};
  peer.sin_family = AF_INET;
  peer.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(colon + 1))));
  inet_pton(AF_INET, address.substr(0, colon).c_str(), &peer.sin_addr);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  std::string text;
  if (connect(fd, reinterpret_cast<sockaddr*>(&peer), sizeof(peer)) == 0) {
    // 1.0: nobody answers in chunks.
    const std::string request = method + " " + path + " HTTP/1.0\r\nHost: x\r\n" + headers + "\r\n";
    if (write(fd, request.data(), request.size()) == static_cast<ssize_t>(request.size())) {
      char buffer[4096];
      for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) text.append(buffer, n);
    }
  }
  close(fd);
  HttpReply reply;
  const size_t head_end = text.find("\r\n\r\n");
  if (head_end == std::string::npos || text.rfind("HTTP/1.", 0) != 0) return reply;
  reply.code = std::atoi(text.c_str() + 9);
  reply.head = text.substr(0, head_end);
  reply.body = text.substr(head_end + 4);
  return reply;
}

double SampleIn(const std::string& page, const std::string& series) {
  for (size_t at = page.find(series + " "); at != std::string::npos;
       at = page.find(series + " ", at + 1)) {
    if (at == 0 || page[at - 1] == '\n') return std::atof(page.c_str() + at + series.size() + 1);
  }
  return -1;
}

}  // namespace mneme::test
