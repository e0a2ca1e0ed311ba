// SPDX-License-Identifier: Apache-2.0
//
// Typed errors of a call.
//
// Every failure the library returns is an absl::Status: its code is the gRPC code, its payloads are
// the google.rpc details the server sent, under their type URLs, plus the request's id. `Error`
// reads them, so that a program can act on a reason instead of a text:
//
//   auto session = client.GetSession(name);
//   if (!session.ok() && client::ErrorOf(session.status()).reason == "SESSION_NOT_FOUND") ...
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace grpc {
class Status;
}  // namespace grpc

namespace mneme::client {

struct FieldViolation {
  std::string field;        // path, e.g. "sampling.top_p"
  std::string description;  // what was expected
};

struct Error {
  absl::StatusCode code = absl::StatusCode::kOk;  // same number as the gRPC code
  std::string message;
  // Of google.rpc.ErrorInfo, e.g. "SESSION_BUSY"; "" if there is none. What no server sent has a
  // reason too if it is known: REQUEST_TOO_LARGE, HTTP_STATUS, STREAM_RESET (transport_error.h),
  // TLS_EXPECTED, TLS_NOT_SPOKEN, TLS_SERVER_UNKNOWN, TLS_REFUSED (tls.h).
  std::string reason;
  std::map<std::string, std::string> metadata;  // of ErrorInfo, e.g. current_version
  std::vector<FieldViolation> fields;
  std::string resource;                       // name of the resource it is about, or ""
  std::optional<absl::Duration> retry_delay;  // the server's advice
  std::string request_id;                     // to find the call in the server's log
  // True if a mutating call may have happened although it failed: the connection broke before the
  // answer came. Read the session to find out.
  bool outcome_unknown = false;
};

// Reads what a status of this library carries. OK gives an Error with code kOk.
Error ErrorOf(const absl::Status& status);

// For the library itself: the status of a finished RPC. `request_id` is what the client sent.
absl::Status FromGrpc(const grpc::Status& status, std::string_view request_id);
// Details as a server would send them.
absl::Status WithReason(absl::Status status, std::string_view reason,
                        std::map<std::string, std::string> metadata = {});
absl::Status WithField(absl::Status status, std::string_view field, std::string_view expected);
// Marks that the call may have happened.
absl::Status WithUnknownOutcome(absl::Status status);

// True if the server refused before doing anything, so that any call may be sent again.
bool RefusedUntouched(const Error& error);

}  // namespace mneme::client
