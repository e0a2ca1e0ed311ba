// TLS of the gRPC listener: who can connect, and what a renewed, a broken and another authority's
// file do to connections that come after.
#include <gmock/gmock.h>
#include <grpcpp/security/credentials.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/server/rpc/rpc_test_base.h"
#include "tests/support/certificates.h"
#include "tests/support/child_process.h"

namespace mneme::server {
namespace {

namespace fs = std::filesystem;
using test::CertificateAuthority;
using test::CertificateFiles;
using test::ReadFile;
using testing::HasSubstr;

class TlsTest : public RpcTest {
 protected:
  TlsTest() {
    const CertificateFiles server = authority_.Issue("server");
    config_.listen.tls.cert = server.certificate;
    config_.listen.tls.key = server.key;
  }

  // One call on a connection of its own. OK, or the code.
  grpc::StatusCode CallWith(const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
    grpc::ChannelArguments own;
    own.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return CallOn(grpc::CreateCustomChannel(server_->address(), credentials, own));
  }
  static grpc::StatusCode CallOn(const std::shared_ptr<grpc::Channel>& channel) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    v1::Session session;
    return v1::Sessions::NewStub(channel)->GetSession(&context, {}, &session).error_code();
  }
  std::shared_ptr<grpc::ChannelCredentials> Trusting(const CertificateAuthority& authority,
                                                     const CertificateFiles& own = {}) {
    return grpc::SslCredentials(
        {.pem_root_certs = ReadFile(authority.certificate()),
         .pem_private_key = own.key.empty() ? "" : ReadFile(own.key),
         .pem_cert_chain = own.certificate.empty() ? "" : ReadFile(own.certificate)});
  }
  // Tries until connections are answered so: a changed file is looked for once a second.
  bool Becomes(grpc::StatusCode code, const std::shared_ptr<grpc::ChannelCredentials>& with) {
    for (int i = 0; i < 400; ++i) {
      if (CallWith(with) == code) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return false;
  }
  std::string WriteFile(const std::string& name, const std::string& text) {
    std::ofstream(folder_.path() / name) << text;
    return folder_.path() / name;
  }

  test::TemporaryFolder folder_;
  CertificateAuthority authority_{folder_.path()};
  CertificateAuthority other_{folder_.path(), "other"};
};

TEST_F(TlsTest, WhoeverTrustsTheAuthorityConnects) {
  StartServer();
  EXPECT_EQ(CallWith(Trusting(authority_)), grpc::OK);
  EXPECT_EQ(CallWith(Trusting(other_)), grpc::UNAVAILABLE);
  EXPECT_EQ(CallWith(grpc::InsecureChannelCredentials()), grpc::UNAVAILABLE);
}

TEST_F(TlsTest, AClientsCertificateIsCheckedIfItShowsOne) {
  config_.listen.tls.client_ca = authority_.certificate();
  StartServer();
  EXPECT_EQ(CallWith(Trusting(authority_)), grpc::OK);
  EXPECT_EQ(CallWith(Trusting(authority_, authority_.Issue("client", "DNS:ci"))), grpc::OK);
  EXPECT_EQ(CallWith(Trusting(authority_, other_.Issue("stranger", "DNS:ci"))), grpc::UNAVAILABLE);
  EXPECT_EQ(CallWith(Trusting(authority_, authority_.Issue("late", "DNS:ci", -1))),
            grpc::UNAVAILABLE);
}

TEST_F(TlsTest, AClientsCertificateCanBeRequired) {
  config_.listen.tls.client_ca = authority_.certificate();
  config_.listen.tls.require_client_cert = true;
  StartServer();
  EXPECT_EQ(CallWith(Trusting(authority_)), grpc::UNAVAILABLE);
  EXPECT_EQ(CallWith(Trusting(authority_, authority_.Issue("client", "DNS:ci"))), grpc::OK);
  EXPECT_EQ(CallWith(Trusting(authority_, other_.Issue("stranger", "DNS:ci"))), grpc::UNAVAILABLE);
}

TEST_F(TlsTest, ReloadedFilesAreForNewConnections) {
  StartServer();
  const auto before = grpc::CreateChannel(server_->address(), Trusting(authority_));
  ASSERT_EQ(CallOn(before), grpc::OK);
  other_.Issue("server");  // the same files
  ASSERT_TRUE(server_->Reload().ok());
  EXPECT_EQ(CallWith(Trusting(other_)), grpc::OK);
  EXPECT_EQ(CallWith(Trusting(authority_)), grpc::UNAVAILABLE);
  EXPECT_EQ(CallOn(before), grpc::OK);  // its connection is what it was
}

TEST_F(TlsTest, ChangedFilesNeedNoSignal) {
  StartServer();
  ASSERT_EQ(CallWith(Trusting(authority_)), grpc::OK);
  other_.Issue("server");
  EXPECT_TRUE(Becomes(grpc::OK, Trusting(other_)));
}

TEST_F(TlsTest, AnotherAuthorityOfClientsHoldsAfterAReload) {
  config_.listen.tls.client_ca = WriteFile("clients.pem", ReadFile(authority_.certificate()));
  config_.listen.tls.require_client_cert = true;
  StartServer();
  const auto ours = Trusting(authority_, authority_.Issue("client", "DNS:ci"));
  const auto theirs = Trusting(authority_, other_.Issue("stranger", "DNS:ci"));
  ASSERT_EQ(CallWith(ours), grpc::OK);
  WriteFile("clients.pem", ReadFile(other_.certificate()));
  ASSERT_TRUE(server_->Reload().ok());
  EXPECT_EQ(CallWith(ours), grpc::UNAVAILABLE);
  EXPECT_EQ(CallWith(theirs), grpc::OK);
}

TEST_F(TlsTest, ABrokenReloadChangesNothing) {
  StartServer();
  const std::string key = config_.listen.tls.key;
  WriteFile("server.key", "not a key");
  const absl::Status status = server_->Reload();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(key));
  // Found changed by handshakes, too.
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  EXPECT_EQ(CallWith(Trusting(authority_)), grpc::OK);
  authority_.Issue("server");
  EXPECT_TRUE(server_->Reload().ok());
  EXPECT_EQ(CallWith(Trusting(authority_)), grpc::OK);
}

TEST_F(TlsTest, AFileThatCannotBeUsedIsNamed) {
  const CertificateFiles other = other_.Issue("another");
  const CertificateFiles expired = authority_.Issue("expired", "DNS:localhost", -1);
  const std::string locked = folder_.path() / "locked.key";
  ASSERT_EQ(test::ChildProcess::Run(
                {.command = {"/usr/bin/openssl", "pkey", "-in", config_.listen.tls.key, "-aes256",
                             "-passout", "pass:secret", "-out", locked},
                 .folder = folder_.path(),
                 .name = "lock"})
                .code,
            0);
  const std::string cut =
      WriteFile("cut.pem", ReadFile(config_.listen.tls.cert) + "-----BEGIN CERTIFICATE-----\nAAAA");
  using Tls = Config::Listen::Tls;
  const std::tuple<std::string Tls::*, std::string, const char*> cases[] = {
      {&Tls::cert, "/nonexistent.pem", "listen.tls.cert /nonexistent.pem: cannot be read"},
      {&Tls::cert, folder_.path(), "cannot be read"},
      {&Tls::cert, WriteFile("empty.pem", ""), "empty.pem: must hold certificates"},
      {&Tls::cert, config_.listen.tls.key, "must hold certificates"},
      {&Tls::cert, cut, "cut.pem: must hold certificates"},
      {&Tls::cert, "/dev/zero", "too large"},
      {&Tls::cert, other.certificate, "is not the key of the first certificate"},
      {&Tls::key, "/nonexistent.key", "listen.tls.key /nonexistent.key: cannot be read"},
      {&Tls::key, config_.listen.tls.cert, "must hold a private key"},
      {&Tls::key, locked, "without passphrase"},
      {&Tls::client_ca, "/nonexistent.ca", "listen.tls.client_ca /nonexistent.ca: cannot be read"},
      {&Tls::client_ca, config_.listen.tls.key, "must hold certificates"},
  };
  for (const auto& [member, path, expected] : cases) {
    Config config = config_;
    config.listen.tls.*member = path;
    const absl::Status status = RpcServer::CheckFiles(config);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << path;
    EXPECT_THAT(std::string(status.message()), HasSubstr(expected));
    EXPECT_EQ(RpcServer::Start(config, core_).status(), status);
  }
  config_.listen.tls.cert = expired.certificate;
  config_.listen.tls.key = expired.key;
  EXPECT_THAT(std::string(RpcServer::CheckFiles(config_).message()), HasSubstr("has expired"));
}

}  // namespace
}  // namespace mneme::server
