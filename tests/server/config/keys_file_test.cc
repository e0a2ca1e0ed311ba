// Files of keys: what is read from them, and what is said of those that cannot be used.
#include "server/config/keys_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "absl/strings/escaping.h"
#include "absl/strings/str_replace.h"

namespace mneme::server {
namespace {

using testing::HasSubstr;

class KeysFileTest : public testing::Test {
 protected:
  KeysFileTest() {
    std::string pattern = testing::TempDir() + "mneme-keys-XXXXXX";
    folder_ = mkdtemp(pattern.data());
  }
  ~KeysFileTest() override { std::filesystem::remove_all(folder_); }

  absl::StatusOr<std::shared_ptr<const Keyring>> Read(const std::string& text) {
    const std::filesystem::path path = folder_ / "keys.yaml";
    std::ofstream(path) << text;
    return ReadKeysFile(path);
  }
  // HASH stands for the SHA-256 of "secret".
  absl::StatusOr<std::shared_ptr<const Keyring>> ReadWithHash(const std::string& text) {
    return Read(absl::StrReplaceAll(text, {{"HASH", absl::BytesToHexString(Sha256("secret"))}}));
  }

  std::filesystem::path folder_;
};

TEST_F(KeysFileTest, SaysWhoAKeyIs) {
  const auto keyring = ReadWithHash(
      "# who may call\n"
      "keys:\n"
      "  - id: acme-1\n"
      "    sha256: HASH\n"
      "    tenant: acme\n"
      "    role: reader\n"
      "    models: [small, large]\n"
      "    not_after: 2030-01-02T03:04:05Z\n"
      "certificates:\n"
      "  - {id: ci, spiffe: 'spiffe://example.org/ci', tenant: other, role: admin}\n");
  ASSERT_TRUE(keyring.ok()) << keyring.status();
  EXPECT_EQ((*keyring)->size(), 2u);
  const CallerPtr caller = (*keyring)->OfKey("secret");
  ASSERT_NE(caller, nullptr);
  EXPECT_EQ(caller->id, "acme-1");
  EXPECT_EQ(caller->tenant, "acme");
  EXPECT_EQ(caller->role, Role::kReader);
  EXPECT_EQ(caller->models, (std::set<std::string>{"models/large", "models/small"}));
  EXPECT_EQ(absl::FormatTime(caller->not_after, absl::UTCTimeZone()), "2030-01-02T03:04:05+00:00");
  EXPECT_EQ((*keyring)->OfKey("Secret"), nullptr);
  EXPECT_EQ((*keyring)->OfKey(""), nullptr);
  const CallerPtr ci = (*keyring)->OfCertificate("spiffe://example.org/ci");
  ASSERT_NE(ci, nullptr);
  EXPECT_EQ(ci->role, Role::kAdmin);
  EXPECT_TRUE(ci->MayUse("models/any"));
  EXPECT_EQ(ci->not_after, absl::InfiniteFuture());
  EXPECT_EQ((*keyring)->OfCertificate("example.org"), nullptr);
}

TEST_F(KeysFileTest, SaysWhatATenantMayUse) {
  const auto keyring = ReadWithHash(
      "keys:\n"
      "  - {id: a, sha256: HASH, tenant: acme, role: user}\n"
      "certificates:\n"
      "  - {id: b, dns: b.example.org, tenant: acme, role: user}\n"
      "  - {id: c, dns: c.example.org, tenant: other, role: user}\n"
      "tenants:\n"
      "  - {id: acme, running: 3, tokens_per_minute: 1000, sessions: 7, bytes: 2GiB, weight: 5}\n"
      "  - {id: gone, running: 0}\n");  // its last key was revoked
  ASSERT_TRUE(keyring.ok()) << keyring.status();
  const TenantLimits acme{.running = 3,
                          .tokens_per_minute = 1000,
                          .weight = 5,
                          .sessions = 7,
                          .bytes = int64_t{2} << 30};
  EXPECT_EQ((*keyring)->OfKey("secret")->limits, acme);
  EXPECT_EQ((*keyring)->OfCertificate("b.example.org")->limits, acme);
  EXPECT_EQ((*keyring)->OfCertificate("c.example.org")->limits, TenantLimits());
}

TEST_F(KeysFileTest, MayBeEmpty) {
  for (const char* text : {"", "# nobody yet\n", "keys:\n", "keys: []\ncertificates:\n"}) {
    const auto keyring = Read(text);
    ASSERT_TRUE(keyring.ok()) << keyring.status();
    EXPECT_EQ((*keyring)->size(), 0u);
  }
}

TEST_F(KeysFileTest, WhatCannotBeUsedIsSaidWithItsLine) {
  const std::string key = "keys:\n  - {id: a, sha256: HASH, tenant: t, role: user";
  const std::pair<std::string, const char*> cases[] = {
      {"[1, 2]", ":1: must be a mapping of keys, certificates"},
      {"keyz: []", ":1: unknown key \"keyz\""},
      {"keys: []\nkeys: []", ":2: keys is written twice"},
      {"keys: {a: b}", "keys must be a list"},
      {"keys: [a]", "must be a mapping of id, sha256"},
      {"keys: [", "keys.yaml:"},
      {"keys:\n  - {sha256: HASH, tenant: t, role: user}", ":2: id must match"},
      {"keys:\n  - {id: A, sha256: HASH, tenant: t, role: user}", "is \"A\""},
      {"keys:\n  - {id: a, sha256: 12, tenant: t, role: user}", "64 hexadecimal digits"},
      {"keys:\n  - {id: a, tenant: t, role: user}", "64 hexadecimal digits"},
      {"keys:\n  - {id: a, sha256: " + absl::BytesToHexString(Sha256("")) +
           ", tenant: t, role: user}",
       "sha256 of key \"a\" is that of no text"},
      {"keys:\n  - {id: a, sha256: HASH, role: user}", "tenant of \"a\" must match"},
      {"keys:\n  - {id: a, sha256: HASH, tenant: T/t, role: user}", "is \"T/t\""},
      {"keys:\n  - {id: a, sha256: HASH, tenant: t}", "role of \"a\" must be admin, user"},
      {"keys:\n  - {id: a, sha256: HASH, tenant: t, role: root}", "is \"root\""},
      {"keys:\n  - {id: a, id: b, sha256: HASH, tenant: t, role: user}", "id is written twice"},
      {key + ", key: secret}", "unknown key \"key\""},
      {key + ", models: []}", "models of \"a\" must be a list"},
      {key + ", models: all}", "models of \"a\" must be a list"},
      {key + ", models: [A]}", "must be names of --model"},
      {key + ", not_after: soon}", "not_after of \"a\" must be such as 2027-01-01"},
      {key + ", not_after: ''}", "not_after of \"a\""},
      {key + ", tenant: [t]}", "tenant is written twice"},
      {key + "}\n  - {id: a, sha256: " + std::string(64, '0') + ", tenant: t, role: user}",
       ":3: id \"a\" is given twice"},
      {key + "}\n  - {id: b, sha256: HASH, tenant: t, role: user}",
       ":3: key \"b\" has the sha256 of another one"},
      {"tenants:\n  - {id: T}", ":2: id of a tenant must match"},
      {"tenants:\n  - {id: t, session: 3}", ":2: unknown key \"session\""},
      {"tenants:\n  - {id: t, sessions: many}", ":2: sessions of tenant \"t\" must be a whole"},
      {"tenants:\n  - {id: t, bytes: 8GB}",
       "such as 1048576, 512KiB, 16MiB or 2GiB, 0 for no limit"},
      {"tenants:\n  - {id: t, bytes: -1}", ":2: bytes of tenant \"t\" must be a number of bytes"},
      {"tenants:\n  - {id: t, weight: 0}", "must be a whole number in [1, 1000], is \"0\""},
      {"tenants:\n  - {id: t, weight: 1.5}", ":2: weight of tenant \"t\""},
      {"tenants:\n  - {id: t, running: -1}", ":2: running of tenant \"t\" must be a whole number"},
      {"tenants:\n  - {id: t, tokens_per_minute: 1e6}", "0 for no limit, is \"1e6\""},
      {"tenants:\n  - {id: t}\n  - {id: t}", ":3: tenant \"t\" is given twice"},
      {"certificates: [{id: a, tenant: t, role: user}]", "must have either spiffe or dns"},
      {"certificates: [{id: a, spiffe: 'spiffe://x', dns: x, tenant: t, role: user}]",
       "must have either spiffe or dns"},
      {"certificates: [{id: a, spiffe: x, tenant: t, role: user}]", "must begin with spiffe://"},
      {"certificates: [{id: a, dns: '*.example.org', tenant: t, role: user}]", "one whole name"},
      {"certificates:\n  - {id: a, dns: x.org, tenant: t, role: user}\n"
       "  - {id: b, dns: X.org, tenant: t, role: user}",
       ":3: \"x.org\" is given twice"}};
  for (const auto& [text, expected] : cases) {
    const absl::Status status = ReadWithHash(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(expected)) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("auth.keys_file ")) << text;
  }
  EXPECT_THAT(std::string(ReadKeysFile("/nonexistent.yaml").status().message()),
              HasSubstr("cannot be read"));
  EXPECT_THAT(std::string(ReadKeysFile("/dev/zero").status().message()), HasSubstr("too large"));
}

}  // namespace
}  // namespace mneme::server
