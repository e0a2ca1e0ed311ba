// A real HAProxy in front of real servers, by the recipe deploy/haproxy.cfg.
#pragma once

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "tests/support/child_process.h"
#include "tests/support/server_process.h"

namespace mneme::test {

inline std::string PortOf(const std::string& address) {
  return address.substr(address.rfind(':') + 1);
}

// Listens on `address`. The recipe has two servers; further ones are added to it. `source`: the
// project's folder.
inline absl::StatusOr<std::unique_ptr<ChildProcess>> StartHaproxy(
    const std::filesystem::path& source, const std::string& address,
    const std::vector<const ServerProcess*>& servers, const std::filesystem::path& folder) {
  static constexpr char kProgram[] = "/usr/sbin/haproxy";
  if (!std::filesystem::exists(kProgram)) {
    return absl::NotFoundError(
        absl::StrCat(kProgram, " is missing: run deploy/install_packages.sh test"));
  }
  const std::filesystem::path config = folder / "haproxy.cfg";
  std::ofstream out(config);
  out << ReadFile(source / "deploy/haproxy.cfg");
  for (size_t i = 2; i < servers.size(); ++i) {
    out << "    server further" << i << " " << servers[i]->address()
        << " check check-proto h1 port " << PortOf(servers[i]->metrics_address()) << "\n";
  }
  out.close();
  return ChildProcess::Start({.command = {kProgram, "-db", "-f", config},
                              .environment = {{"BIND", address},
                                              {"SERVER_A", servers[0]->address()},
                                              {"PROBES_A", PortOf(servers[0]->metrics_address())},
                                              {"SERVER_B", servers[1]->address()},
                                              {"PROBES_B", PortOf(servers[1]->metrics_address())}},
                              .folder = folder,
                              .name = "haproxy"});
}

}  // namespace mneme::test
