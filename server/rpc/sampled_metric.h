// Metric families with one sample that is read when a scrape asks, for implementations of
// prometheus::Collectable.
#pragma once

#include <prometheus/metric_family.h>

#include <string>
#include <utility>

namespace mneme::server {

inline prometheus::MetricFamily SampledGauge(std::string name, std::string help, double value) {
  prometheus::MetricFamily family{
      std::move(name), std::move(help), prometheus::MetricType::Gauge, {}};
  family.metric.emplace_back().gauge.value = value;
  return family;
}

inline prometheus::MetricFamily SampledCounter(std::string name, std::string help, double value) {
  prometheus::MetricFamily family{
      std::move(name), std::move(help), prometheus::MetricType::Counter, {}};
  family.metric.emplace_back().counter.value = value;
  return family;
}

}  // namespace mneme::server
