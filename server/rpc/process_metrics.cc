#include "server/rpc/process_metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "absl/strings/str_split.h"
#include "server/rpc/sampled_metric.h"

namespace mneme::server {
namespace {

// Columns of /proc/self/stat after the program's name, which may hold anything; proc(5) counts it
// as the second.
std::vector<std::string> StatColumns() {
  std::ifstream file("/proc/self/stat");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return {};
  return absl::StrSplit(text.substr(name_end + 1), ' ', absl::SkipEmpty());
}

// Of the start of the machine, in seconds since 1970; 0 if unknown.
double BootTime() {
  std::ifstream file("/proc/stat");
  for (std::string word; file >> word;) {
    double seconds = 0;
    if (word == "btime" && file >> seconds) return seconds;
  }
  return 0;
}

int64_t OpenFiles() {
  std::error_code error;
  std::filesystem::directory_iterator files("/proc/self/fd", error);
  if (error) return 0;
  return std::distance(files, std::filesystem::directory_iterator()) - 1;  // the listing itself
}

}  // namespace

std::vector<prometheus::MetricFamily> ProcessMetrics::Collect() const {
  std::vector<prometheus::MetricFamily> families;
  const std::vector<std::string> columns = StatColumns();
  const auto column = [&](size_t number) { return std::stod(columns[number - 3]); };
  if (columns.size() > 22) {
    const auto ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
    families.push_back(SampledCounter("process_cpu_seconds_total",
                                      "User and system time of the process.",
                                      (column(14) + column(15)) / ticks));
    families.push_back(SampledGauge("process_start_time_seconds",
                                    "Start of the process, in seconds since 1970.",
                                    BootTime() + column(22) / ticks));
    families.push_back(SampledGauge("process_virtual_memory_bytes",
                                    "Address space of the process, mapped checkpoints included.",
                                    column(23)));
    families.push_back(SampledGauge("process_resident_memory_bytes",
                                    "Memory of the process, mapped checkpoints included.",
                                    column(24) * static_cast<double>(sysconf(_SC_PAGESIZE))));
  }
  families.push_back(SampledGauge("process_open_fds", "Open files and connections.",
                                  static_cast<double>(OpenFiles())));
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    families.push_back(SampledGauge("process_max_fds",
                                    "The most files and connections that may be open.",
                                    static_cast<double>(limit.rlim_cur)));
  }
  return families;
}

}  // namespace mneme::server
