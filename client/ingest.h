// SPDX-License-Identifier: Apache-2.0
//
// Long text into a session: flow-controlled, with progress, and resumed after a break.
//
// A text is sent in frames; the server says which bytes are durable. After a break the same
// ingest_id continues there, in the same process or in a later one: nothing is read twice and
// nothing is lost.
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <memory>
#include <stop_token>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/options.h"
#include "mneme/v1/sessions.pb.h"

namespace mneme::client {

struct Channel;

inline constexpr size_t kMaxFrameBytes = 1 << 20;  // the server refuses more

struct IngestOptions {
  std::string session;
  // The same after a break; "": a random one, so that only this call can resume it.
  std::string ingest_id;
  int64_t expected_version = 0;     // 0: any; checked when the ingest starts, not when it resumes
  int64_t commit_every_tokens = 0;  // 0: the server's default
  bool parse_special_tokens = false;
  size_t frame_bytes = 4 << 10;  // at most kMaxFrameBytes; the server reports after each
  // Gives up after so long without a new durable byte while the connection keeps failing.
  absl::Duration max_outage = absl::Seconds(60);
  // Called on the calling thread, in order. May be null.
  std::function<void(const v1::IngestProgress&)> on_progress;
  // Before each new attempt: why the last one ended and how long we wait.
  std::function<void(const absl::Status&, absl::Duration wait)> on_retry;
  // Ends the ingest with CANCELLED; what was durable stays and can be resumed.
  std::stop_token stop;
};

// One attempt: the frames of one IngestSession call. Threads: one that writes and one that reads,
// which may be the same; Cancel() from any. Destruction cancels.
class IngestWriter {
 public:
  IngestWriter(std::shared_ptr<const Channel> channel, v1::IngestRequest::Start start,
               const CallOptions& call);
  IngestWriter(IngestWriter&&) noexcept;
  IngestWriter& operator=(IngestWriter&&) noexcept;
  ~IngestWriter();

  // Blocks while the server's receive window is full. False if the call is over: Finish() tells.
  bool Write(int64_t offset_bytes, std::string_view data, bool last);
  // The next progress; the first one says in durable_bytes where to continue. False at the end.
  bool Read(v1::IngestProgress* progress);
  // After Read() returned false.
  absl::Status Finish();
  void Cancel();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// What Client::Ingest does. `text` is read to its end and may be a pipe: bytes that are not durable
// yet are kept in memory (about one commit's worth). Errors: the server's; UNAVAILABLE after
// max_outage; kDataLoss if `text` cannot be read, or is shorter than what is already durable.
absl::StatusOr<v1::IngestProgress> RunIngest(std::shared_ptr<const Channel> channel,
                                             std::istream& text, const IngestOptions& options);

}  // namespace mneme::client
