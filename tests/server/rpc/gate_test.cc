// Who is let in, as whom: keys, client certificates, roles, reloads. What follows from a tenant is
// in tenants_test.cc.
#include "server/rpc/gate.h"

#include <gmock/gmock.h>
#include <grpcpp/security/credentials.h>

#include "tests/server/rpc/keys_testing.h"
#include "tests/server/rpc/rpc_test_base.h"
#include "tests/support/certificates.h"
#include "tests/support/child_process.h"
#include "tests/support/http_get.h"

namespace mneme::server {
namespace {

using test::CertificateFiles;
using test::ReadFile;
using testing::HasSubstr;

class GateTest : public RpcTest {
 protected:
  GateTest() {
    core_.get_session = [](CallContext& context, const v1::GetSessionRequest&) {
      v1::Session session;
      session.set_name(absl::StrCat(context.tenant, " by ", context.caller->id));
      return session;
    };
  }

  void Keys(const std::string& text) {
    config_.auth.keys_file = WriteKeys(folder_.path() / "keys.yaml", text);
  }
  // GetSession with this header; "TENANT by KEY", or the code and the reason.
  std::string Ask(const std::string& authorization, const std::string& name = "s",
                  std::shared_ptr<grpc::Channel> channel = nullptr) {
    grpc::ClientContext context;
    if (!authorization.empty()) context.AddMetadata("authorization", authorization);
    v1::GetSessionRequest request;
    request.set_name(name);
    v1::Session session;
    const auto stub = v1::Sessions::NewStub(channel ? channel : channel_);
    last_ = stub->GetSession(&context, request, &session);
    return last_.ok() ? session.name() : ReasonIn(last_);
  }
  std::string AskAs(const std::string& id, const std::string& name = "s") {
    return Ask("Bearer " + KeyOf(id), name);
  }

  test::TemporaryFolder folder_;
  grpc::Status last_;
};

TEST_F(GateTest, AKeyIsItsTenant) {
  Keys("keys:\n" + KeyEntry("acme-1", "acme", "user") + KeyEntry("acme-2", "acme", "user") +
       KeyEntry("other-1", "other", "reader"));
  StartServer();
  EXPECT_EQ(AskAs("acme-1"), "acme by acme-1");
  EXPECT_EQ(AskAs("acme-2"), "acme by acme-2");  // both, so that one can follow the other
  EXPECT_EQ(AskAs("other-1"), "other by other-1");
  EXPECT_EQ(Ask("bearer " + KeyOf("acme-1")), "acme by acme-1");
}

TEST_F(GateTest, EveryBadKeyIsRefusedAlike) {
  Keys("keys:\n" + KeyEntry("acme-1", "acme", "user") +
       KeyEntry("old", "acme", "user", "not_after: 2020-01-01"));
  StartServer();
  std::set<std::string> texts;
  for (const std::string& header :
       {std::string(), std::string("Bearer"), std::string("Bearer "), std::string("Basic YTpi"),
        "Bearer " + KeyOf("nobody"), "Bearer " + KeyOf("old"), "Bearer " + KeyOf("acme-1") + "x",
        "Bearer  " + KeyOf("acme-1"), KeyOf("acme-1"), "Bearer " + std::string(4000, 'x')}) {
    EXPECT_EQ(Ask(header), "CREDENTIALS_INVALID") << header.substr(0, 40);
    EXPECT_EQ(last_.error_code(), grpc::StatusCode::UNAUTHENTICATED);
    texts.insert(last_.error_message() + last_.error_details());
  }
  EXPECT_EQ(texts.size(), 1u);
}

TEST_F(GateTest, NobodyIsKnownWithoutAKeysFile) {
  core_.get_session = [](CallContext& context, const v1::GetSessionRequest&) {
    v1::Session session;
    session.set_name(context.caller == nullptr ? context.tenant : "somebody");
    return session;
  };
  StartServer();
  EXPECT_EQ(Ask(""), "default");
  EXPECT_EQ(AskAs("whoever"), "default");
}

TEST_F(GateTest, AnEmptyFileLetsNobodyIn) {
  Keys("");
  StartServer();
  EXPECT_EQ(AskAs("acme-1"), "CREDENTIALS_INVALID");
}

TEST_F(GateTest, AnAdminIsOfTheTenantThatIsNamed) {
  Keys("keys:\n" + KeyEntry("root", "ops", "admin") + KeyEntry("acme-1", "acme", "user"));
  StartServer();
  EXPECT_EQ(AskAs("root"), "ops by root");
  EXPECT_EQ(AskAs("root", "tenants/acme/sessions/s"), "acme by root");
  EXPECT_EQ(AskAs("root", "tenants/none/sessions/s"), "none by root");
  EXPECT_EQ(AskAs("acme-1", "tenants/acme/sessions/s"), "acme by acme-1");
  EXPECT_EQ(AskAs("acme-1", "tenants/ops/sessions/s"), "ACCESS_DENIED");
  EXPECT_EQ(DetailOf<google::rpc::ErrorInfo>(last_).metadata().at("tenant"), "acme");
}

TEST_F(GateTest, AReloadIsForCallsFromNowOn) {
  Keys("keys:\n" + KeyEntry("acme-1", "acme", "user") + KeyEntry("acme-2", "acme", "user"));
  StartServer();
  EXPECT_EQ(AskAs("acme-1"), "acme by acme-1");
  Keys("keys:\n" + KeyEntry("acme-2", "other", "user"));
  EXPECT_EQ(AskAs("acme-1"), "acme by acme-1");
  ASSERT_TRUE(server_->Reload().ok());
  EXPECT_EQ(AskAs("acme-1"), "CREDENTIALS_INVALID");
  EXPECT_EQ(AskAs("acme-2"), "other by acme-2");
}

TEST_F(GateTest, ABrokenReloadChangesNothing) {
  test::CertificateAuthority authority(folder_.path());
  const CertificateFiles files = authority.Issue("server");
  config_.listen.tls.cert = files.certificate;
  config_.listen.tls.key = files.key;
  Keys("keys:\n" + KeyEntry("acme-1", "acme", "user"));
  StartServer();
  const auto secure = grpc::CreateChannel(
      server_->address(), grpc::SslCredentials({.pem_root_certs = ReadFile(authority.certificate()),
                                                .pem_private_key = "",
                                                .pem_cert_chain = ""}));
  const std::string key = "Bearer " + KeyOf("acme-1");
  EXPECT_EQ(Ask(key, "s", secure), "acme by acme-1");
  Keys("keys:\n  - id: Acme\n");
  absl::Status status = server_->Reload();
  EXPECT_THAT(std::string(status.message()), HasSubstr("keys.yaml:2"));
  EXPECT_EQ(Ask(key, "s", secure), "acme by acme-1");
  // All or nothing: keys that are well stay out while the certificate is not.
  Keys("");
  std::ofstream(files.key) << "broken";
  status = server_->Reload();
  EXPECT_THAT(std::string(status.message()), HasSubstr("listen.tls.key"));
  EXPECT_EQ(Ask(key, "s", secure), "acme by acme-1");
}

TEST_F(GateTest, AClientsCertificateIsACallerToo) {
  test::CertificateAuthority authority(folder_.path());
  const CertificateFiles files = authority.Issue("server");
  config_.listen.tls = {.cert = files.certificate,
                        .key = files.key,
                        .client_ca = authority.certificate(),
                        .require_client_cert = false};
  Keys("keys:\n" + KeyEntry("acme-1", "acme", "user") +
       "certificates:\n"
       "  - {id: ci, spiffe: 'spiffe://example.org/ci', tenant: acme, role: reader}\n"
       "  - {id: batch, dns: Batch.Example.org, tenant: other, role: user}\n"
       "  - {id: gone, dns: gone.example.org, tenant: other, role: user, not_after: 2020-01-01}\n");
  StartServer();
  const auto with = [&](const std::string& names) {
    const CertificateFiles own = names.empty() ? CertificateFiles() : authority.Issue("own", names);
    return grpc::CreateChannel(
        server_->address(),
        grpc::SslCredentials({.pem_root_certs = ReadFile(authority.certificate()),
                              .pem_private_key = names.empty() ? "" : ReadFile(own.key),
                              .pem_cert_chain = names.empty() ? "" : ReadFile(own.certificate)}));
  };
  const std::string key = "Bearer " + KeyOf("acme-1");
  EXPECT_EQ(Ask("", "s", with("URI:spiffe://example.org/ci")), "acme by ci");
  EXPECT_EQ(Ask("", "s", with("DNS:unknown.example.org,DNS:batch.example.org")), "other by batch");
  EXPECT_EQ(Ask("", "s", with("URI:spiffe://example.org/other")), "CREDENTIALS_INVALID");
  EXPECT_EQ(Ask("", "s", with("DNS:gone.example.org")), "CREDENTIALS_INVALID");
  EXPECT_EQ(Ask("", "s", with("")), "CREDENTIALS_INVALID");
  EXPECT_EQ(Ask(key, "s", with("")), "acme by acme-1");
  // Whoever shows a key is what the key says.
  const auto ci = with("URI:spiffe://example.org/ci");
  EXPECT_EQ(Ask(key, "s", ci), "acme by acme-1");
  EXPECT_EQ(Ask("Bearer wrong", "s", ci), "CREDENTIALS_INVALID");
}

TEST_F(GateTest, OnlyScrapersAndAdminsReadMetrics) {
  config_.listen.metrics_address = "127.0.0.1:0";
  config_.store.kind = "memory";
  Keys("keys:\n" + KeyEntry("prometheus", "ops", "metrics") + KeyEntry("root", "ops", "admin") +
       KeyEntry("acme-1", "acme", "user"));
  StartServer();
  const auto get = [&](const std::string& path, const std::string& id) {
    return test::HttpGet(server_->metrics_address(), path, "GET",
                         id.empty() ? "" : "Authorization: Bearer " + KeyOf(id) + "\r\n");
  };
  EXPECT_EQ(get("/metrics", "prometheus").code, 200);
  EXPECT_EQ(get("/metrics", "root").code, 200);
  for (const char* id : {"", "nobody", "acme-1"}) {
    const test::HttpReply reply = get("/metrics", id);
    EXPECT_EQ(reply.code, 401) << id;
    EXPECT_THAT(reply.head, HasSubstr("WWW-Authenticate: Bearer"));
    EXPECT_THAT(reply.body, testing::Not(HasSubstr("mneme_")));
  }
  EXPECT_EQ(get("/healthz", "").code, 200);
  EXPECT_EQ(get("/readyz", "").code, 200);
  EXPECT_EQ(AskAs("prometheus"), "ACCESS_DENIED");
}

}  // namespace
}  // namespace mneme::server
