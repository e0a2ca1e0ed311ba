// What the control groups of this process, version 1 or 2, leave it of the machine. Containers and
// services are limited by them; sysconf and friends do not know.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

namespace mneme::engine {

// Of the group and of all groups above it that can be seen.
struct CgroupLimits {
  double processors = std::numeric_limits<double>::infinity();  // seconds of CPU a second
  int64_t memory_bytes = std::numeric_limits<int64_t>::max();

  // The most threads, up to `available`, that are never stopped for having used up
  // the time of all: a thread that is stopped makes the others wait for it, op after op. At
  // least 1.
  int Threads(int available) const;
};

// `root` stands before /proc and what it names; tests put a machine of their own there. What cannot
// be read limits nothing.
CgroupLimits ReadCgroupLimits(const std::string& root = "");

}  // namespace mneme::engine
