// Prometheus metrics of the server, `mneme_*`. Labels never carry session, key, user or request
// ids.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <memory>
#include <string>

namespace mneme::server {

class Metrics {
 public:
  Metrics();

  std::shared_ptr<prometheus::Registry> registry() { return registry_; }

 private:
  std::shared_ptr<prometheus::Registry> registry_;
};

}  // namespace mneme::server
