// A TCP proxy that breaks connections after a number of bytes, as networks do.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <string>
#include <thread>

namespace mneme::test {

class CuttingProxy {
 public:
  // `server`: 127.0.0.1:PORT.
  explicit CuttingProxy(const std::string& server);
  ~CuttingProxy();
  CuttingProxy(const CuttingProxy&) = delete;
  CuttingProxy& operator=(const CuttingProxy&) = delete;

  std::string address() const;  // 127.0.0.1:PORT
  // Closes every connection, once, when so many bytes more have come from the server: the client
  // gets exactly these. Negative: never.
  void CutAfter(int64_t bytes) { left_ = bytes; }
  // Connections that were closed so.
  int cuts() const { return cuts_; }

 private:
  void Loop();
  // False at the end of the connection.
  bool Pass(int from, int to, bool from_server);

  int server_port_ = 0;
  int listener_ = -1;
  int port_ = 0;
  std::atomic<int64_t> left_{-1};
  std::atomic<int> cuts_{0};
  std::atomic<bool> stop_{false};
  std::map<int, int> pairs_;  // sockets, of client and server
  std::thread thread_;
};

}  // namespace mneme::test
