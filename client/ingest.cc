#include "client/ingest.h"

#include <algorithm>
#include <condition_variable>
#include <istream>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/channel.h"

namespace mneme::client {

struct IngestWriter::Impl {
  std::shared_ptr<const Channel> channel;
  std::string request_id;
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReaderWriter<v1::IngestRequest, v1::IngestProgress>> stream;
  bool finished = false;
};

IngestWriter::IngestWriter(std::shared_ptr<const Channel> channel, v1::IngestRequest::Start start,
                           const CallOptions& call)
    : impl_(std::make_unique<Impl>()) {
  impl_->channel = std::move(channel);
  impl_->request_id = call.request_id.empty() ? NewRequestId() : call.request_id;
  Prepare(impl_->context, impl_->channel->options,
          call.timeout.value_or(impl_->channel->options.work_timeout), impl_->request_id,
          start.session());
  impl_->stream = impl_->channel->sessions->IngestSession(&impl_->context);
  v1::IngestRequest request;
  *request.mutable_start() = std::move(start);
  impl_->stream->Write(request);  // if it fails, Read() and Finish() say why
}

IngestWriter::IngestWriter(IngestWriter&&) noexcept = default;
IngestWriter& IngestWriter::operator=(IngestWriter&& other) noexcept {
  std::swap(impl_, other.impl_);
  return *this;
}

IngestWriter::~IngestWriter() {
  if (!impl_ || impl_->finished) return;
  Cancel();
  v1::IngestProgress progress;
  while (Read(&progress)) {
  }
  Finish().IgnoreError();
}

bool IngestWriter::Write(int64_t offset_bytes, std::string_view data, bool last) {
  v1::IngestRequest request;
  auto* frame = request.mutable_data();
  frame->set_offset_bytes(offset_bytes);
  frame->set_data(data.data(), data.size());
  frame->set_last(last);
  if (!impl_->stream->Write(request)) return false;
  if (last) impl_->stream->WritesDone();
  return true;
}

bool IngestWriter::Read(v1::IngestProgress* progress) { return impl_->stream->Read(progress); }

absl::Status IngestWriter::Finish() {
  impl_->finished = true;
  return FromGrpc(impl_->stream->Finish(), impl_->request_id);
}

void IngestWriter::Cancel() { impl_->context.TryCancel(); }

namespace {

// The text by offset, with what may still have to be sent again. Threads: the sender fetches and
// the reader releases.
class Text {
 public:
  explicit Text(std::istream& in) : in_(in) {}

  // Up to `size` bytes from `offset` on; less only at the end of the text. kDataLoss if they can no
  // longer be had.
  absl::Status Fetch(int64_t offset, size_t size, std::string* bytes, bool* last) {
    // One byte more than asked for tells whether this is the end.
    const int64_t wanted = offset + static_cast<int64_t>(size) + 1;
    std::unique_lock lock(mutex_);
    while (!end_ && End() < wanted) {
      if (End() <= offset) {  // durable before we started: skip
        begin_ = End();
        kept_.clear();
      }
      lock.unlock();  // a pipe may let us wait
      char buffer[64 << 10];
      in_.read(buffer, sizeof(buffer));
      const size_t count = static_cast<size_t>(in_.gcount());
      if (in_.bad()) return absl::DataLossError("the text could not be read to its end");
      lock.lock();
      kept_.append(buffer, count);
      end_ = in_.eof();
    }
    if (offset < begin_) {
      return absl::DataLossError(absl::StrCat("the server asks for byte ", offset,
                                              ", but had said that ", begin_, " were durable"));
    }
    if (offset > End()) {
      return absl::DataLossError(
          absl::StrCat("the text has ", End(), " bytes, but ", offset,
                       " of this ingest are durable already: is it another text, same id?"));
    }
    *bytes = kept_.substr(static_cast<size_t>(offset - begin_), size);
    *last = end_ && offset + static_cast<int64_t>(bytes->size()) == End();
    return absl::OkStatus();
  }

  void Release(int64_t durable) {
    std::lock_guard lock(mutex_);
    if (durable <= begin_) return;
    size_t n = std::min(kept_.size(), static_cast<size_t>(durable - begin_));
    if (n < kept_.size() / 2 && n < (1 << 20)) return;  // erasing moves the rest: not too often
    kept_.erase(0, n);
    begin_ += static_cast<int64_t>(n);
  }

 private:
  int64_t End() const { return begin_ + static_cast<int64_t>(kept_.size()); }

  std::istream& in_;  // the sender only
  std::mutex mutex_;
  std::string kept_;  // [begin_, begin_ + size)
  int64_t begin_ = 0;
  bool end_ = false;
};

struct Attempt {
  absl::Status status;  // of the call
  absl::Status text;    // of reading the text
};

// Sends everything from the offset that the server's first progress names.
Attempt RunOnce(std::shared_ptr<const Channel> channel, const v1::IngestRequest::Start& start,
                Text& text, const IngestOptions& options, absl::Time deadline,
                v1::IngestProgress* latest) {
  if (auto s = channel->AwaitServer(channel->ConnectTimeout(deadline),
                                    [&] { return options.stop.stop_requested(); });
      !s.ok()) {
    return {s, absl::OkStatus()};
  }
  IngestWriter writer(std::move(channel), start, {.timeout = deadline - absl::Now()});
  std::stop_callback on_stop(options.stop, [&] { writer.Cancel(); });
  std::thread sender;
  absl::Status text_status;
  v1::IngestProgress progress;
  while (writer.Read(&progress)) {
    text.Release(progress.durable_bytes());
    *latest = progress;
    if (options.on_progress) options.on_progress(progress);
    if (sender.joinable() || progress.done()) continue;
    sender = std::thread([&, offset = progress.durable_bytes()]() mutable {
      const size_t size = std::clamp<size_t>(options.frame_bytes, 1, kMaxFrameBytes);
      std::string bytes;
      for (bool last = false; !last; offset += static_cast<int64_t>(bytes.size())) {
        text_status = text.Fetch(offset, size, &bytes, &last);
        if (!text_status.ok()) return writer.Cancel();
        if (!writer.Write(offset, bytes, last)) return;
      }
    });
  }
  // The server may end the call while the sender still waits for its window.
  if (sender.joinable()) sender.join();
  return {writer.Finish(), text_status};
}

bool Broken(const absl::Status& status) {
  return status.code() != absl::StatusCode::kDeadlineExceeded &&
         (status.code() == absl::StatusCode::kUnavailable || OutcomeUnknown(status));
}

}  // namespace

absl::StatusOr<v1::IngestProgress> RunIngest(std::shared_ptr<const Channel> channel,
                                             std::istream& in, const IngestOptions& options) {
  v1::IngestRequest::Start start;
  start.set_session(options.session);
  start.set_ingest_id(options.ingest_id.empty() ? NewRequestId() : options.ingest_id);
  start.set_expected_version(options.expected_version);
  start.set_commit_every_tokens(options.commit_every_tokens);
  start.set_parse_special_tokens(options.parse_special_tokens);
  if (absl::Status status = CheckRequest(start); !status.ok()) return status;

  Text text(in);
  v1::IngestProgress latest;
  absl::Time last_good = absl::Now();
  const absl::Time deadline = last_good + channel->options.work_timeout;
  std::mutex mutex;
  std::condition_variable_any wake;
  for (int failures = 0;;) {
    const int64_t before = latest.durable_bytes();
    Attempt attempt = RunOnce(channel, start, text, options, deadline, &latest);
    if (!attempt.text.ok()) return attempt.text;
    if (attempt.status.ok()) {
      if (latest.done()) return latest;
      attempt.status = absl::UnavailableError("the server ended the ingest before its last byte");
    }
    if (options.stop.stop_requested()) return absl::CancelledError("the ingest was stopped");
    // Once part of it is durable, the session's version has moved on by this ingest itself.
    if (latest.durable_bytes() > 0) start.set_expected_version(0);
    if (latest.durable_bytes() > before) {
      failures = 0;
      last_good = absl::Now();
    }
    // A broken call may keep the session busy until the server has noticed.
    const bool busy = failures > 0 && ErrorOf(attempt.status).reason == "SESSION_BUSY";
    if (!Broken(attempt.status) && !busy) return attempt.status;
    ++failures;
    const absl::Duration wait = DelayBefore(failures + 1, attempt.status);
    if (absl::Now() + wait - last_good > options.max_outage) return attempt.status;
    if (options.on_retry) options.on_retry(attempt.status, wait);
    std::unique_lock lock(mutex);
    wake.wait_for(lock, options.stop, absl::ToChronoNanoseconds(wait), [] { return false; });
    if (options.stop.stop_requested()) return absl::CancelledError("the ingest was stopped");
  }
}

}  // namespace mneme::client
