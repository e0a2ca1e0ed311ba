// A real PostgreSQL 15 of Debian's, in a temporary folder, on a Unix socket: for tests that stop
// and kill it. PostgreSQL refuses to run as root; started by root it runs as the user postgres or
// nobody.
//
// One thread at a time; the server goes down when the one that started it ends.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tests/support/child_process.h"

namespace mneme::test {

class PostgresServer {
 public:
  struct Options {
    std::vector<std::pair<std::string, std::string>> settings;  // of postgresql.conf
    // Below the server's folder there is `small`, a file system of its own with so much room.
    int small_disk_mb = 0;
  };
  // A new one, with fsync. UNAVAILABLE says what to install.
  static absl::StatusOr<std::unique_ptr<PostgresServer>> Start(const Options& options);
  static absl::StatusOr<std::unique_ptr<PostgresServer>> Start() { return Start(Options()); }
  // A standby of `primary`, by pg_basebackup, that streams.
  static absl::StatusOr<std::unique_ptr<PostgresServer>> StartStandby(PostgresServer& primary,
                                                                      const std::string& name);
  // The one that a test program shares; it ends with the program. Aborts if it cannot be started.
  static PostgresServer& Shared();
  ~PostgresServer();

  // Of a database that is made now, empty.
  std::string NewDatabase();
  std::string Uri(const std::string& database) const;
  // Of its socket.
  std::filesystem::path socket() const { return folder_.path() / ".s.PGSQL.5432"; }
  std::filesystem::path small_disk() const { return folder_.path() / "small"; }
  const std::filesystem::path& folder() const { return folder_.path(); }

  // As superuser; the first column of the first row, or "".
  absl::StatusOr<std::string> Query(const std::string& sql,
                                    const std::string& database = "postgres");

  // SIGKILL to every process of it at once, as if the machine's power were gone but for the disk.
  void Kill();
  // An immediate or a fast shutdown, by SIGQUIT or SIGINT.
  void Stop(int signal);
  // After either; waits until it takes connections. `standby`: only reads.
  absl::Status Run();

 private:
  PostgresServer() = default;

  // With the rights that PostgreSQL wants.
  std::vector<std::string> Command(std::vector<std::string> command) const;
  absl::Status Must(std::vector<std::string> command, const std::string& name) const;
  absl::Status TakeFolder() const;

  TemporaryFolder folder_;
  int small_disk_mb_ = 0;
  int databases_ = 0;
  std::unique_ptr<ChildProcess> process_;
};

}  // namespace mneme::test
