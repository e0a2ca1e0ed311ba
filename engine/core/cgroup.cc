#include "engine/core/cgroup.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace mneme::engine {
namespace {

// A line of /proc/self/cgroup: "4:cpu,cpuacct:/docker/1f3a", or "0::/user.slice" for version 2.
struct Membership {
  std::vector<std::string> controllers;  // {""} for version 2
  std::string group;
};

// A line of /proc/self/mountinfo: "31 24 0:27 /docker/1f3a /sys/fs/cgroup/cpu rw shared:9 - cgroup
// cgroup rw,cpu,cpuacct".
struct Mount {
  std::string group;   // the one that is seen at `folder`
  std::string folder;  // with the root before it
  std::vector<std::string> controllers;
};

std::vector<std::string> Lines(const std::string& path) {
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(std::move(line));
  return lines;
}

std::vector<Membership> Memberships(const std::string& root) {
  std::vector<Membership> memberships;
  for (const std::string& line : Lines(root + "/proc/self/cgroup")) {
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() == 3) memberships.push_back({absl::StrSplit(parts[1], ','), parts[2]});
  }
  return memberships;
}

std::vector<Mount> Mounts(const std::string& root) {
  std::vector<Mount> mounts;
  for (const std::string& line : Lines(root + "/proc/self/mountinfo")) {
    const std::vector<std::string> halves = absl::StrSplit(line, absl::MaxSplits(" - ", 1));
    if (halves.size() != 2) continue;
    const std::vector<std::string> where = absl::StrSplit(halves[0], ' ');
    const std::vector<std::string> what = absl::StrSplit(halves[1], ' ');
    if (where.size() < 5 || what.size() < 3) continue;
    if (what[0] == "cgroup2") {
      mounts.push_back({where[3], root + where[4], {""}});
    } else if (what[0] == "cgroup") {
      mounts.push_back({where[3], root + where[4], absl::StrSplit(what[2], ',')});
    }
  }
  return mounts;
}

// "/" if /proc says nothing of it, as in some sandboxes.
std::string GroupOf(const std::string& controller, const std::vector<Membership>& memberships) {
  for (const Membership& membership : memberships) {
    const auto& its = membership.controllers;
    if (std::find(its.begin(), its.end(), controller) != its.end()) return membership.group;
  }
  return "/";
}

// From the mounted group down to the process's own, as far as they are seen.
std::vector<std::string> Folders(const Mount& mount, const std::string& group) {
  std::vector<std::string> folders{mount.folder};
  // A mount of another group, as where the namespace of cgroups is the host's, shows the process's
  // own at its top.
  const std::string prefix = mount.group == "/" ? "" : mount.group;
  if (!absl::StartsWith(group, prefix)) return folders;
  std::string folder = mount.folder;
  for (absl::string_view name :
       absl::StrSplit(group.substr(prefix.size()), '/', absl::SkipEmpty())) {
    absl::StrAppend(&folder, "/", name);
    if (!std::filesystem::is_directory(folder)) break;
    folders.push_back(folder);
  }
  return folders;
}

// "150000 100000": so much time in each period, in microseconds; "max" or -1 is no limit.
void LimitProcessors(std::istream&& quota, std::istream&& period, CgroupLimits& limits) {
  double quota_us = 0;
  double period_us = 0;
  if (quota >> quota_us && quota_us > 0 && period >> period_us && period_us > 0) {
    limits.processors = std::min(limits.processors, quota_us / period_us);
  }
}

void LimitMemory(const std::string& path, CgroupLimits& limits) {
  std::ifstream file(path);
  int64_t bytes = 0;
  if (file >> bytes && bytes > 0) limits.memory_bytes = std::min(limits.memory_bytes, bytes);
}

}  // namespace

int CgroupLimits::Threads(int available) const {
  return std::max(1, processors < available ? static_cast<int>(processors) : available);
}

CgroupLimits ReadCgroupLimits(const std::string& root) {
  CgroupLimits limits;
  const std::vector<Membership> memberships = Memberships(root);
  for (const Mount& mount : Mounts(root)) {
    for (const std::string& controller : mount.controllers) {
      for (const std::string& folder : Folders(mount, GroupOf(controller, memberships))) {
        if (controller.empty()) {
          std::string quota;
          std::string period;
          std::ifstream(folder + "/cpu.max") >> quota >> period;
          LimitProcessors(std::istringstream(quota), std::istringstream(period), limits);
          LimitMemory(folder + "/memory.max", limits);
        } else if (controller == "cpu") {
          LimitProcessors(std::ifstream(folder + "/cpu.cfs_quota_us"),
                          std::ifstream(folder + "/cpu.cfs_period_us"), limits);
        } else if (controller == "memory") {
          LimitMemory(folder + "/memory.limit_in_bytes", limits);
        }
      }
    }
  }
  return limits;
}

}  // namespace mneme::engine
