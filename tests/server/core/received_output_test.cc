#include "server/core/received_output.h"

#include <gtest/gtest.h>

#include "client/crc32c.h"
#include "server/core/errors.h"

namespace mneme::server {
namespace {

using Received = v1::ResumeGenerationRequest::Received;

v1::GenerateResponse Output(std::vector<int32_t> ids, const std::string& text) {
  v1::GenerateResponse event;
  event.mutable_delta()->mutable_token_ids()->Add(ids.begin(), ids.end());
  event.mutable_delta()->set_text(text);
  for (const int32_t id : ids) {
    event.mutable_delta()->add_logprobs()->set_logprob(static_cast<float>(id));
  }
  return event;
}

Received Having(const std::vector<int32_t>& ids, size_t text_bytes) {
  Received received;
  received.set_tokens(static_cast<int64_t>(ids.size()));
  received.set_text_bytes(static_cast<int64_t>(text_bytes));
  uint32_t crc = 0;
  for (const int32_t id : ids) crc = client::ExtendCrc32c(crc, id);
  received.set_token_ids_crc32c(crc);
  return received;
}

// What is left of `events`, as text and ids.
struct Rest {
  std::string text;
  std::vector<int32_t> ids;
  int events = 0;
};
absl::StatusOr<Rest> Cut(const Received& received, std::vector<v1::GenerateResponse> events) {
  ReceivedOutput output(received);
  Rest rest;
  for (v1::GenerateResponse& event : events) {
    const auto wanted = output.Cut(event);
    if (!wanted.ok()) return wanted.status();
    if (!*wanted) continue;
    ++rest.events;
    rest.text += event.delta().text();
    EXPECT_EQ(event.delta().token_ids_size(), event.delta().logprobs_size());
    for (int i = 0; i < event.delta().token_ids_size(); ++i) {
      rest.ids.push_back(event.delta().token_ids(i));
      EXPECT_EQ(event.delta().logprobs(i).logprob(), static_cast<float>(rest.ids.back()));
    }
  }
  return rest;
}

v1::GenerateResponse Started() {
  v1::GenerateResponse event;
  event.mutable_started();
  return event;
}
v1::GenerateResponse Progress() {
  v1::GenerateResponse event;
  event.mutable_progress();
  return event;
}
v1::GenerateResponse Final() {
  v1::GenerateResponse event;
  event.mutable_final();
  return event;
}

TEST(ReceivedOutput, WhateverTheCutsTheRestIsWhatFollows) {
  const std::vector<int32_t> ids = {5, 1 << 20, 7, 8, 9, 10};
  const std::string text = "abcdef";  // a character each
  for (size_t have = 0; have <= ids.size(); ++have) {
    for (size_t cut = 0; cut <= ids.size(); ++cut) {
      const auto rest = Cut(
          Having({ids.begin(), ids.begin() + static_cast<ptrdiff_t>(have)}, have),
          {Started(),
           Output({ids.begin(), ids.begin() + static_cast<ptrdiff_t>(cut)}, text.substr(0, cut)),
           Output({ids.begin() + static_cast<ptrdiff_t>(cut), ids.end()}, text.substr(cut)),
           Final()});
      ASSERT_TRUE(rest.ok()) << rest.status();
      EXPECT_EQ(rest->text, text.substr(have));
      EXPECT_EQ(rest->ids,
                std::vector<int32_t>(ids.begin() + static_cast<ptrdiff_t>(have), ids.end()));
    }
  }
}

TEST(ReceivedOutput, TextMayComeBeforeItsToken) {
  const auto rest = Cut(Having({1}, 3), {Output({1, 2}, "abcd"), Final()});
  ASSERT_TRUE(rest.ok()) << rest.status();
  EXPECT_EQ(rest->text, "d");
  EXPECT_EQ(rest->ids, std::vector<int32_t>{2});
}

TEST(ReceivedOutput, StartedIsKnownAndProgressComesBeforeOutput) {
  EXPECT_EQ(Cut(Having({}, 0), {Started(), Progress(), Output({1}, "a"), Final()})->events, 3);
  EXPECT_EQ(Cut(Having({1}, 1), {Started(), Progress(), Output({1}, "a"), Final()})->events, 1);
}

TEST(ReceivedOutput, SomethingElseHasDiverged) {
  const auto diverged = [](const Received& received, std::vector<v1::GenerateResponse> events) {
    const auto rest = Cut(received, std::move(events));
    return ReasonOf(rest.status()) == reason::kStreamDiverged;
  };
  EXPECT_TRUE(diverged(Having({1, 3}, 2), {Output({1, 2}, "ab"), Final()}));
  EXPECT_TRUE(diverged(Having({1, 2, 3}, 3), {Output({1, 2}, "ab"), Final()})) << "too little";
  EXPECT_TRUE(diverged(Having({1}, 2), {Output({1, 2}, "a"), Final()})) << "not its text";
  EXPECT_TRUE(diverged(Having({1}, 1), {Output({1}, "é"), Final()})) << "inside a character";
  EXPECT_FALSE(diverged(Having({1, 2}, 2), {Output({1, 2}, "ab"), Final()}));
}

TEST(ReceivedOutput, WhatCannotBeIsRefused) {
  v1::ResumeGenerationRequest request;
  request.set_after_sequence(3);
  EXPECT_EQ(ReasonOf(ReceivedOutput::Check(request)), reason::kFieldRequired);
  request.mutable_received();
  EXPECT_TRUE(ReceivedOutput::Check(request).ok());
  request.set_after_sequence(INT64_MAX);
  EXPECT_EQ(ReasonOf(ReceivedOutput::Check(request)), reason::kFieldOutOfRange);
  request.set_after_sequence(3);
  request.mutable_received()->set_tokens(-1);
  EXPECT_EQ(ReasonOf(ReceivedOutput::Check(request)), reason::kFieldOutOfRange);
  request.mutable_received()->set_tokens(1);
  request.mutable_received()->set_text_bytes(INT64_MIN);
  EXPECT_EQ(ReasonOf(ReceivedOutput::Check(request)), reason::kFieldOutOfRange);
}

}  // namespace
}  // namespace mneme::server
