// What a reader of a generation has already, where its events are cut otherwise than they were sent
// to him: taken out of what he is sent, and compared.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "mneme/v1/generation.pb.h"

namespace mneme::server {

class ReceivedOutput {
 public:
  // Of a request whose after_sequence is not 0. FIELD_REQUIRED or FIELD_OUT_OF_RANGE for one that
  // cannot be.
  static absl::Status Check(const v1::ResumeGenerationRequest& request);

  explicit ReceivedOutput(const v1::ResumeGenerationRequest::Received& received)
      : received_(received), tokens_(received.tokens()), text_bytes_(received.text_bytes()) {}

  // For every event from the first on. Takes out of it what the reader has; false if nothing is
  // left. ABORTED STREAM_DIVERGED if he has something else.
  absl::StatusOr<bool> Cut(v1::GenerateResponse& event);

 private:
  bool done() const { return tokens_ == 0 && text_bytes_ == 0; }
  absl::StatusOr<bool> CutDelta(v1::GenerateResponse::Delta& delta);

  const v1::ResumeGenerationRequest::Received received_;
  int64_t tokens_, text_bytes_;  // to be taken out yet
  std::string token_bytes_;      // of those that were taken out, for their checksum
};

}  // namespace mneme::server
