#include "client/server_address.h"

#include <gtest/gtest.h>

namespace mneme::client {
namespace {

TEST(TargetOf, TakesWhatPeopleWrite) {
  const std::pair<const char*, const char*> cases[] = {
      {"https://example.org:1/", "example.org:1"},
      {"https://[::1]", "[::1]:7447"},
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
    EXPECT_EQ(result->address, target);
    const std::string text = written;
    const std::string scheme = text.substr(0, text.find("://") + 1);
    EXPECT_EQ(result->tls, scheme == "https:"  ? std::optional(true)
                           : scheme == "http:" ? std::optional(false)
                                               : std::nullopt)
        << written;
  }
}

TEST(TargetOf, RefusesTheRestAndSaysWhatItExpects) {
  for (const char* written :
       {"", ":7447", "https://", "ftp://example.org", "https://example.org/v1",
        "http://example.org/v1", "host:", "host:0", "host:70000", "host:x"}) {
    const absl::Status status = TargetOf(written).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << written;
    EXPECT_NE(status.message().find("expected HOST:PORT"), absl::string_view::npos) << status;
  }
}

TEST(HostAndPortOf, IsWhereACheckOfTheConnectionGoes) {
  const std::tuple<const char*, const char*, const char*> cases[] = {
      {"127.0.0.1:7447", "127.0.0.1", "7447"},
      {"[::1]:9", "::1", "9"},
      {"dns:///example.org:1", "example.org", "1"},
      {"dns:example.org:1", "example.org", "1"}};
  for (const auto& [target, host, port] : cases) {
    const auto found = HostAndPortOf(target);
    ASSERT_TRUE(found.has_value()) << target;
    EXPECT_EQ(found->host, host);
    EXPECT_EQ(found->port, port);
  }
  for (const char* target : {"unix:/run/mneme.sock", "ipv4:127.0.0.1:1,127.0.0.1:2", "", "host",
                             "dns://8.8.8.8/example.org:1", "xds:///mneme"}) {
    EXPECT_FALSE(HostAndPortOf(target).has_value()) << target;
  }
}

}  // namespace
}  // namespace mneme::client
