#include "client/cli/transcript.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cli/output.h"
#include "client/utf8.h"

namespace mneme::cli {
namespace {

constexpr size_t kReminderTurns = 3;
constexpr int64_t kReminderTokens = 1500;  // that many are asked for
constexpr size_t kReminderBytes = 1000;    // of one speaker's text

// `more` goes on where `turn` was cut.
void Append(v1::TranscriptTurn& turn, const v1::TranscriptTurn& more) {
  for (const v1::TranscriptPart& part : more.parts()) {
    if (turn.parts_size() > 0) {
      v1::TranscriptPart& last = *turn.mutable_parts(turn.parts_size() - 1);
      if (last.role() == part.role() && last.generated() == part.generated()) {
        last.set_num_tokens(last.num_tokens() + part.num_tokens());
        last.mutable_token_ids()->MergeFrom(part.token_ids());
        last.mutable_text()->append(part.text());
        continue;
      }
    }
    *turn.add_parts() = part;
  }
}

std::string RoleName(const v1::TranscriptPart& part) {
  return part.role() == v1::TranscriptPart::ROLE_UNSPECIFIED
             ? "text"
             : absl::AsciiStrToLower(v1::TranscriptPart::Role_Name(part.role()));
}

struct Spoken {
  std::string role, text;
};

// Neighbours of one role are one: an answer may begin with what was given to it.
std::vector<Spoken> SpokenIn(const v1::TranscriptTurn& turn, bool with_template) {
  std::vector<Spoken> all;
  for (const v1::TranscriptPart& part : turn.parts()) {
    if (part.role() == v1::TranscriptPart::TEMPLATE && !with_template) continue;
    const std::string role = RoleName(part);
    if (all.empty() || all.back().role != role) all.push_back({role, ""});
    all.back().text += part.text();
  }
  return all;
}

// The last `max_bytes` of `text`, cut before a character.
std::string EndOf(const std::string& text, size_t max_bytes) {
  if (text.size() <= max_bytes) return text;
  size_t begin = text.size() - max_bytes;
  while (begin < text.size() && client::Utf8CharacterBytes(text.substr(begin, 4)) == 0) ++begin;
  return absl::StrCat("... ", text.substr(begin));
}

}  // namespace

absl::Status ForEachTurn(const client::Client& client, v1::ReadTranscriptRequest request,
                         const std::function<void(const v1::TranscriptTurn&)>& turn) {
  std::optional<v1::TranscriptTurn> waiting;  // the next page may go on with it
  do {
    auto page = client.ReadTranscript(request);
    if (!page.ok()) return page.status();
    for (const v1::TranscriptTurn& next : page->turns()) {
      if (waiting && waiting->position_tokens() == next.position_tokens()) {
        Append(*waiting, next);
        continue;
      }
      if (waiting) turn(*waiting);
      waiting = next;
    }
    request.set_page_token(page->next_page_token());
  } while (!request.page_token().empty());
  if (waiting) turn(*waiting);
  return absl::OkStatus();
}

std::string TurnHeading(const v1::TranscriptTurn& turn) {
  std::vector<std::string> words;
  if (turn.version() > 0) words.push_back(absl::StrCat("version ", turn.version()));
  if (turn.has_commit_time()) {
    words.push_back(absl::FormatTime("%Y-%m-%d %H:%M:%S",
                                     absl::FromUnixSeconds(turn.commit_time().seconds()),
                                     absl::LocalTimeZone()));
  }
  words.push_back(absl::StrCat("position ", turn.position_tokens()));
  words.push_back(absl::StrCat(HumanCount(turn.num_tokens()), " tokens"));
  if (turn.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
    words.push_back(absl::AsciiStrToLower(v1::FinishReason_Name(turn.finish_reason())));
  }
  return absl::StrJoin(words, ", ");
}

std::string TurnText(const v1::TranscriptTurn& turn, bool with_template) {
  std::string text;
  for (const Spoken& spoken : SpokenIn(turn, with_template)) {
    absl::StrAppend(&text, spoken.role, ": ", spoken.text, "\n");
  }
  return text;
}

std::string Reminder(const client::Client& client, const std::string& session) {
  v1::ReadTranscriptRequest request;
  request.set_name(session);
  request.set_last_tokens(kReminderTokens);
  request.set_view(v1::ReadTranscriptRequest::TEXT);
  std::vector<std::string> turns;
  // Without a transcript there is nothing to be reminded of, and that is no failure.
  ForEachTurn(client, request, [&](const v1::TranscriptTurn& turn) {
    std::string text;
    for (const Spoken& spoken : SpokenIn(turn, /*with_template=*/false)) {
      if (spoken.role == "document") {
        absl::StrAppend(&text, "document: (", HumanCount(turn.num_tokens()), " tokens)\n");
      } else {
        absl::StrAppend(&text, spoken.role, ": ", EndOf(spoken.text, kReminderBytes), "\n");
      }
    }
    turns.push_back(text);
  }).IgnoreError();
  const size_t first = turns.size() - std::min(turns.size(), kReminderTurns);
  return absl::StrJoin(turns.begin() + static_cast<std::ptrdiff_t>(first), turns.end(), "");
}

}  // namespace mneme::cli
