// What the client library says when TLS and its server do not agree. The server is gRPC's own, or
// openssl's where gRPC's would not start.
#include "client/tls.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <string>
#include <thread>

#include "client/client.h"
#include "mneme/v1/models.grpc.pb.h"
#include "tests/support/certificates.h"
#include "tests/support/child_process.h"

namespace mneme::client {
namespace {

using test::CertificateAuthority;
using test::CertificateFiles;
using test::ReadFile;
using testing::HasSubstr;

class Models final : public v1::Models::Service {
  grpc::Status GetModel(grpc::ServerContext*, const v1::GetModelRequest* request,
                        v1::Model* model) override {
    model->set_name(request->name());
    return grpc::Status::OK;
  }
};

class TlsTest : public testing::Test {
 protected:
  void StartServer(const std::shared_ptr<grpc::ServerCredentials>& credentials) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", credentials, &port_);
    builder.RegisterService(&models_);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
  }
  void StartTlsServer(bool wants_certificates = false) {
    grpc::SslServerCredentialsOptions options(
        wants_certificates ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                           : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
    const CertificateFiles files = authority_.Issue("server");
    options.pem_root_certs = ReadFile(authority_.certificate());
    options.pem_key_cert_pairs = {{ReadFile(files.key), ReadFile(files.certificate)}};
    StartServer(grpc::SslServerCredentials(options));
  }
  // A socket of TCP alone, at port_; the caller's to close.
  int Listen() {
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(listen(listener, 100), 0);
    EXPECT_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
    return listener;
  }
  std::string At(const std::string& scheme, const std::string& host = "127.0.0.1") const {
    return scheme + host + ":" + std::to_string(port_);
  }
  absl::Status Connect(const std::string& server, const TlsOptions& tls = {}) {
    auto client =
        Client::Connect({.server = server, .tls = tls, .connect_timeout = absl::Seconds(20)});
    return client.ok() ? client->GetModel("m").status() : client.status();
  }
  static void ExpectReason(const absl::Status& status, const std::string& reason,
                           const std::string& text) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_EQ(ErrorOf(status).reason, reason) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }

  test::TemporaryFolder folder_;
  CertificateAuthority authority_{folder_.path()};
  CertificateAuthority other_{folder_.path(), "other"};
  Models models_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(TlsTest, AServerOfATrustedAuthorityIsTalkedTo) {
  StartTlsServer();
  const TlsOptions tls{.ca_file = authority_.certificate()};
  EXPECT_TRUE(Connect(At("https://"), tls).ok());
  EXPECT_TRUE(Connect(At("https://", "localhost"), tls).ok());
  EXPECT_TRUE(Connect(At(""), tls).ok());  // the file says it
  EXPECT_TRUE(Connect(At("dns:///"), tls).ok());
}

TEST_F(TlsTest, AnUnknownAuthorityIsSaid) {
  StartTlsServer();
  for (const TlsOptions& tls : {TlsOptions{.ca_file = other_.certificate()}, TlsOptions{}}) {
    ExpectReason(Connect(At("https://"), tls), "TLS_SERVER_UNKNOWN", "self-signed certificate");
  }
}

TEST_F(TlsTest, AnotherNameIsSaid) {
  grpc::SslServerCredentialsOptions options;
  const CertificateFiles files = authority_.Issue("elsewhere", "DNS:elsewhere.example");
  options.pem_key_cert_pairs = {{ReadFile(files.key), ReadFile(files.certificate)}};
  StartServer(grpc::SslServerCredentials(options));
  for (const char* host : {"127.0.0.1", "localhost"}) {
    ExpectReason(Connect(At("https://", host), {.ca_file = authority_.certificate()}),
                 "TLS_SERVER_UNKNOWN", "mismatch");
  }
}

TEST_F(TlsTest, AnExpiredCertificateIsSaid) {
  const CertificateFiles files = authority_.Issue("expired", "IP:127.0.0.1", -1);
  auto server =
      test::ChildProcess::Start({.command = {"/usr/bin/openssl", "s_server", "-accept", "0", "-www",
                                             "-cert", files.certificate, "-key", files.key},
                                 .folder = folder_.path(),
                                 .name = "s_server"});
  ASSERT_TRUE(server.ok()) << server.status();
  for (int i = 0; i < 1000 && port_ == 0; ++i) {
    const std::string out = (*server)->Out();
    const size_t at = out.find("ACCEPT ");
    const size_t end = out.find('\n', at);
    if (at != out.npos && end != out.npos) port_ = std::stoi(out.substr(out.rfind(':', end) + 1));
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  ASSERT_NE(port_, 0) << (*server)->Err();
  ExpectReason(Connect(At("https://"), {.ca_file = authority_.certificate()}), "TLS_SERVER_UNKNOWN",
               "certificate has expired");
}

TEST_F(TlsTest, PlainTextToATlsServerIsSaid) {
  StartTlsServer();
  ExpectReason(Connect(At("")), "TLS_EXPECTED", "speaks TLS alone");
  ExpectReason(Connect(At("http://")), "TLS_EXPECTED", "speaks TLS alone");
}

TEST_F(TlsTest, TlsToAPlainTextServerIsSaid) {
  StartServer(grpc::InsecureServerCredentials());
  EXPECT_TRUE(Connect(At("")).ok());
  ExpectReason(Connect(At("https://")), "TLS_NOT_SPOKEN", "does not speak TLS");
}

TEST_F(TlsTest, APeerThatSaysNothingMaySpeakTls) {
  const int listener = Listen();  // connections wait there, and nobody takes them
  for (const bool tls : {true, false}) {
    const absl::Status status = ExplainNoConnection(At(""), tls, {});
    EXPECT_TRUE(status.ok()) << status;
  }
  close(listener);
}

// Whoever hangs up in the middle must not end the program by a signal.
TEST_F(TlsTest, APeerThatHangsUpIsSurvived) {
  const int listener = Listen();
  std::thread server([&] {
    for (int fd; (fd = accept(listener, nullptr, nullptr)) >= 0;) {
      char byte = 0;
      while (read(fd, &byte, 1) == 1 && byte == 0x16) {
      }
      constexpr std::string_view kNoTls = "no TLS at all, but enough of it to be read as something";
      EXPECT_EQ(send(fd, kNoTls.data(), kNoTls.size(), MSG_NOSIGNAL),
                static_cast<ssize_t>(kNoTls.size()));
      const linger reset{.l_onoff = 1, .l_linger = 0};
      setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
      close(fd);
    }
  });
  const auto client =
      Client::Connect({.server = At("https://"), .connect_timeout = absl::Seconds(1)});
  EXPECT_EQ(client.status().code(), absl::StatusCode::kUnavailable) << client.status();
  shutdown(listener, SHUT_RDWR);
  server.join();
  close(listener);
}

TEST_F(TlsTest, ARefusedCertificateIsSaid) {
  StartTlsServer(/*wants_certificates=*/true);
  TlsOptions tls{.ca_file = authority_.certificate()};
  ExpectReason(Connect(At("https://"), tls), "TLS_REFUSED", "wants a client's certificate");
  const CertificateFiles stranger = other_.Issue("stranger", "DNS:ci");
  tls.cert_file = stranger.certificate;
  tls.key_file = stranger.key;
  ExpectReason(Connect(At("https://"), tls), "TLS_REFUSED", "does not know the certificate");
  const CertificateFiles known = authority_.Issue("client", "DNS:ci");
  tls.cert_file = known.certificate;
  tls.key_file = known.key;
  EXPECT_TRUE(Connect(At("https://"), tls).ok());
}

TEST_F(TlsTest, AServerThatComesUpLaterIsWaitedFor) {
  StartTlsServer();
  server_.reset();  // a port that nobody listens on
  const TlsOptions tls{.ca_file = authority_.certificate()};
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    grpc::SslServerCredentialsOptions options;
    const CertificateFiles files = authority_.Issue("server");
    options.pem_key_cert_pairs = {{ReadFile(files.key), ReadFile(files.certificate)}};
    grpc::ServerBuilder builder;
    builder.AddListeningPort(At(""), grpc::SslServerCredentials(options));
    builder.RegisterService(&models_);
    server_ = builder.BuildAndStart();
  });
  EXPECT_TRUE(Connect(At("https://"), tls).ok());
  later.join();
}

TEST_F(TlsTest, FilesThatCannotBeUsedAreNamed) {
  const CertificateFiles own = authority_.Issue("client", "DNS:ci");
  const CertificateFiles another = authority_.Issue("another", "DNS:ci");
  const std::string junk = folder_.path() / "junk.pem";
  std::ofstream(junk) << "junk";
  const std::pair<TlsOptions, std::string> cases[] = {
      {{.ca_file = "/nonexistent.pem"}, "/nonexistent.pem"},
      {{.ca_file = junk}, "junk.pem is no PEM file"},
      {{.ca_file = folder_.path()}, "cannot be read"},
      {{.cert_file = own.certificate}, "given together"},
      {{.cert_file = own.certificate, .key_file = another.key}, "is not its private key"}};
  for (const auto& [tls, text] : cases) {
    const absl::Status status = Connect("https://127.0.0.1:1", tls);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }
  const absl::Status plain = Connect("http://127.0.0.1:1", {.ca_file = authority_.certificate()});
  EXPECT_EQ(plain.code(), absl::StatusCode::kInvalidArgument) << plain;
}

}  // namespace
}  // namespace mneme::client
