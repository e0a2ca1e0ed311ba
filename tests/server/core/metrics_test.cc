// The families' names, and that nothing in them breaks Prometheus' conventions.
#include "server/core/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include <set>

namespace mneme::server {
namespace {

TEST(Metrics, NamesAndHelp) {
  Metrics metrics;
  metrics.CountFinished("EOS");
  metrics.CountFailed("INTERNAL", "INTERNAL");
  metrics.CountRejected("QUEUE_FULL");
  metrics.CountCancelled("client");
  metrics.CountStoreError("get");
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
  EXPECT_THAT(text, ::testing::HasSubstr("mneme_time_to_first_token_seconds_bucket{kind=\"warm\""));
  if (const char* path = std::getenv("MNEME_METRICS_DUMP")) {  // for promtool check metrics
    FILE* file = fopen(path, "w");
    ASSERT_NE(file, nullptr);
    fputs(text.c_str(), file);
    fclose(file);
  }
}

}  // namespace
}  // namespace mneme::server
