#include "server/core/read_transcript.h"

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/core/status_macros.h"
#include "server/core/errors.h"
#include "server/core/session_fields.h"
#include "server/core/session_names.h"
#include "server/core/transcript.h"
#include "server/core/utf8_stream.h"

namespace mneme::server {
namespace {

using View = v1::ReadTranscriptRequest;

constexpr int64_t kDefaultPageTokens = 4096;
// With text of up to a hundred bytes a token, half of what gRPC clients take as one message.
constexpr int64_t kMaxPageTokens = 16384;
// An unfinished character has at most three bytes, and a token with text one at least.
constexpr int64_t kTokensBefore = 3;

// What a page is read from: a session's head or a snapshot.
struct Source {
  SessionRecord session;
  storage::Point point;
  bool is_head = true;
};

absl::StatusOr<Source> FindSource(Parts& parts, const SessionName& name,
                                  const std::optional<SnapshotName>& snapshot) {
  Source out;
  MNEME_ASSIGN_OR_RETURN(out.session, parts.sessions->GetUsable(name, false));
  if (out.session.data.no_transcript()) {
    return WithResource(
        Error(absl::StatusCode::kFailedPrecondition, reason::kTranscriptNotKept,
              "the session was created without a transcript; its text cannot be read back"),
        "mneme.v1.Session", name.str());
  }
  out.point = out.session.data.head();
  if (snapshot.has_value()) {
    MNEME_ASSIGN_OR_RETURN(const auto stored, parts.sessions->GetSnapshot(*snapshot));
    out.point = stored.point();
    out.is_head = false;
  }
  return out;
}

// Where the next page begins, and of which transcript.
struct Bookmark {
  std::string uid;
  int64_t version = 0;
  int64_t position = 0;

  std::string str() const { return absl::StrCat(uid, " ", version, " ", position); }
  // Of a token that this server has made.
  static Bookmark Parse(const std::string& text) {
    const std::vector<std::string> fields = absl::StrSplit(text, ' ');
    Bookmark out;
    if (fields.size() != 3) return out;
    out.uid = fields[0];
    (void)absl::SimpleAtoi(fields[1], &out.version);
    (void)absl::SimpleAtoi(fields[2], &out.position);
    return out;
  }
  // Whether the pages before this one are still the beginning of `source`'s transcript.
  bool Fits(const Source& source) const {
    return uid == source.session.data.uid() &&
           (source.is_head ? version >= source.session.data.rewind_version()
                           : version == source.point.version()) &&
           position <= source.point.position_tokens();
  }
};

absl::StatusOr<int64_t> StartOf(const v1::ReadTranscriptRequest& request, int64_t end) {
  switch (request.start_case()) {
    case v1::ReadTranscriptRequest::kPositionTokens:
      if (request.position_tokens() <= end) return request.position_tokens();
      return Error(absl::StatusCode::kOutOfRange, reason::kPositionOutOfRange,
                   absl::StrCat("position_tokens is ", request.position_tokens(),
                                ", the transcript ends at ", end),
                   {{"position_tokens", absl::StrCat(end)}});
    case v1::ReadTranscriptRequest::kLastTokens:
      return std::max<int64_t>(0, end - request.last_tokens());
    case v1::ReadTranscriptRequest::START_NOT_SET:
      break;
  }
  return 0;
}

absl::Status Check(const v1::ReadTranscriptRequest& request) {
  FieldErrors errors;
  const auto not_negative = [&](int64_t value, const char* field) {
    if (value >= 0) return;
    errors.Add(field, absl::StrCat("must not be negative, is ", value), reason::kFieldOutOfRange);
  };
  not_negative(request.page_size(), "page_size");
  not_negative(request.position_tokens(), "position_tokens");
  not_negative(request.last_tokens(), "last_tokens");
  if (!View::View_IsValid(request.view())) {
    errors.Add("view", "is not one of the values of View");
  }
  return errors.ToStatus();
}

// Tokens [begin, end) of a transcript and their texts.
class Page {
 public:
  // `tokenizer`: null if no text is wanted.
  Page(const engine::Tokenizer* tokenizer, int64_t begin, int64_t end)
      : tokenizer_(tokenizer), begin_(begin), end_(end) {}

  absl::Status Read(const TranscriptList& list, const ReadChunk& read);
  v1::TranscriptTurn Show(const storage::StoredTurn& turn, bool with_ids);
  const std::vector<storage::StoredTurn>& turns() const { return turns_; }

 private:
  // Whether the token at `position` may go on with a character that is not complete.
  bool Continues(int64_t position) const {
    const std::string bytes = tokenizer_->TokenBytes(id(position));
    return !bytes.empty() && (static_cast<unsigned char>(bytes[0]) & 0xC0) == 0x80;
  }
  // Of the next token, of whose bytes some may be the template's. Calls go through the page in
  // order.
  std::string Text(int64_t position, size_t lead_bytes, size_t trail_bytes);

  int32_t id(int64_t position) const { return ids_[position - ids_begin_]; }
  int64_t ids_end() const { return ids_begin_ + static_cast<int64_t>(ids_.size()); }

  const engine::Tokenizer* const tokenizer_;
  const int64_t begin_, end_;
  int64_t ids_begin_ = 0;  // some before the page, and one behind it
  std::vector<int32_t> ids_;
  std::vector<storage::StoredTurn> turns_;
  Utf8Stream utf8_;
};

absl::Status Page::Read(const TranscriptList& list, const ReadChunk& read) {
  if (begin_ == end_) return absl::OkStatus();
  ids_begin_ = std::max<int64_t>(0, begin_ - kTokensBefore);
  // A list that ends before `end_` is refused.
  const int64_t ids_end = std::clamp(TranscriptTokens(list), end_, end_ + 1);
  MNEME_ASSIGN_OR_RETURN(ids_, ReadTranscriptIds(list, ids_begin_, ids_end, read));
  MNEME_ASSIGN_OR_RETURN(turns_, ReadTranscriptTurns(list, begin_, end_, read));
  if (tokenizer_ == nullptr) return absl::OkStatus();
  const auto limit = static_cast<int32_t>(tokenizer_->vocab_size());
  if (std::any_of(ids_.begin(), ids_.end(), [&](int32_t i) { return i < 0 || i >= limit; })) {
    return Error(absl::StatusCode::kDataLoss, reason::kStateCorrupt,
                 "the stored transcript has a token that its model does not have");
  }
  if (Continues(begin_)) {
    const auto before = std::span(ids_).first(begin_ - ids_begin_);
    utf8_ = Utf8Stream(UnfinishedCharacter(*tokenizer_, "", before));
  }
  return absl::OkStatus();
}

std::string Page::Text(int64_t position, size_t lead_bytes, size_t trail_bytes) {
  std::string bytes = tokenizer_->TokenBytes(id(position));
  bytes.erase(bytes.size() - std::min(trail_bytes, bytes.size()));
  bytes.erase(0, lead_bytes);
  std::string text = utf8_.Feed(bytes);
  // A character that nothing completes stands where it began, whatever the page.
  const int64_t next = position + 1;
  if (utf8_.pending() && next < ids_end() && !Continues(next)) text += utf8_.Flush();
  return text;
}

v1::TranscriptTurn Page::Show(const storage::StoredTurn& turn, bool with_ids) {
  v1::TranscriptTurn out;
  out.set_version(turn.version());
  if (turn.commit_time_us() != 0) {
    SetTimestamp(turn.commit_time_us(), out.mutable_commit_time());
  }
  out.set_finish_reason(turn.finish_reason());
  out.set_position_tokens(turn.position_tokens());
  out.set_num_tokens(TurnTokens(turn));
  int64_t run_begin = turn.position_tokens();
  for (const storage::StoredRun& run : turn.runs()) {
    const int64_t run_end = run_begin + run.num_tokens();
    const int64_t from = std::max(run_begin, begin_), to = std::min(run_end, end_);
    if (from < to) {
      v1::TranscriptPart& part = *out.add_parts();
      part.set_role(run.role());
      part.set_generated(run.generated());
      part.set_position_tokens(from);
      part.set_num_tokens(to - from);
      for (int64_t at = from; at < to; ++at) {
        if (with_ids) part.add_token_ids(id(at));
        if (tokenizer_ == nullptr) continue;
        part.mutable_text()->append(Text(at, at == run_begin ? run.lead_bytes() : 0,
                                         at == run_end - 1 ? run.trail_bytes() : 0));
      }
    }
    run_begin = run_end;
  }
  return out;
}

}  // namespace

absl::StatusOr<v1::ReadTranscriptResponse> ReadTranscript(
    Parts& parts, CallContext& context, const v1::ReadTranscriptRequest& request) {
  MNEME_ASSIGN_OR_RETURN(const SourceName from,
                         ParseSourceName(request.name(), "name", context.tenant));
  const SessionName& name = from.session;
  const std::optional<SnapshotName>& snapshot = from.snapshot;
  MNEME_RETURN_IF_ERROR(Check(request));
  const std::string scope =
      absl::StrCat("transcript ", snapshot ? snapshot->str() : name.str(), " ", request.view());
  std::optional<Bookmark> bookmark;
  if (!request.page_token().empty()) {
    MNEME_ASSIGN_OR_RETURN(const std::string text, ReadPageToken(scope, request.page_token()));
    bookmark = Bookmark::Parse(text);
  }
  const int64_t page_tokens = request.page_size() == 0
                                  ? kDefaultPageTokens
                                  : std::min<int64_t>(request.page_size(), kMaxPageTokens);
  const ReadChunk read = [&](const memstore::ChunkId& id) {
    return parts.sessions->ReadChunk(name.tenant, id);
  };
  while (true) {
    MNEME_ASSIGN_OR_RETURN(const Source source, FindSource(parts, name, snapshot));
    if (bookmark.has_value() && !bookmark->Fits(source)) {
      return VersionMismatch(source.session, parts.metrics);
    }
    const engine::Tokenizer* tokenizer = nullptr;
    if (request.view() != View::TOKEN_IDS) {
      MNEME_ASSIGN_OR_RETURN(const Model* model,
                             parts.models->ForSession(context, source.session.data));
      tokenizer = &model->tokenizer();
    }
    const int64_t total = source.point.position_tokens();
    int64_t begin = 0;
    if (bookmark.has_value()) {
      begin = bookmark->position;
    } else {
      MNEME_ASSIGN_OR_RETURN(begin, StartOf(request, total));
    }
    const int64_t end = std::min(begin + page_tokens, total);
    Page page(tokenizer, begin, end);
    if (const absl::Status status = page.Read(source.point.transcript(), read); !status.ok()) {
      // The session's writer may have merged chunks since, so that those seen here are gone.
      if (!absl::IsDataLoss(status)) return status;
      MNEME_ASSIGN_OR_RETURN(const Source again, FindSource(parts, name, snapshot));
      if (again.session.record_version == source.session.record_version) return status;
      continue;
    }
    v1::ReadTranscriptResponse response;
    for (const storage::StoredTurn& turn : page.turns()) {
      *response.add_turns() = page.Show(turn, request.view() != View::TEXT);
    }
    response.set_version(source.point.version());
    response.set_position_tokens(total);
    response.set_held_bytes(static_cast<int32_t>(source.point.unfinished_character().size()));
    if (end < total) {
      response.set_next_page_token(MakePageToken(
          scope, Bookmark{source.session.data.uid(), source.point.version(), end}.str()));
    }
    return response;
  }
}

}  // namespace mneme::server
