// The families' names, and that nothing in them breaks Prometheus' conventions.
#include "server/core/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include <set>
#include <string>

#include "server/core/errors.h"

namespace mneme::server {
namespace {

TEST(Metrics, NamesAndHelp) {
  Metrics metrics;
  metrics.ForModel("tiny");
  metrics.Tier("host");
  std::set<std::string> names;
  for (const auto& family : metrics.registry()->Collect()) {
    EXPECT_TRUE(family.name.starts_with("mneme_")) << family.name;
    EXPECT_FALSE(family.help.empty()) << family.name;
    EXPECT_EQ(family.type == prometheus::MetricType::Counter, family.name.ends_with("_total"))
        << family.name;
    EXPECT_TRUE(names.insert(family.name).second) << family.name << " is there twice";
  }
  for (const char* name :
       {"mneme_requests_running", "mneme_state_bytes", "mneme_orphan_sequences",
        "mneme_input_tokens_total", "mneme_requests_failed_total", "mneme_evictions_total",
        "mneme_time_to_first_token_seconds", "mneme_commit_seconds", "mneme_batch_size",
        "mneme_state_restore_seconds", "mneme_build_info"}) {
    EXPECT_TRUE(names.contains(name)) << name;
  }
  const std::string text = prometheus::TextSerializer().Serialize(metrics.registry()->Collect());
  EXPECT_THAT(text, ::testing::HasSubstr("mneme_time_to_first_token_seconds_bucket{"));
  if (const char* path = std::getenv("MNEME_METRICS_DUMP")) {  // for promtool check metrics
    FILE* file = fopen(path, "w");
    ASSERT_NE(file, nullptr);
    fputs(text.c_str(), file);
    fclose(file);
  }
}

// So that rate() and increase() see the first error.
TEST(Metrics, WhatCanGoWrongIsThereFromTheStart) {
  Metrics metrics;
  const std::string text = prometheus::TextSerializer().Serialize(metrics.registry()->Collect());
  const auto at_zero = [&](const std::string& series) {
    return ::testing::Matches(::testing::HasSubstr("\n" + series + " 0\n"))(text);
  };
  for (const ReasonCode& known : kReasonCodes) {
    const std::string series = "mneme_requests_failed_total{code=\"" +
                               absl::StatusCodeToString(known.code) + "\",reason=\"" +
                               std::string(known.reason) + "\"}";
    EXPECT_TRUE(at_zero(series)) << series;
  }
  for (const char* series :
       {"mneme_admission_rejected_total{reason=\"QUEUE_FULL\"}",
        "mneme_admission_rejected_total{reason=\"DRAINING\"}",
        "mneme_cancelled_total{cause=\"client\"}", "mneme_cancelled_total{cause=\"slow_consumer\"}",
        "mneme_requests_finished_total{finish_reason=\"EOS\"}",
        "mneme_requests_finished_total{finish_reason=\"PREEMPTED\"}",
        "mneme_store_errors_total{op=\"commit\"}", "mneme_store_errors_total{op=\"probe\"}",
        "mneme_checksum_failures_total", "mneme_version_conflicts_total"}) {
    EXPECT_TRUE(at_zero(series)) << series;
  }
  EXPECT_FALSE(
      at_zero("mneme_requests_finished_total{finish_reason=\"FINISH_REASON_UNSPECIFIED\"}"));
}

TEST(Metrics, TokensAndLatenciesAreOfAModel) {
  Metrics metrics;
  ModelMetrics& small = metrics.ForModel("small");
  metrics.ForModel("large").output_tokens.Increment(5);
  small.output_tokens.Increment(2);
  EXPECT_EQ(&metrics.ForModel("small"), &small);
  const std::string text = prometheus::TextSerializer().Serialize(metrics.registry()->Collect());
  for (const char* line : {"mneme_output_tokens_total{model=\"small\"} 2",
                           "mneme_output_tokens_total{model=\"large\"} 5",
                           "mneme_input_tokens_total{model=\"small\"} 0",
                           "mneme_inter_token_latency_seconds_count{model=\"large\"} 0",
                           "mneme_request_duration_seconds_count{model=\"large\"} 0"}) {
    EXPECT_THAT(text, ::testing::HasSubstr(line));
  }
}

}  // namespace
}  // namespace mneme::server
