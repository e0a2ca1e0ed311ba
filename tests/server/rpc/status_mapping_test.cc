#include "server/rpc/status_mapping.h"

#include <gtest/gtest.h>

#include "engine/core/utf8.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/core/errors.h"

namespace mneme::server {
namespace {

google::rpc::Status Details(const grpc::Status& status) {
  google::rpc::Status details;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  return details;
}

TEST(StatusMappingTest, OkIsOk) {
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  EXPECT_EQ(ToGrpcStatus(absl::OkStatus()).error_details(), "");
}

TEST(StatusMappingTest, EveryCodeKeepsItsNumberAndGetsAnErrorInfo) {
  for (int code = 1; code <= 16; ++code) {
    const grpc::Status status =
        ToGrpcStatus(absl::Status(static_cast<absl::StatusCode>(code), "text"));
    EXPECT_EQ(status.error_code(), code);
    const google::rpc::Status details = Details(status);
    EXPECT_EQ(details.code(), code);
    EXPECT_EQ(details.message(), status.error_message());
    ASSERT_EQ(details.details_size(), 1);
    google::rpc::ErrorInfo info;
    ASSERT_TRUE(details.details(0).UnpackTo(&info));
    EXPECT_EQ(info.domain(), "mneme");
    EXPECT_FALSE(info.reason().empty());
  }
}

TEST(StatusMappingTest, PayloadsArriveErrorInfoFirst) {
  const grpc::Status status =
      ToGrpcStatus(WithResource(WithRetry(Error(absl::StatusCode::kAborted, reason::kSessionBusy,
                                                "busy", {{"current_version", "7"}}),
                                          absl::Milliseconds(1500)),
                                "session", "tenants/default/sessions/s"));
  const google::rpc::Status details = Details(status);
  ASSERT_EQ(details.details_size(), 3);
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(details.details(0).UnpackTo(&info));
  EXPECT_EQ(info.reason(), "SESSION_BUSY");
  EXPECT_EQ(info.metadata().at("current_version"), "7");
  bool retry = false;
  for (const auto& any : details.details()) {
    google::rpc::RetryInfo found;
    if (!any.UnpackTo(&found)) continue;
    retry = true;
    EXPECT_EQ(found.retry_delay().seconds(), 1);
    EXPECT_EQ(found.retry_delay().nanos(), 500000000);
  }
  EXPECT_TRUE(retry);
}

TEST(StatusMappingTest, InternalTextStaysInside) {
  const grpc::Status status = ToGrpcStatus(absl::InternalError("/etc/secret at 0x7fff"));
  EXPECT_EQ(status.error_message().find("secret"), std::string::npos);
  EXPECT_EQ(status.error_details().find("secret"), std::string::npos);
}

TEST(StatusMappingTest, PayloadsOfLowerLayersStayInside) {
  absl::Status status = Error(absl::StatusCode::kAborted, reason::kVersionMismatch, "version");
  status.SetPayload("mneme.memstore/found_version", absl::Cord("7"));
  EXPECT_EQ(Details(ToGrpcStatus(status)).details_size(), 1);
}

TEST(StatusMappingTest, ManyBadFieldsStillFitIntoMetadata) {
  FieldErrors errors;
  for (int i = 0; i < 5000; ++i) {
    errors.Add("stop_sequences[" + std::to_string(i) + "]", "must be at most 256 bytes");
  }
  const grpc::Status status = ToGrpcStatus(errors.ToStatus());
  EXPECT_LE(status.error_message().size(), 1024u);
  EXPECT_LE(status.error_details().size(), 4300u);
  google::rpc::BadRequest bad;
  ASSERT_EQ(Details(status).details_size(), 2);
  ASSERT_TRUE(Details(status).details(1).UnpackTo(&bad));
  EXPECT_GT(bad.field_violations_size(), 20);
  EXPECT_EQ(bad.field_violations(0).field(), "stop_sequences[0]");
}

TEST(StatusMappingTest, TextIsCutBetweenCharactersAndAlwaysUtf8) {
  EXPECT_EQ(TruncateUtf8("a\xC3\xA9", 2), "a");
  EXPECT_EQ(TruncateUtf8("a\xC3\xA9", 3), "a\xC3\xA9");
  EXPECT_EQ(TruncateUtf8("\xF0\x9F\x98\x80", 3), "");
  const grpc::Status status = ToGrpcStatus(
      Error(absl::StatusCode::kInvalidArgument, reason::kFieldInvalid, "bad \xFF byte"));
  EXPECT_EQ(Details(status).message(), status.error_message());
  EXPECT_EQ(status.error_message(), "bad \xEF\xBF\xBD byte");
}

// Both look like UTF-8 byte by byte, and no peer would parse them.
TEST(StatusMappingTest, OverlongFormsAndSurrogatesAreReplaced) {
  for (const char* bad : {"\xC0\x80", "\xE0\x80\x80", "\xF0\x80\x80\x80", "\xED\xA0\x80"}) {
    const grpc::Status status = ToGrpcStatus(
        Error(absl::StatusCode::kInvalidArgument, reason::kFieldInvalid, std::string("a") + bad));
    EXPECT_TRUE(engine::IsValidUtf8(status.error_message())) << status.error_message();
    EXPECT_EQ(Details(status).message(), status.error_message());
  }
}

}  // namespace
}  // namespace mneme::server
