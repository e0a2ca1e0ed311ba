#include "server/rpc/status_mapping.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/cord.h"
#include "engine/core/utf8.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/core/errors.h"

namespace mneme::server {
namespace {

constexpr char kTypePrefix[] = "type.googleapis.com/";
// Base64 adds a third, and the text is sent twice (grpc-message, percent-encoded, and inside).
constexpr size_t kMaxMessageBytes = 1024;
constexpr size_t kMaxDetailBytes = 3072;

std::string_view DefaultReason(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kCancelled:
      return reason::kCancelled;
    case absl::StatusCode::kDeadlineExceeded:
      return reason::kDeadlineExceeded;
    case absl::StatusCode::kInvalidArgument:
      return reason::kFieldInvalid;
    default:
      return reason::kInternal;
  }
}

// Drops violations from the end until the detail fits.
std::string FitBadRequest(const absl::Cord& payload, size_t max_bytes) {
  google::rpc::BadRequest bad;
  if (!bad.ParseFromString(std::string(payload))) return "";
  while (bad.ByteSizeLong() > max_bytes && bad.field_violations_size() > 0) {
    bad.mutable_field_violations()->RemoveLast();
  }
  return bad.field_violations_size() > 0 ? bad.SerializeAsString() : "";
}

}  // namespace

std::string TruncateUtf8(std::string_view text, size_t max_bytes) {
  text = text.substr(0, max_bytes);
  text.remove_suffix(engine::UnfinishedUtf8Bytes(text));
  return std::string(text);
}

std::string ReasonForClient(const absl::Status& status) {
  std::string reason = ReasonOf(status);
  return reason.empty() ? std::string(DefaultReason(status.code())) : reason;
}

grpc::Status ToGrpcStatus(const absl::Status& original) {
  if (original.ok()) return grpc::Status::OK;
  absl::Status status = original;
  if (ReasonOf(status).empty()) {
    std::string text(status.message());
    if (status.code() == absl::StatusCode::kInternal ||
        status.code() == absl::StatusCode::kUnknown) {
      text = "internal error; the server's log has it under this call's x-request-id";
    }
    status = Error(status.code(), ReasonForClient(status), std::move(text));
  }

  const std::string error_info =
      kTypePrefix + std::string(google::rpc::ErrorInfo::descriptor()->full_name());
  const std::string bad_request =
      kTypePrefix + std::string(google::rpc::BadRequest::descriptor()->full_name());
  std::vector<std::pair<std::string, absl::Cord>> payloads;
  status.ForEachPayload([&](absl::string_view type_url, const absl::Cord& payload) {
    payloads.emplace_back(std::string(type_url), payload);
  });
  std::stable_sort(payloads.begin(), payloads.end(), [&](const auto& a, const auto& b) {
    return a.first == error_info && b.first != error_info;
  });

  google::rpc::Status details;
  details.set_code(static_cast<int>(status.code()));
  // A proto string: other bytes would not parse at the peer.
  const std::string text =
      TruncateUtf8(engine::ReplaceInvalidUtf8({status.message().data(), status.message().size()}),
                   kMaxMessageBytes);
  details.set_message(text);
  size_t used = 0;
  for (const auto& [type_url, payload] : payloads) {
    // Payloads of lower layers (a store's own) are not for clients.
    if (type_url.rfind(kTypePrefix, 0) != 0) continue;
    std::string value(payload);
    if (used + value.size() > kMaxDetailBytes && type_url == bad_request) {
      value = FitBadRequest(payload, kMaxDetailBytes - used);
    }
    if (value.empty() || used + value.size() > kMaxDetailBytes) continue;
    used += value.size();
    google::protobuf::Any* any = details.add_details();
    any->set_type_url(type_url);
    any->set_value(std::move(value));
  }
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), text,
                      details.SerializeAsString());
}

}  // namespace mneme::server
