// What is shown of a connection URI never holds a password, also if libpq cannot read it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "memstore/postgres_durability.h"
#include "memstore/postgres_target.h"
#include "memstore/state_store.h"

namespace mneme::memstore {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(PostgresUriTest, IsKnownByItsScheme) {
  EXPECT_TRUE(IsPostgresUri("postgresql://host/db"));
  EXPECT_TRUE(IsPostgresUri("postgres://"));
  EXPECT_FALSE(IsPostgresUri("/var/lib/postgresql"));
  EXPECT_FALSE(IsPostgresUri(""));
}

TEST(PostgresUriTest, PasswordsAreMasked) {
  const std::pair<const char*, const char*> cases[] = {
      {"postgresql://ada@db/mneme?sslmode=verify-full",
       "postgresql://ada@db/mneme?sslmode=verify-full"},
      {"postgresql://ada:s3cret@db:5432/mneme", "postgresql://ada:****@db:5432/mneme"},
      {"postgres://ada:s3cret@a:1,b:2/m", "postgres://ada:****@a:1,b:2/m"},
      {"postgresql://db:5432/mneme", "postgresql://db:5432/mneme"},
      {"postgresql://a:5432,b:5433/mneme", "postgresql://a:5432,b:5433/mneme"},
      {"postgresql://db/m?user=ada&password=s3cret&sslmode=require",
       "postgresql://db/m?user=ada&password=****&sslmode=require"},
      {"postgresql://db/m?sslpassword=s3cret", "postgresql://db/m?sslpassword=****"},
      {"postgresql://db/m?PassWord=s3cret", "postgresql://db/m?PassWord=****"},
      {"postgresql://ada:s3cret@db/m?user=a@b", "postgresql://ada:****@db/m?user=a@b"},
      // Characters that ought to be escaped.
      {"postgresql://ada:s3/cret@db/m", "postgresql://ada:****@db/m"},
      {"postgresql://ada:s3@cret@db/m", "postgresql://ada:****@db/m"},
      {"postgresql://ada:s3?cret@db/m", "postgresql://ada:****@db/m"},
      {"postgresql://ada:s3:cret@db", "postgresql://ada:****@db"},
      {"postgresql://ada:@db", "postgresql://ada:****@db"},
      {"postgresql://", "postgresql://"},
      {"/data/a:b@c", "/data/a:b@c"},
  };
  for (const auto& [uri, shown] : cases) EXPECT_EQ(MaskPostgresUri(uri), shown);
}

TEST(PostgresUriTest, WhatLibpqCannotReadIsRefusedWithoutThePassword) {
  for (const char* uri :
       {"postgresql://ada:s3cret@db:5432:1/m?x", "postgresql://ada:s3cret@[::1/m",
        "postgresql://ada:s3cret@db/m?sslmod=require", "postgresql://ada:%zzs3cret@db/m",
        "postgresql://db/m?password=s3cret&nonsense=1", "ada:s3cret@db"}) {
    const auto target = PgTarget::Parse(uri, absl::Seconds(1));
    EXPECT_EQ(target.status().code(), absl::StatusCode::kInvalidArgument) << uri;
    if (IsPostgresUri(uri)) {
      EXPECT_THAT(std::string(target.status().message()), Not(HasSubstr("s3cret")));
    }
  }
  // Without one libpq may say what is wrong.
  const auto target = PgTarget::Parse("postgresql://db/m?sslmod=require", absl::Seconds(1));
  EXPECT_THAT(std::string(target.status().message()), HasSubstr("sslmod"));
}

TEST(PostgresUriTest, DefaultsAreForServersAndTheUriWins) {
  auto target = PgTarget::Parse("postgresql://ada:s3cret@db/m", absl::Seconds(7));
  ASSERT_TRUE(target.ok()) << target.status();
  EXPECT_EQ(target->parameters().at("target_session_attrs"), "read-write");
  EXPECT_EQ(target->parameters().at("tcp_user_timeout"), "7000");
  EXPECT_EQ(target->parameters().at("application_name"), "mneme");
  EXPECT_EQ(target->place(), "host db, database m");
  target = PgTarget::Parse("postgresql://db/m?target_session_attrs=primary&connect_timeout=9",
                           absl::Seconds(7));
  ASSERT_TRUE(target.ok()) << target.status();
  EXPECT_EQ(target->parameters().at("target_session_attrs"), "primary");
  EXPECT_EQ(target->parameters().at("connect_timeout"), "9");
}

TEST(PostgresDurabilityTest, CountsTheStandbysThatACommitWaitsFor) {
  const std::pair<const char*, int> cases[] = {
      {"", 0},         {"  ", 0},          {"*", 1},           {"s1, s2", 1},
      {"2 (a, b)", 2}, {"FIRST 3 (*)", 3}, {"first 1 (a)", 1}, {"ANY 2 (a,b,c)", 2},
      {"2", 1},        {"any2 (a, b)", 2}, {"\"ANY\"", 1},
  };
  for (const auto& [names, count] : cases) EXPECT_EQ(SynchronousStandbys(names), count) << names;
}

}  // namespace
}  // namespace mneme::memstore
