#include "client/generate_stream.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/channel.h"
#include "client/crc32c.h"

namespace mneme::client {
namespace {

// True if it was not the turn that ended the stream so.
bool IsBroken(const absl::Status& failure) {
  const std::string reason = ErrorOf(failure).reason;
  // The server let go of the turn, which another one may go on with.
  if (reason == "LEASE_LOST" || reason == "DRAINING") return true;
  // The last is what a reset without an error means before the first event; then it is a proxy's.
  if (reason == "HTTP_STATUS" || reason == "STREAM_RESET" || reason == "REQUEST_TOO_LARGE") {
    return true;
  }
  // gRPC 1.51 reports some broken connections as UNKNOWN.
  return reason.empty() && (failure.code() == absl::StatusCode::kUnavailable ||
                            failure.code() == absl::StatusCode::kUnknown ||
                            failure.code() == absl::StatusCode::kInternal);
}

// True if the turn may be resumed later: a server that is thought to run it is not known to be dead
// yet, or this one has no room.
bool IsForLater(const absl::Status& failure) {
  const std::string reason = ErrorOf(failure).reason;
  return reason == "SESSION_BUSY" ||
         (failure.code() == absl::StatusCode::kUnavailable && !reason.empty());
}

}  // namespace

struct GenerateStream::Impl {
  std::shared_ptr<const Channel> channel;
  v1::GenerateRequest request;
  std::string request_id;
  absl::Time deadline;
  bool writes = false;  // to a session

  // Guards what Cancel() touches while the reader may open the next attempt.
  std::mutex mutex;
  std::condition_variable cancelled_changed;
  bool cancelled = false;
  std::unique_ptr<grpc::ClientContext> context;

  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader;
  int attempt = 0;  // since the last event
  bool unknown = false;
  int64_t last_sequence = 0;
  v1::ResumeGenerationRequest resume;  // its source is set as soon as that is possible
  bool counts = true;                  // what came, in resume.received()
  bool outlives = true;                // the turn its server
  std::optional<absl::Status> broken;  // what broke the stream since the last event
  absl::Time resume_until;             // since then
  int resumed = 0;
  std::optional<absl::Status> status;  // set when the stream is over
  std::optional<v1::GenerateResponse::Started> started;
  std::optional<Final> final;

  bool resumable() const {
    return resume.source_case() != v1::ResumeGenerationRequest::SOURCE_NOT_SET;
  }

  void Count(const v1::GenerateResponse::Delta& delta) {
    v1::ResumeGenerationRequest::Received& received = *resume.mutable_received();
    received.set_tokens(received.tokens() + delta.token_ids_size());
    received.set_text_bytes(received.text_bytes() + static_cast<int64_t>(delta.text().size()));
    uint32_t crc = received.token_ids_crc32c();
    for (const int32_t id : delta.token_ids()) crc = ExtendCrc32c(crc, id);
    received.set_token_ids_crc32c(crc);
  }

  void Open() {
    ++attempt;
    auto fresh = std::make_unique<grpc::ClientContext>();
    Prepare(*fresh, channel->options, deadline - absl::Now(), request_id, request.session());
    std::unique_lock lock(mutex);
    context = std::move(fresh);
    if (cancelled) context->TryCancel();
    lock.unlock();
    if (resumable()) {
      resume.set_after_sequence(last_sequence);
      reader = channel->generation->ResumeGeneration(context.get(), resume);
    } else {
      reader = channel->generation->Generate(context.get(), request);
    }
  }

  void Cancel() {
    std::lock_guard lock(mutex);
    cancelled = true;
    if (context) context->TryCancel();
    cancelled_changed.notify_all();
  }

  bool stopped() {
    std::lock_guard lock(mutex);
    return cancelled;
  }

  bool MayOpenAgain(const absl::Status& failure) {
    if (failure.ok() || stopped()) return false;
    if (!resumable()) return last_sequence == 0 && MayRepeat(failure, attempt + 1);
    if (broken && IsForLater(failure)) {
      attempt = 1;
      return absl::Now() < resume_until;
    }
    return attempt < kMaxAttempts && IsBroken(failure);
  }

  // A server that has the turn is waited for as long as the turn is.
  absl::Duration ConnectTimeout() const {
    const absl::Duration usual = channel->ConnectTimeout(deadline);
    return broken && outlives
               ? std::min(std::max(usual, resume_until - absl::Now()), deadline - absl::Now())
               : usual;
  }

  // After Read() failed. True if another attempt was opened.
  bool OpenAgain(const absl::Status& failure) {
    unknown = unknown || (writes && OutcomeUnknown(failure));
    if (!MayOpenAgain(failure)) return false;
    if (resumable() && !broken) {
      broken = failure;
      resume_until = absl::Now() + channel->options.resume_window;
      ++resumed;
    }
    absl::Duration delay = DelayBefore(attempt + 1, failure);
    if (absl::Now() + delay >= deadline) return false;
    std::unique_lock lock(mutex);
    cancelled_changed.wait_for(lock, absl::ToChronoNanoseconds(delay), [&] { return cancelled; });
    lock.unlock();
    if (stopped() || !channel->AwaitServer(ConnectTimeout(), [&] { return stopped(); }).ok()) {
      return false;
    }
    Open();
    return true;
  }

  void End(absl::Status result) {
    // A server that does not know the turn any more is no better explanation than what broke it.
    if (broken && ErrorOf(result).reason == "RESUME_EXPIRED") result = *broken;
    const bool gave_up = stopped() || result.code() == absl::StatusCode::kDeadlineExceeded ||
                         result.code() == absl::StatusCode::kDataLoss;
    if (gave_up && !result.ok() && !final) GiveUp(*channel, request);
    status = unknown && !result.ok() ? WithUnknownOutcome(std::move(result)) : std::move(result);
  }

  bool Next(v1::GenerateResponse* event) {
    if (status) return false;
    while (!reader->Read(event)) {
      absl::Status failure = FromGrpc(reader->Finish(), request_id);
      if (OpenAgain(failure)) continue;
      End(std::move(failure));
      return false;
    }
    if (event->sequence() != last_sequence + 1) {
      context->TryCancel();
      reader->Finish().ok();  // the gap is what the caller needs to hear of
      End(absl::DataLossError(absl::StrCat("the stream broke its order: event ", event->sequence(),
                                           " came after event ", last_sequence)));
      return false;
    }
    last_sequence = event->sequence();
    if (counts && event->has_delta()) Count(event->delta());
    attempt = 1;
    broken.reset();
    if (event->has_started()) {
      started = event->started();
      if (!started->resume_token().empty()) resume.set_resume_token(started->resume_token());
    }
    if (event->has_final()) final = event->final();
    return true;
  }
};

void OutliveStream(const Options& options, v1::GenerateRequest& request) {
  if (options.resume_window <= absl::ZeroDuration()) return;
  request.set_on_disconnect(v1::GenerateRequest::CONTINUE);
  if (request.has_resume_window()) return;
  const int64_t nanos = absl::ToInt64Nanoseconds(options.resume_window);
  request.mutable_resume_window()->set_seconds(nanos / 1'000'000'000);
  request.mutable_resume_window()->set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
}

void GiveUp(const Channel& channel, const v1::GenerateRequest& request) {
  if (request.on_disconnect() != v1::GenerateRequest::CONTINUE) return;
  grpc::ClientContext call;
  Prepare(call, channel.options, absl::Seconds(5), NewRequestId(), request.session());
  v1::CancelGenerationRequest cancel;
  cancel.set_request_id(request.request_id());
  v1::CancelGenerationResponse nothing;
  channel.generation->CancelGeneration(&call, cancel, &nothing).ok();  // as well as it can be
}

GenerateStream::GenerateStream(std::shared_ptr<const Channel> channel, v1::GenerateRequest request,
                               CallOptions call)
    : impl_(std::make_unique<Impl>()) {
  impl_->channel = std::move(channel);
  impl_->request = std::move(request);
  impl_->request_id = call.request_id.empty() ? NewRequestId() : call.request_id;
  impl_->deadline = absl::Now() + call.timeout.value_or(impl_->channel->options.work_timeout);
  impl_->writes = !impl_->request.session().empty();
  OutliveStream(impl_->channel->options, impl_->request);
  IdentifyRequest(impl_->request);
  impl_->resume.mutable_received();
  impl_->outlives = impl_->writes;
  impl_->Open();
}

GenerateStream::GenerateStream(std::shared_ptr<const Channel> channel,
                               v1::ResumeGenerationRequest request, CallOptions call)
    : impl_(std::make_unique<Impl>()) {
  impl_->channel = std::move(channel);
  impl_->last_sequence = request.after_sequence();
  impl_->resume = std::move(request);
  if (impl_->last_sequence == 0) impl_->resume.mutable_received();
  impl_->counts = impl_->resume.has_received();
  impl_->request_id = call.request_id.empty() ? NewRequestId() : call.request_id;
  impl_->deadline = absl::Now() + call.timeout.value_or(impl_->channel->options.work_timeout);
  impl_->Open();
}

GenerateStream::GenerateStream(GenerateStream&&) noexcept = default;

GenerateStream& GenerateStream::operator=(GenerateStream&& other) noexcept {
  std::swap(impl_, other.impl_);  // the old stream ends with `other`
  return *this;
}

GenerateStream::~GenerateStream() {
  if (!impl_ || impl_->status) return;
  impl_->Cancel();
  v1::GenerateResponse event;
  while (impl_->Next(&event)) {
  }
}

bool GenerateStream::Next(v1::GenerateResponse* event) { return impl_->Next(event); }

absl::StatusOr<GenerateStream::Final> GenerateStream::Finish() {
  v1::GenerateResponse event;
  while (Next(&event)) {
  }
  if (!impl_->status->ok()) return *impl_->status;
  if (!impl_->final) return absl::DataLossError("the stream ended without its final event");
  return *impl_->final;
}

const std::optional<v1::GenerateResponse::Started>& GenerateStream::started() const {
  return impl_->started;
}
const std::optional<GenerateStream::Final>& GenerateStream::final() const { return impl_->final; }

int GenerateStream::resumed() const { return impl_->resumed; }

void GenerateStream::Cancel() { impl_->Cancel(); }

}  // namespace mneme::client
