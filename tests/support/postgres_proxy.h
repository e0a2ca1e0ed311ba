// A TCP proxy in front of a PostgreSQL server's socket, which hangs, resets connections, and loses
// exactly the bytes that a test wants lost.
//
// Thread-safe.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

namespace mneme::test {

class PostgresProxy {
 public:
  explicit PostgresProxy(const std::filesystem::path& socket);
  ~PostgresProxy();

  int port() const { return port_; }
  std::string Uri(const std::string& database, const std::string& user = "mneme") const;

  // Takes connections and bytes, and passes nothing on, until Forward().
  void Hang();
  void Forward();
  // Resets every connection.
  void Reset();

  // What happens to the statement that a client executes next, and to all after it.
  enum class Fault {
    kLost,      // they never arrive
    kNoAnswer,  // they arrive, and the server answers, but nobody hears it
    kLate,      // they arrive after DeliverLate(), when the client is long gone
  };
  // `statement`: the name of a prepared one, the text of any other. The client's connection is
  // reset then. Faults happen once each, in the order in which they were asked for.
  void FailAt(const std::string& statement, Fault fault);
  // Until all have happened. False after a minute.
  bool WaitForFaults();
  // Of kLate; returns when the server has answered or closed.
  void DeliverLate();

 private:
  struct Pair {
    int client = -1, server = -1;  // -1: closed
    bool faulty = false;
    std::string held;  // for the server
  };

  void Loop();
  void FromClient(Pair& pair);
  void FromServer(Pair& pair);
  void FinishFault(Pair& pair, Fault fault);

  const std::string socket_;
  int listener_ = -1;
  int port_ = 0;
  std::mutex mutex_;  // of all below; never held while poll waits
  std::condition_variable changed_;
  std::map<int, Pair> pairs_;  // by a number
  int next_ = 0;
  bool hang_ = false, stop_ = false;
  std::deque<std::pair<std::string, Fault>> faults_;  // bytes to look for
  std::thread thread_;
};

}  // namespace mneme::test
