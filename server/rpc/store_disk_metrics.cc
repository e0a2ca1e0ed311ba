#include "server/rpc/store_disk_metrics.h"

#include <cstdint>
#include <system_error>

#include "server/rpc/sampled_metric.h"

namespace mneme::server {
namespace {

namespace fs = std::filesystem;

double BytesOfFiles(const fs::path& folder) {
  double bytes = 0;
  std::error_code error;
  for (fs::recursive_directory_iterator file(folder, error), end; !error && file != end;
       file.increment(error)) {
    std::error_code gone;  // deleted meanwhile
    if (!file->is_regular_file(gone)) continue;
    const uintmax_t size = file->file_size(gone);
    if (!gone) bytes += static_cast<double>(size);
  }
  return bytes;
}

}  // namespace

std::vector<prometheus::MetricFamily> StoreDiskMetrics::Collect() const {
  std::vector<prometheus::MetricFamily> families;
  families.push_back(SampledGauge("mneme_store_size_bytes", "Bytes of the session store's files.",
                                  BytesOfFiles(folder_)));
  std::error_code error;
  const fs::space_info space = fs::space(folder_, error);
  if (error) return families;
  families.push_back(SampledGauge("mneme_store_disk_free_bytes",
                                  "Free bytes of the file system that holds the session store.",
                                  static_cast<double>(space.available)));
  families.push_back(SampledGauge("mneme_store_disk_size_bytes",
                                  "Size of the file system that holds the session store.",
                                  static_cast<double>(space.capacity)));
  return families;
}

}  // namespace mneme::server
