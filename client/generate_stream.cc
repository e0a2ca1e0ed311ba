#include "client/generate_stream.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/channel.h"

namespace mneme::client {

struct GenerateStream::Impl {
  std::shared_ptr<const Channel> channel;
  v1::GenerateRequest request;
  std::string request_id;
  absl::Time deadline;
  Repeat repeat;

  // Guards what Cancel() touches while the reader may open the next attempt.
  std::mutex mutex;
  std::condition_variable cancelled_changed;
  bool cancelled = false;
  std::unique_ptr<grpc::ClientContext> context;

  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader;
  int attempt = 0;
  bool unknown = false;
  int64_t last_sequence = 0;
  std::optional<absl::Status> status;  // set when the stream is over
  std::optional<v1::GenerateResponse::Started> started;
  std::optional<Final> final;

  void Open() {
    ++attempt;
    auto fresh = std::make_unique<grpc::ClientContext>();
    Prepare(*fresh, channel->options, deadline - absl::Now(), request_id, request.session());
    std::unique_lock lock(mutex);
    context = std::move(fresh);
    if (cancelled) context->TryCancel();
    lock.unlock();
    reader = channel->generation->Generate(context.get(), request);
  }

  void Cancel() {
    std::lock_guard lock(mutex);
    cancelled = true;
    if (context) context->TryCancel();
    cancelled_changed.notify_all();
  }

  // After Read() failed. True if another attempt was opened.
  bool OpenAgain(const absl::Status& failure) {
    unknown = unknown || (repeat != Repeat::kByChannel && OutcomeUnknown(failure));
    if (last_sequence > 0 || failure.ok()) return false;
    Repeat rule = repeat == Repeat::kByChannel ? Repeat::kGuarded : repeat;
    if (!MayRepeat(failure, rule, attempt + 1)) return false;
    absl::Duration delay = DelayBefore(attempt + 1, failure);
    if (absl::Now() + delay >= deadline) return false;
    std::unique_lock lock(mutex);
    cancelled_changed.wait_for(lock, absl::ToChronoNanoseconds(delay), [&] { return cancelled; });
    lock.unlock();
    auto stopped = [&] {
      std::lock_guard guard(mutex);
      return cancelled;
    };
    if (stopped() || !channel->AwaitServer(channel->ConnectTimeout(deadline), stopped).ok()) {
      return false;
    }
    Open();
    return true;
  }

  void End(absl::Status result) {
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
    if (event->has_started()) started = event->started();
    if (event->has_final()) final = event->final();
    return true;
  }
};

GenerateStream::GenerateStream(std::shared_ptr<const Channel> channel, v1::GenerateRequest request,
                               CallOptions call)
    : impl_(std::make_unique<Impl>()) {
  impl_->channel = std::move(channel);
  impl_->request = std::move(request);
  impl_->request_id = call.request_id.empty() ? NewRequestId() : call.request_id;
  impl_->deadline = absl::Now() + call.timeout.value_or(impl_->channel->options.work_timeout);
  // A stateless call changes nothing, but the channel's config must not retry the method.
  impl_->repeat = impl_->request.session().empty()         ? Repeat::kByChannel
                  : impl_->request.expected_version() != 0 ? Repeat::kGuarded
                                                           : Repeat::kNever;
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

void GenerateStream::Cancel() { impl_->Cancel(); }

}  // namespace mneme::client
