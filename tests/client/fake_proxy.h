// An HTTP/2 proxy that answers every call itself, with one status, as nginx does for a body over
// its limit.
#pragma once

#include <optional>
#include <string>
#include <thread>

namespace mneme::client {

// Serves connections one after the other until its end.
class FakeProxy {
 public:
  explicit FakeProxy(int http_status) : FakeProxy(http_status, std::nullopt) {}
  // Says so with a page of text, and resets the stream with the HTTP/2 error: 0 is NO_ERROR.
  // Without a status it resets at once.
  FakeProxy(std::optional<int> http_status, std::optional<int> reset);
  ~FakeProxy();
  FakeProxy(const FakeProxy&) = delete;
  FakeProxy& operator=(const FakeProxy&) = delete;

  std::string address() const;  // 127.0.0.1:PORT

 private:
  void Serve() const;
  void ServeConnection(int socket) const;

  const std::optional<int> http_status_, reset_;
  int listener_ = -1;
  int port_ = 0;
  std::thread thread_;
};

}  // namespace mneme::client
