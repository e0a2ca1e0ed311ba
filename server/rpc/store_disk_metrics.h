// The disk that sessions are on: mneme_store_size_bytes, mneme_store_disk_free_bytes and
// mneme_store_disk_size_bytes. A store that is full refuses every turn; this is how it is seen
// before.
#pragma once

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <filesystem>
#include <vector>

namespace mneme::server {

// Looks when it is asked. Thread-safe. What cannot be read is left out.
class StoreDiskMetrics final : public prometheus::Collectable {
 public:
  // The store's directory.
  explicit StoreDiskMetrics(std::filesystem::path folder) : folder_(std::move(folder)) {}
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const std::filesystem::path folder_;
};

}  // namespace mneme::server
