// An HTTP/2 proxy that answers every call itself, with one status, as nginx does for a body over
// its limit.
#pragma once

#include <string>
#include <thread>

namespace mneme::client {

// Serves connections one after the other until its end.
class FakeProxy {
 public:
  explicit FakeProxy(int http_status);
  ~FakeProxy();
  FakeProxy(const FakeProxy&) = delete;
  FakeProxy& operator=(const FakeProxy&) = delete;

  std::string address() const;  // 127.0.0.1:PORT

 private:
  void Serve(int http_status) const;

  int listener_ = -1;
  int port_ = 0;
  std::thread thread_;
};

}  // namespace mneme::client
