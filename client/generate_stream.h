// SPDX-License-Identifier: Apache-2.0
//
// A running generation, as a stream of events.
//
//   auto stream = client.Generate(request);
//   if (!stream.ok()) return stream.status();
//   for (const v1::GenerateResponse& event : *stream) std::cout << event.delta().text();
//   auto final = stream->Finish();   // StatusOr<Final>: usage, finish reason, committed version
//
// A stream that breaks on its way (a connection that is lost, a server that dies) goes on with
// ResumeGeneration where it was, on whatever server answers within Options::resume_window: nothing
// is missing and nothing comes twice. A stateless turn dies with its server: then the stream ends
// with the error that broke it.
//
// Destroying the stream before its end cancels the turn and waits until the RPC is over; but a
// stream of Client::ResumeGeneration leaves the turn to its on_disconnect. Threads: one reader;
// Cancel() from any thread.
#pragma once

#include <cstddef>
#include <iterator>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "client/options.h"
#include "mneme/v1/generation.pb.h"

namespace mneme::client {

struct Channel;

class GenerateStream {
 public:
  using Final = v1::GenerateResponse::Final;

  // Made by Client::Generate. `request` has full names.
  GenerateStream(std::shared_ptr<const Channel> channel, v1::GenerateRequest request,
                 CallOptions call);
  // Made by Client::ResumeGeneration.
  GenerateStream(std::shared_ptr<const Channel> channel, v1::ResumeGenerationRequest request,
                 CallOptions call);
  GenerateStream(GenerateStream&&) noexcept;
  GenerateStream& operator=(GenerateStream&&) noexcept;
  ~GenerateStream();

  // The next event in order, or false at the end, whether good or bad: Finish() tells. An event
  // that breaks the sequence 1, 2, 3, ... ends the stream with DATA_LOSS. May wait for a server
  // that is away, as long as Connect() does, or to resume for Options::resume_window.
  bool Next(v1::GenerateResponse* event);

  // Reads what is left, then: the Final of a stream that ended OK, else the error. A stream that
  // broke before its first event was sent again, with the same request_id; one that broke later was
  // resumed.
  absl::StatusOr<Final> Finish();

  // How often the stream has broken and gone on.
  int resumed() const;

  // The Started and Final events, once they came; Final also of a stream that then failed.
  const std::optional<v1::GenerateResponse::Started>& started() const;
  const std::optional<Final>& final() const;

  // Ends the RPC. The server applies the turn's commit_policy; Finish() then returns CANCELLED. To
  // learn what was committed, use Client::CancelGeneration(started()->generation()) instead.
  void Cancel();

  class Iterator {
   public:
    using iterator_category = std::input_iterator_tag;
    using value_type = v1::GenerateResponse;
    using difference_type = std::ptrdiff_t;
    using pointer = const value_type*;
    using reference = const value_type&;

    Iterator() = default;
    explicit Iterator(GenerateStream* stream) : stream_(stream) { ++*this; }
    reference operator*() const { return event_; }
    pointer operator->() const { return &event_; }
    Iterator& operator++() {
      if (!stream_->Next(&event_)) stream_ = nullptr;
      return *this;
    }
    void operator++(int) { ++*this; }
    bool operator==(const Iterator& other) const { return stream_ == other.stream_; }

   private:
    GenerateStream* stream_ = nullptr;
    v1::GenerateResponse event_;
  };
  Iterator begin() { return Iterator(this); }
  Iterator end() { return Iterator(); }

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mneme::client
