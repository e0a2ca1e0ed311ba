#include "client/names.h"

#include <gtest/gtest.h>

namespace mneme::client {
namespace {

TEST(Names, ShortSessionBelongsToTheTenant) {
  EXPECT_EQ(SessionName("default", "s").value(), "tenants/default/sessions/s");
  EXPECT_EQ(SessionName("acme", "long-name-7").value(), "tenants/acme/sessions/long-name-7");
}

TEST(Names, FullSessionStays) {
  EXPECT_EQ(SessionName("default", "tenants/acme/sessions/x").value(), "tenants/acme/sessions/x");
}

TEST(Names, BadSessionsAreRefused) {
  const std::string bad[] = {"",
                             "Upper",
                             "1st",
                             "-x",
                             "x-",
                             "a_b",
                             "a b",
                             "sessions/x",
                             "tenants/t/sessions",
                             "tenants/t/sessions/x/",
                             "tenants//sessions/x",
                             "tenants/t/sessions/X",
                             "tenants/t/sessions/x/snapshots/c",
                             std::string(64, 'a')};
  for (const std::string& name : bad) {
    EXPECT_EQ(SessionName("default", name).status().code(), absl::StatusCode::kInvalidArgument)
        << name;
  }
  EXPECT_TRUE(SessionName("default", std::string(63, 'a')).ok());
  EXPECT_FALSE(SessionName("Bad Tenant", "x").ok());
}

TEST(Names, Snapshots) {
  const std::string full = "tenants/default/sessions/s/snapshots/c1";
  EXPECT_EQ(SnapshotName("default", "s@c1").value(), full);
  EXPECT_EQ(SnapshotName("default", "s/snapshots/c1").value(), full);
  EXPECT_EQ(SnapshotName("other", full).value(), full);
  for (const char* bad : {"c1", "s@", "@c", "s@C", "s/snapshots/", "S/snapshots/c"}) {
    EXPECT_FALSE(SnapshotName("default", bad).ok()) << bad;
  }
  EXPECT_EQ(SessionOf(full), "tenants/default/sessions/s");
  EXPECT_EQ(IdOf(full), "c1");
}

TEST(Names, Models) {
  EXPECT_EQ(ModelName("SmolLM2-135M.Q4_1").value(), "models/SmolLM2-135M.Q4_1");
  EXPECT_EQ(ModelName("models/m").value(), "models/m");
  for (const char* bad : {"", "models/", "a/b", "models/a/b", "a b"}) {
    EXPECT_FALSE(ModelName(bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace mneme::client
