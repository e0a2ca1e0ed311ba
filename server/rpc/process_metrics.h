// The process_* series that every Prometheus client library has: processor time, memory, files.
#pragma once

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <vector>

namespace mneme::server {

// Reads /proc/self when it is asked. Thread-safe. What cannot be read is left out.
class ProcessMetrics final : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override;
};

}  // namespace mneme::server
