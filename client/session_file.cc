#include "client/session_file.h"

#include <istream>
#include <ostream>
#include <utility>

#include "client/channel.h"
#include "client/names.h"

namespace mneme::client {
namespace {

constexpr size_t kFrameBytes = 1 << 20;  // the server refuses more

absl::Status Stopped() { return absl::CancelledError("it was stopped"); }

}  // namespace

absl::StatusOr<ExportProgress> RunExport(std::shared_ptr<const Channel> channel, std::ostream& out,
                                         const ExportOptions& options) {
  v1::ExportSessionRequest request;
  request.set_name(options.session);
  request.set_without_transcript(options.without_transcript);
  request.set_compress(options.compress);
  if (absl::Status status = CheckRequest(request); !status.ok()) return status;
  const std::string id = NewRequestId();
  grpc::ClientContext context;
  Prepare(context, channel->options, channel->options.work_timeout, id, SessionOf(options.session));
  const auto stream = channel->sessions->ExportSession(&context, request);
  std::stop_callback on_stop(options.stop, [&] { context.TryCancel(); });
  ExportProgress progress;
  v1::ExportSessionResponse piece;
  while (stream->Read(&piece)) {
    if (progress.content_bytes == 0) {
      progress.content_bytes = piece.content_bytes();
      progress.version = piece.version();
      progress.position_tokens = piece.position_tokens();
    }
    out.write(piece.data().data(), static_cast<std::streamsize>(piece.data().size()));
    if (!out) break;
    progress.file_bytes += static_cast<int64_t>(piece.data().size());
    if (options.on_progress) options.on_progress(progress);
  }
  out.flush();
  if (!out) context.TryCancel();
  absl::Status status = FromGrpc(stream->Finish(), id);
  if (!out) return absl::DataLossError("the file could not be written");
  if (options.stop.stop_requested()) return Stopped();
  if (!status.ok()) return status;
  return progress;
}

absl::StatusOr<v1::ImportSessionResponse> RunImport(std::shared_ptr<const Channel> channel,
                                                    std::istream& in,
                                                    const ImportOptions& options) {
  if (absl::Status status = CheckRequest(options.start); !status.ok()) return status;
  const std::string id = NewRequestId();
  grpc::ClientContext context;
  Prepare(context, channel->options, channel->options.work_timeout, id, "");
  v1::ImportSessionResponse response;
  const auto stream = channel->sessions->ImportSession(&context, &response);
  std::stop_callback on_stop(options.stop, [&] { context.TryCancel(); });
  v1::ImportSessionRequest frame;
  *frame.mutable_start() = options.start;
  bool open = stream->Write(frame);
  int64_t sent = 0;
  // If the server ends the call, its status says why.
  while (open && in) {
    std::string& data = *frame.mutable_data();
    data.resize(kFrameBytes);
    in.read(data.data(), kFrameBytes);
    data.resize(static_cast<size_t>(in.gcount()));
    if (data.empty()) break;
    open = stream->Write(frame);
    sent += static_cast<int64_t>(data.size());
    if (open && options.on_sent_bytes) options.on_sent_bytes(sent);
  }
  const bool unread = in.bad();
  if (unread) {
    context.TryCancel();
  } else {
    stream->WritesDone();
  }
  absl::Status status = FromGrpc(stream->Finish(), id);
  if (unread) return absl::DataLossError("the file could not be read to its end");
  if (options.stop.stop_requested()) return Stopped();
  if (!status.ok()) return OutcomeUnknown(status) ? WithUnknownOutcome(std::move(status)) : status;
  return response;
}

}  // namespace mneme::client
