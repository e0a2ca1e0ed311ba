#include "client/server_address.h"

#include <gtest/gtest.h>

namespace mneme::client {
namespace {

TEST(TargetOf, TakesWhatPeopleWrite) {
  const std::pair<const char*, const char*> cases[] = {
      {"127.0.0.1:7447", "127.0.0.1:7447"},
      {"localhost", "localhost:7447"},
      {"http://localhost:80/", "localhost:80"},
      {"http://example.org", "example.org:7447"},
      {"[::1]:9", "[::1]:9"},
      {"[::1]", "[::1]:7447"},
      {"::1", "[::1]:7447"},
      {"dns:///example.org:1", "dns:///example.org:1"},
      {"unix:/run/mneme.sock", "unix:/run/mneme.sock"}};
  for (const auto& [written, target] : cases) {
    auto result = TargetOf(written);
    ASSERT_TRUE(result.ok()) << written << ": " << result.status();
    EXPECT_EQ(*result, target);
  }
}

TEST(TargetOf, RefusesTheRestAndSaysWhatItExpects) {
  for (const char* written : {"", ":7447", "https://example.org", "ftp://example.org",
                              "http://example.org/v1", "host:", "host:0", "host:70000", "host:x"}) {
    const absl::Status status = TargetOf(written).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << written;
    EXPECT_NE(status.message().find("expected HOST:PORT"), absl::string_view::npos) << status;
  }
  EXPECT_NE(TargetOf("https://example.org").status().message().find("TLS"),
            absl::string_view::npos);
}

}  // namespace
}  // namespace mneme::client
