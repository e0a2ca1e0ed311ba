// SPDX-License-Identifier: Apache-2.0
//
// Sessions as files: out of one server, into the same or another one, where they go on from the
// same point. Every byte of a file is checked where it is imported.
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <memory>
#include <stop_token>
#include <string>

#include "absl/status/statusor.h"
#include "client/options.h"
#include "mneme/v1/sessions.pb.h"

namespace mneme::client {

struct Channel;

struct ExportProgress {
  int64_t file_bytes = 0;       // so far
  int64_t content_bytes = 0;    // of the whole file, before it is compressed
  int64_t version = 0;          // of the session, that the file holds
  int64_t position_tokens = 0;  // the same
};

struct ExportOptions {
  std::string session;  // or one of its snapshots
  bool without_transcript = false;
  bool compress = false;
  // Called on the calling thread after each piece. May be null.
  std::function<void(const ExportProgress&)> on_progress;
  // Ends the export with CANCELLED.
  std::stop_token stop;
};

struct ImportOptions {
  v1::ImportSessionRequest::Start start;       // names may be short
  std::function<void(int64_t)> on_sent_bytes;  // as on_progress; of the file, so far
  // Ends the import with CANCELLED; the server keeps nothing of it.
  std::stop_token stop;
};

// What Client::ExportSession does. The file is whole if and only if the result is OK. Errors: the
// server's; kDataLoss if `out` takes no more.
absl::StatusOr<ExportProgress> RunExport(std::shared_ptr<const Channel> channel, std::ostream& out,
                                         const ExportOptions& options);

// What Client::ImportSession does. One attempt. Errors: the server's; kDataLoss if `in` cannot be
// read to its end. A broken connection says whether the session may have been made all the same.
absl::StatusOr<v1::ImportSessionResponse> RunImport(std::shared_ptr<const Channel> channel,
                                                    std::istream& in, const ImportOptions& options);

}  // namespace mneme::client
