#include "tests/support/postgres_server.h"

#include <libpq-fe.h>
#include <pwd.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace mneme::test {
namespace {

constexpr char kPrograms[] = "/usr/lib/postgresql/15/bin/";

const passwd* Unprivileged() {
  const passwd* user = getpwnam("postgres");
  return user != nullptr ? user : getpwnam("nobody");
}

// As /proc tells it; a blank if there is none.
char StateOf(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  std::string stat;
  if (!std::getline(file, stat)) return ' ';
  return stat[stat.rfind(')') + 2];
}

std::vector<pid_t> ChildrenOf(pid_t parent) {
  std::vector<pid_t> children;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    std::ifstream file(entry.path() / "stat");
    std::string stat;
    if (!std::getline(file, stat)) continue;
    // "pid (name, which may hold anything) state ppid ..."
    std::istringstream rest(stat.substr(stat.rfind(')') + 1));
    std::string state;
    pid_t ppid = 0;
    if (rest >> state >> ppid && ppid == parent) children.push_back(std::stoi(stat));
  }
  return children;
}

}  // namespace

std::vector<std::string> PostgresServer::Command(std::vector<std::string> command) const {
  // It goes down with the test program, however that ends, and its folder is where it works.
  std::vector<std::string> out = {"/usr/bin/setpriv", "--pdeathsig", "QUIT"};
  if (geteuid() == 0) {
    const passwd* user = Unprivileged();
    out.insert(out.end(), {absl::StrCat("--reuid=", user->pw_uid),
                           absl::StrCat("--regid=", user->pw_gid), "--clear-groups"});
  }
  out.insert(out.end(), {"/usr/bin/env", "-C", folder_.path().string()});
  command[0] = kPrograms + command[0];
  out.insert(out.end(), command.begin(), command.end());
  return out;
}

absl::Status PostgresServer::Must(std::vector<std::string> command, const std::string& name) const {
  const ChildProcess::Result result = ChildProcess::Run(
      {.command = Command(std::move(command)), .folder = folder_.path(), .name = name});
  if (result.code == 0) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat(name, " failed with code ", result.code, "\n", result.out, result.err));
}

absl::Status PostgresServer::TakeFolder() const {
  if (!std::filesystem::exists(std::string(kPrograms) + "postgres")) {
    return absl::UnavailableError(
        absl::StrCat("there is no ", kPrograms, "postgres: run deploy/install_packages.sh test"));
  }
  if (geteuid() != 0) return absl::OkStatus();
  const passwd* user = Unprivileged();
  if (user == nullptr || chown(folder_.path().c_str(), user->pw_uid, user->pw_gid) != 0) {
    return absl::UnavailableError("no user postgres or nobody to run PostgreSQL as");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<PostgresServer>> PostgresServer::Start(const Options& options) {
  std::unique_ptr<PostgresServer> server(new PostgresServer());
  server->small_disk_mb_ = options.small_disk_mb;
  if (absl::Status status = server->TakeFolder(); !status.ok()) return status;
  // Its own files need no sync: what is tested begins when it runs.
  if (absl::Status status =
          server->Must({"initdb", "-D", "data", "-U", "mneme", "-A", "trust", "-E", "UTF8",
                        "--locale=C", "--no-sync", "--no-instructions"},
                       "initdb");
      !status.ok()) {
    return status;
  }
  std::ofstream conf(server->folder() / "data/postgresql.conf", std::ios::app);
  conf << "listen_addresses = ''\nunix_socket_directories = '" << server->folder().string()
       << "'\nshared_buffers = 32MB\nmax_connections = 60\nlog_checkpoints = off\n";
  for (const auto& [name, value] : options.settings) conf << name << " = '" << value << "'\n";
  conf.close();
  if (absl::Status status = server->Run(); !status.ok()) return status;
  return server;
}

absl::StatusOr<std::unique_ptr<PostgresServer>> PostgresServer::StartStandby(
    PostgresServer& primary, const std::string& name) {
  std::unique_ptr<PostgresServer> server(new PostgresServer());
  if (absl::Status status = server->TakeFolder(); !status.ok()) return status;
  if (absl::Status status = server->Must(
          {"pg_basebackup", "-D", "data", "-X", "stream", "-c", "fast", "-R", "--no-sync", "-d",
           absl::StrCat(primary.Uri("postgres"), "&application_name=", name)},
          "pg_basebackup");
      !status.ok()) {
    return status;
  }
  std::ofstream conf(server->folder() / "data/postgresql.conf", std::ios::app);
  conf << "unix_socket_directories = '" << server->folder().string() << "'\n";
  conf.close();
  if (absl::Status status = server->Run(); !status.ok()) return status;
  return server;
}

PostgresServer& PostgresServer::Shared() {
  static const std::unique_ptr<PostgresServer> server = [] {
    auto started = Start();
    if (!started.ok()) {
      fprintf(stderr, "%s\n", std::string(started.status().message()).c_str());
      abort();
    }
    return *std::move(started);
  }();
  return *server;
}

PostgresServer::~PostgresServer() {
  if (process_) Kill();
}

absl::Status PostgresServer::Run() {
  std::vector<std::string> command = Command({"postgres", "-D", "data"});
  if (small_disk_mb_ > 0) {
    // Mounted for the server alone, so that nothing is left of it afterwards. Root may; everybody
    // else in a user namespace, as root of which only mount runs.
    std::filesystem::create_directories(small_disk());
    std::vector<std::string> mounted = {"/usr/bin/unshare", "--mount"};
    if (geteuid() != 0)
      mounted.insert(mounted.end(), {"--user", "--map-current-user", "--keep-caps"});
    const uid_t uid = geteuid() == 0 ? Unprivileged()->pw_uid : geteuid();
    const gid_t gid = geteuid() == 0 ? Unprivileged()->pw_gid : getegid();
    mounted.insert(mounted.end(), {"/bin/sh", "-c",
                                   absl::StrCat("mount -t tmpfs -o mode=0700,size=", small_disk_mb_,
                                                "m,uid=", uid, ",gid=", gid, " none '",
                                                small_disk().string(), "' && exec \"$@\""),
                                   "sh"});
    command.insert(command.begin(), mounted.begin(), mounted.end());
  }
  auto started = ChildProcess::Start(
      {.command = std::move(command), .folder = folder_.path(), .name = "postgres"});
  if (!started.ok()) return started.status();
  process_ = *std::move(started);
  absl::Status status;
  for (const absl::Time give_up = absl::Now() + absl::Seconds(60); absl::Now() < give_up;) {
    if (process_->Ended()) break;
    status = Query("SELECT 1").status();
    if (status.ok()) return status;
    absl::SleepFor(absl::Milliseconds(10));
  }
  return absl::UnavailableError(
      absl::StrCat("PostgreSQL does not start: ", status.message(), "\n", process_->Err()));
}

void PostgresServer::Kill() {
  const pid_t pid = process_->pid();
  process_->Signal(SIGSTOP);  // so that it starts no further ones
  const std::vector<pid_t> children = ChildrenOf(pid);
  for (const pid_t child : children) kill(child, SIGKILL);
  process_->Signal(SIGKILL);
  process_->Wait();
  process_.reset();
  // One that still ends holds the shared memory, and the next server would not start.
  for (const pid_t child : children) {
    while (StateOf(child) != ' ' && StateOf(child) != 'Z') absl::SleepFor(absl::Milliseconds(1));
  }
}

void PostgresServer::Stop(int signal) {
  process_->Signal(signal);
  process_->Wait(absl::Seconds(30));
  process_.reset();
}

std::string PostgresServer::Uri(const std::string& database) const {
  return absl::StrCat("postgresql:///", database, "?host=", folder_.path().string(), "&user=mneme");
}

std::string PostgresServer::NewDatabase() {
  const std::string name = absl::StrCat("test", ++databases_);
  const absl::Status status = Query(absl::StrCat("CREATE DATABASE ", name)).status();
  if (!status.ok()) {
    fprintf(stderr, "%s\n", std::string(status.message()).c_str());
    abort();
  }
  return Uri(name);
}

absl::StatusOr<std::string> PostgresServer::Query(const std::string& sql,
                                                  const std::string& database) {
  const std::unique_ptr<PGconn, void (*)(PGconn*)> connection(PQconnectdb(Uri(database).c_str()),
                                                              PQfinish);
  if (PQstatus(connection.get()) != CONNECTION_OK) {
    return absl::UnavailableError(PQerrorMessage(connection.get()));
  }
  const std::unique_ptr<PGresult, void (*)(PGresult*)> result(PQexec(connection.get(), sql.c_str()),
                                                              PQclear);
  const ExecStatusType status = PQresultStatus(result.get());
  if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK) {
    return absl::UnknownError(PQerrorMessage(connection.get()));
  }
  return PQntuples(result.get()) == 0 ? std::string() : PQgetvalue(result.get(), 0, 0);
}

}  // namespace mneme::test
