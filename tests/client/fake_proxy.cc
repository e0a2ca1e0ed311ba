#include "tests/client/fake_proxy.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <stdexcept>
#include <string_view>

namespace mneme::client {
namespace {

// RFC 9113: a frame is 24 bits of length, a type, flags, and the stream it belongs to.
enum FrameType : uint8_t { kData = 0, kHeaders = 1, kReset = 3, kSettings = 4, kPing = 6 };
constexpr uint8_t kAck = 1, kEndStream = 1, kEndHeaders = 4;
constexpr size_t kPrefaceBytes = 24;  // "PRI * HTTP/2.0..." opens a client's connection

std::string Frame(FrameType type, uint8_t flags, uint32_t stream, std::string_view payload) {
  std::string frame;
  for (int shift : {16, 8, 0}) frame += static_cast<char>(payload.size() >> shift);
  frame += static_cast<char>(type);
  frame += static_cast<char>(flags);
  for (int shift : {24, 16, 8, 0}) frame += static_cast<char>(stream >> shift);
  return frame.append(payload);
}

// RFC 7541: a literal without indexing, named by entry 8 of the static table, which is :status.
std::string StatusHeader(int http_status) {
  const std::string digits = std::to_string(http_status);
  return std::string({'\x08', static_cast<char>(digits.size())}) + digits;
}

bool ReadExactly(int socket, size_t bytes, std::string* data) {
  data->resize(bytes);
  return bytes == 0 ||
         recv(socket, data->data(), bytes, MSG_WAITALL) == static_cast<ssize_t>(bytes);
}

void Write(int socket, const std::string& bytes) {
  send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL);  // a client that left is not our affair
}

}  // namespace

void FakeProxy::ServeConnection(int socket) const {
  std::string header, payload;
  if (!ReadExactly(socket, kPrefaceBytes, &header)) return;
  Write(socket, Frame(kSettings, 0, 0, ""));
  while (ReadExactly(socket, 9, &header)) {
    auto byte = [&](size_t i) { return uint32_t{static_cast<uint8_t>(header[i])}; };
    if (!ReadExactly(socket, byte(0) << 16 | byte(1) << 8 | byte(2), &payload)) return;
    const uint32_t stream = byte(5) << 24 | byte(6) << 16 | byte(7) << 8 | byte(8);
    const bool acknowledges = (byte(4) & kAck) != 0;
    if (byte(3) == kSettings && !acknowledges) Write(socket, Frame(kSettings, kAck, 0, ""));
    if (byte(3) == kPing && !acknowledges) Write(socket, Frame(kPing, kAck, 0, payload));
    if (byte(3) != kHeaders) continue;
    const uint8_t ends = reset_ ? 0 : kEndStream;
    if (http_status_) {
      Write(socket, Frame(kHeaders, kEndHeaders | ends, stream, StatusHeader(*http_status_)));
    }
    if (http_status_ && reset_) Write(socket, Frame(kData, kEndStream, stream, "<html>"));
    if (reset_)
      Write(socket, Frame(kReset, 0, stream, std::string(3, '\0') + static_cast<char>(*reset_)));
  }
}

FakeProxy::FakeProxy(std::optional<int> http_status, std::optional<int> reset)
    : http_status_(http_status), reset_(reset) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* any = reinterpret_cast<sockaddr*>(&address);
  listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener_ < 0 || bind(listener_, any, size) != 0 || listen(listener_, 8) != 0 ||
      getsockname(listener_, any, &size) != 0) {
    throw std::runtime_error("the fake proxy cannot listen");
  }
  port_ = ntohs(address.sin_port);
  thread_ = std::thread([this] { Serve(); });
}

FakeProxy::~FakeProxy() {
  shutdown(listener_, SHUT_RDWR);  // ends accept()
  thread_.join();
  close(listener_);
}

std::string FakeProxy::address() const { return "127.0.0.1:" + std::to_string(port_); }

void FakeProxy::Serve() const {
  for (int socket; (socket = accept(listener_, nullptr, nullptr)) >= 0;) {
    ServeConnection(socket);
    close(socket);
  }
}

}  // namespace mneme::client
