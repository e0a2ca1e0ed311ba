// What a session has read and answered can be read back: in pages, after forks and rewinds, from
// old stores, and when the answer's end never arrived.
#include <algorithm>
#include <chrono>
#include <thread>

#include "server/core/storage.pb.h"
#include "tests/server/core/core_test_base.h"

namespace mneme::server {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Part = v1::TranscriptPart;

constexpr char kEmoji[] = "\xF0\x9F\x98\x80";
constexpr char kReplacement[] = "\xEF\xBF\xBD";

// Joined over all pages; parts and turns that a page has cut are whole again.
struct Transcript {
  std::vector<v1::TranscriptTurn> turns;
  int64_t version = 0;
  int held_bytes = 0;

  std::string text() const {
    std::string out;
    for (const auto& turn : turns) {
      for (const auto& part : turn.parts()) out += part.text();
    }
    return out;
  }
  std::vector<int32_t> ids() const {
    std::vector<int32_t> out;
    for (const auto& turn : turns) {
      for (const auto& part : turn.parts()) {
        out.insert(out.end(), part.token_ids().begin(), part.token_ids().end());
      }
    }
    return out;
  }
};

// "USER: text", or "ASSISTANT*: text" for what was generated.
std::vector<std::string> Shown(const v1::TranscriptTurn& turn) {
  std::vector<std::string> out;
  for (const auto& part : turn.parts()) {
    out.push_back(
        absl::StrCat(Part::Role_Name(part.role()), part.generated() ? "*" : "", ": ", part.text()));
  }
  return out;
}

// As Shown() has it. The tiny model's answers often end inside a character, which the next turn
// loses.
std::string Answer(const CollectingSink& turn, bool at_end) {
  const bool lost = !at_end && turn.final.held_bytes() > 0;
  return absl::StrCat("ASSISTANT*: ", turn.text, lost ? kReplacement : "");
}

class ReadTranscriptTest : public CoreTest {
 protected:
  void SetUp() override { Start(); }

  absl::StatusOr<v1::ReadTranscriptResponse> Read(const v1::ReadTranscriptRequest& request) {
    CallContext context;
    return core->ReadTranscript(context, request);
  }
  static v1::ReadTranscriptRequest Ask(const std::string& id, int page_size = 0) {
    v1::ReadTranscriptRequest request;
    request.set_name(id);
    request.set_page_size(page_size);
    return request;
  }
  Transcript ReadAll(const std::string& id, int page_size = 0) {
    Transcript out;
    auto request = Ask(id, page_size);
    int64_t position = 0;
    do {
      const auto page = Read(request);
      EXPECT_TRUE(page.ok()) << page.status();
      if (!page.ok()) return out;
      int64_t tokens = 0;
      for (const v1::TranscriptTurn& turn : page->turns()) {
        EXPECT_GT(turn.parts_size(), 0);
        for (const auto& part : turn.parts()) {
          EXPECT_EQ(part.position_tokens(), position);
          EXPECT_GT(part.num_tokens(), 0);
          position += part.num_tokens();
          tokens += part.num_tokens();
        }
        Add(turn, out);
      }
      if (page_size > 0) {
        EXPECT_LE(tokens, page_size);
      }
      out.version = page->version();
      out.held_bytes = page->held_bytes();
      request.set_page_token(page->next_page_token());
      if (request.page_token().empty()) {
        EXPECT_EQ(position, page->position_tokens());
      }
    } while (!request.page_token().empty());
    return out;
  }
  absl::Status Rewind(const std::string& id, int64_t position) {
    CallContext context;
    v1::RewindSessionRequest request;
    request.set_name(Name(id));
    request.set_position_tokens(position);
    return core->RewindSession(context, request).status();
  }
  void Fork(const std::string& name, const std::string& child) {
    CallContext context;
    v1::ForkSessionRequest request;
    request.set_name(name);
    request.add_session_ids(child);
    ASSERT_TRUE(core->ForkSession(context, request).ok());
  }
  std::vector<int32_t> Tokens(const std::string& text) {
    CallContext context;
    v1::TokenizeRequest request;
    request.set_text(text);
    const auto tokens = core->Tokenize(context, request);
    EXPECT_TRUE(tokens.ok()) << tokens.status();
    return {tokens->token_ids().begin(), tokens->token_ids().end()};
  }
  static v1::GenerateRequest Ids(const std::string& id, const std::vector<int32_t>& ids) {
    auto request = Request(id, "", 0);
    for (const int32_t i : ids) request.mutable_token_ids()->add_ids(i);
    return request;
  }

 private:
  static void Add(const v1::TranscriptTurn& turn, Transcript& out) {
    if (out.turns.empty() || out.turns.back().position_tokens() != turn.position_tokens()) {
      out.turns.push_back(turn);
      return;
    }
    v1::TranscriptTurn& whole = out.turns.back();
    EXPECT_EQ(whole.version(), turn.version());
    EXPECT_EQ(whole.num_tokens(), turn.num_tokens());
    for (const Part& part : turn.parts()) {
      Part& last = *whole.mutable_parts()->rbegin();
      const bool same = last.role() == part.role() && last.generated() == part.generated();
      if (!same) {
        *whole.add_parts() = part;
        continue;
      }
      last.set_num_tokens(last.num_tokens() + part.num_tokens());
      last.mutable_token_ids()->MergeFrom(part.token_ids());
      last.mutable_text()->append(part.text());
    }
  }
};

TEST_F(ReadTranscriptTest, EveryTurnWithTextIdsTimeVersionAndReason) {
  const absl::Time before = absl::Now() - absl::Seconds(1);
  Create("s");
  EXPECT_THAT(ReadAll("s").turns, IsEmpty());
  const auto first = Say("s", "The first question.", 9);
  auto stopping = Request("s", " The second one.", 30);
  stopping.add_stop_token_ids(Say("", "x", 1).tokens[0]);
  const auto second = MustGenerate(stopping);
  const auto silent = Say("s", "only read", 0);
  Say("s", "", 0);  // reads nothing and answers nothing

  const Transcript transcript = ReadAll("s");
  ASSERT_EQ(transcript.turns.size(), 3u);
  EXPECT_EQ(transcript.version, 4);
  EXPECT_THAT(Shown(transcript.turns[0]),
              ElementsAre("PROMPT: The first question.", Answer(first, /*at_end=*/false)));
  EXPECT_EQ(transcript.turns[0].version(), first.final.version());
  EXPECT_EQ(transcript.turns[0].finish_reason(), v1::MAX_TOKENS);
  EXPECT_EQ(transcript.turns[1].finish_reason(), second.final.finish_reason());
  EXPECT_EQ(transcript.turns[1].position_tokens(), first.final.position_tokens());
  EXPECT_EQ(transcript.turns[1].num_tokens(),
            second.final.position_tokens() - first.final.position_tokens());
  EXPECT_THAT(Shown(transcript.turns[2]), ElementsAre("PROMPT: only read"));
  EXPECT_EQ(transcript.turns[2].version(), silent.final.version());
  for (const auto& turn : transcript.turns) {
    const absl::Time time = absl::FromUnixSeconds(turn.commit_time().seconds());
    EXPECT_GE(time, before);
    EXPECT_LE(time, absl::Now());
  }
  const auto& answer = transcript.turns[0].parts(1).token_ids();
  EXPECT_EQ(std::vector<int32_t>(answer.begin(), answer.end()), first.tokens);
}

TEST_F(ReadTranscriptTest, PagesOfAnySizeGiveTheSame) {
  Create("s");
  for (int i = 0; i < 6; ++i) Say("s", absl::StrCat("Turn ", i, " \xE2\x82\xAC ", kEmoji), 5);
  const Transcript whole = ReadAll("s");
  for (const int page_size : {1, 2, 3, 7, 50}) {
    SCOPED_TRACE(page_size);
    const Transcript paged = ReadAll("s", page_size);
    EXPECT_EQ(paged.ids(), whole.ids());
    EXPECT_EQ(paged.text(), whole.text());
    ASSERT_EQ(paged.turns.size(), whole.turns.size());
    for (size_t i = 0; i < whole.turns.size(); ++i) {
      EXPECT_EQ(Shown(paged.turns[i]), Shown(whole.turns[i]));
    }
  }
}

TEST_F(ReadTranscriptTest, BeginsAnywhere) {
  Create("s");
  const auto turn = Say("s", "Somewhere in the middle", 4);
  const auto ids = ReadAll("s").ids();
  const auto from = [&](const v1::ReadTranscriptRequest& request) {
    Transcript out;
    const auto page = Read(request);
    EXPECT_TRUE(page.ok()) << page.status();
    out.turns.assign(page->turns().begin(), page->turns().end());
    return out.ids();
  };
  auto request = Ask("s");
  request.set_position_tokens(3);
  EXPECT_EQ(from(request), std::vector<int32_t>(ids.begin() + 3, ids.end()));
  request.set_position_tokens(turn.final.position_tokens());
  EXPECT_THAT(from(request), IsEmpty());
  request.set_last_tokens(4);
  EXPECT_EQ(from(request), turn.tokens);
  request.set_last_tokens(1'000'000);
  EXPECT_EQ(from(request), ids);
}

TEST_F(ReadTranscriptTest, ViewsLeaveOutWhatIsNotWanted) {
  Create("s");
  Say("s", "text", 3);
  auto request = Ask("s");
  request.set_view(v1::ReadTranscriptRequest::TEXT);
  const auto text = Read(request);
  request.set_view(v1::ReadTranscriptRequest::TOKEN_IDS);
  const auto ids = Read(request);
  ASSERT_TRUE(text.ok() && ids.ok());
  EXPECT_EQ(text->turns(0).parts(0).token_ids_size(), 0);
  EXPECT_EQ(text->turns(0).parts(0).text(), "text");
  EXPECT_EQ(ids->turns(0).parts(0).text(), "");
  EXPECT_EQ(ids->turns(0).parts(0).token_ids_size(), ids->turns(0).parts(0).num_tokens());

  // Ids can be read where the model that would spell them is gone.
  config.models[0].name = "renamed";
  Start();
  EXPECT_TRUE(Read(request).ok());
  EXPECT_EQ(ReasonOf(Read(Ask("s")).status()), reason::kModelNotLoaded);
}

TEST_F(ReadTranscriptTest, AnAnswerWhoseEndWasLostIsThere) {
  Create("s");
  CollectingSink sink;
  sink.on_event = [](const v1::GenerateResponse& event) { return event.has_started(); };
  auto request = Request("s", "What did you say?", 12);
  request.set_on_disconnect(v1::GenerateRequest::CONTINUE);
  EXPECT_EQ(Generate(request, sink).code(), absl::StatusCode::kCancelled);
  while (Get("s").version() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  Create("twin");
  const auto same = Say("twin", "What did you say?", 12);
  const Transcript transcript = ReadAll("s");
  ASSERT_EQ(transcript.turns.size(), 1u);
  EXPECT_EQ(transcript.turns[0].version(), sink.started.version() + 1);
  EXPECT_EQ(Shown(transcript.turns[0]).back(), Answer(same, /*at_end=*/true));
  EXPECT_EQ(transcript.turns[0].finish_reason(), v1::MAX_TOKENS);
}

TEST_F(ReadTranscriptTest, ACancelledAnswerSaysSo) {
  Create("s");
  CollectingSink sink;
  sink.on_event = [&](const v1::GenerateResponse& event) {
    if (!event.has_delta()) return true;
    CallContext context;
    v1::CancelGenerationRequest cancel;
    cancel.set_name(sink.started.generation());
    EXPECT_TRUE(core->CancelGeneration(context, cancel).ok());
    return true;
  };
  ASSERT_TRUE(Generate(Request("s", "Go on forever", 60000), sink).ok());
  const Transcript transcript = ReadAll("s");
  EXPECT_EQ(transcript.turns.at(0).finish_reason(), v1::CANCELLED);
  EXPECT_EQ(Shown(transcript.turns[0]).back(), Answer(sink, /*at_end=*/true));
}

TEST_F(ReadTranscriptTest, MessagesAreToldFromWhatTheTemplatePutsAroundThem) {
  Create("s");
  auto request = Request("s", "", 4);
  for (const auto& [role, content] :
       {std::pair("system", "Be brief."), std::pair("user", "Hello\nthere")}) {
    auto* message = request.mutable_messages()->add_messages();
    message->set_role(role);
    message->set_content(content);
  }
  const auto answer = MustGenerate(request);
  request.mutable_messages()->mutable_messages()->DeleteSubrange(0, 1);
  MustGenerate(request);
  const Transcript transcript = ReadAll("s");
  ASSERT_EQ(transcript.turns.size(), 2u);
  for (const bool first : {true, false}) {
    std::vector<std::string> said;
    for (const std::string& part : Shown(transcript.turns[first ? 0 : 1])) {
      if (!part.starts_with("TEMPLATE")) said.push_back(part);
    }
    if (!first) {
      EXPECT_EQ(said.at(0), "USER: Hello\nthere");
      continue;
    }
    EXPECT_THAT(said, ElementsAre("SYSTEM: Be brief.", "USER: Hello\nthere",
                                  Answer(answer, /*at_end=*/false)));
  }
}

TEST_F(ReadTranscriptTest, IngestedTextIsADocumentWhoseCommitsAreTurns) {
  Create("s");
  CallContext context;
  v1::IngestRequest::Start start;
  start.set_session("s");
  start.set_ingest_id("book");
  start.set_commit_every_tokens(100);
  auto ingest = core->StartIngest(context, start);
  ASSERT_TRUE(ingest.ok()) << ingest.status();
  std::string text;
  for (int i = 0; i < 400; ++i) absl::StrAppend(&text, "word", i, " ");
  v1::IngestRequest::Data data;
  data.set_data(text);
  data.set_last(true);
  ASSERT_TRUE((*ingest)->Write(data).ok());
  ingest->reset();

  const Transcript transcript = ReadAll("s");
  EXPECT_GT(transcript.turns.size(), 1u);
  EXPECT_EQ(transcript.text(), text);
  for (const auto& turn : transcript.turns) {
    EXPECT_EQ(turn.parts().rbegin()->role(), Part::DOCUMENT);
    EXPECT_EQ(turn.finish_reason(), v1::FINISH_REASON_UNSPECIFIED);
  }
}

TEST_F(ReadTranscriptTest, ForksAndSnapshotsReadTheirOwnPast) {
  Create("s");
  const auto first = Say("s", "Shared past", 3);
  Fork(Name("s"), "child");
  Say("s", "the parent's", 3);
  Say("child", "the child's", 3);
  EXPECT_EQ(Shown(ReadAll("s").turns.at(1))[0], "PROMPT: the parent's");
  EXPECT_EQ(Shown(ReadAll("child").turns.at(1))[0], "PROMPT: the child's");
  EXPECT_EQ(Shown(ReadAll("child").turns[0]), Shown(ReadAll("s").turns[0]));
  const Transcript snapshot = ReadAll(absl::StrCat("s@v", first.final.version()));
  EXPECT_EQ(snapshot.turns.size(), 1u);
  EXPECT_EQ(snapshot.version, first.final.version());
  CallContext context;
  ASSERT_TRUE(Delete("s").ok());
  EXPECT_EQ(ReadAll("child").turns.size(), 2u);
  EXPECT_EQ(ReasonOf(Read(Ask("s")).status()), reason::kSessionDeleted);
}

TEST_F(ReadTranscriptTest, ARewindCutsTheTurnItGoesThrough) {
  Create("s");
  const auto first = Say("s", "Before", 5);
  const auto second = Say("s", " and after", 8);
  ASSERT_TRUE(Rewind("s", second.final.position_tokens() - 3).ok());
  Transcript cut = ReadAll("s");
  ASSERT_EQ(cut.turns.size(), 2u);
  EXPECT_EQ(cut.turns[0].finish_reason(), v1::MAX_TOKENS);
  EXPECT_EQ(cut.turns[1].finish_reason(), v1::FINISH_REASON_UNSPECIFIED);
  EXPECT_EQ(cut.turns[1].parts().rbegin()->num_tokens(), 5);
  const auto third = Say("s", "Anew", 2);
  cut = ReadAll("s");
  ASSERT_EQ(cut.turns.size(), 3u);
  EXPECT_EQ(cut.turns[2].version(), third.final.version());
  EXPECT_EQ(Shown(cut.turns[2])[0], "PROMPT: Anew");
  EXPECT_EQ(ReadAll("s@before-rewind").turns.at(1).finish_reason(), v1::MAX_TOKENS);
  ASSERT_TRUE(Rewind("s", 0).ok());
  EXPECT_THAT(ReadAll("s").turns, IsEmpty());
}

TEST_F(ReadTranscriptTest, PagesGoOnAfterAnotherTurnButNotAfterARewind) {
  Create("s");
  Say("s", "A few words to be read", 6);
  const auto page = Read(Ask("s", 4));
  ASSERT_TRUE(page.ok());
  Say("s", "more", 2);
  auto next = Ask("s", 4);
  next.set_page_token(page->next_page_token());
  const auto second = Read(next);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->turns(0).parts(0).position_tokens(), 4);
  ASSERT_TRUE(Rewind("s", 2).ok());
  Say("s", "something else that is long enough", 6);
  EXPECT_EQ(ReasonOf(Read(next).status()), reason::kVersionMismatch);
  ASSERT_TRUE(Read(Ask("s", 4)).ok());

  // Of another session, view or page size.
  next.set_view(v1::ReadTranscriptRequest::TEXT);
  EXPECT_EQ(ReasonOf(Read(next).status()), reason::kPageTokenInvalid);
  // A fork's pages are not cut off by what its parent did before.
  Fork(Name("s"), "child");
  EXPECT_GT(ReadAll("child", 3).ids().size(), 6u);
}

TEST_F(ReadTranscriptTest, ACharacterStandsWithTheTokenThatCompletesIt) {
  const std::vector<int32_t> emoji = Tokens(kEmoji);
  ASSERT_GE(emoji.size(), 3u);
  const std::vector<int32_t> begun(emoji.begin(), emoji.end() - 1);
  Create("s");
  MustGenerate(Ids("s", begun));
  EXPECT_EQ(ReadAll("s").text(), "");
  EXPECT_EQ(ReadAll("s").held_bytes, static_cast<int>(begun.size()));
  MustGenerate(Ids("s", {emoji.back()}));
  for (const int page_size : {0, 1, 2}) {
    const Transcript whole = ReadAll("s", page_size);
    EXPECT_THAT(Shown(whole.turns.at(0)), ElementsAre("PROMPT: ")) << page_size;
    EXPECT_THAT(Shown(whole.turns.at(1)), ElementsAre(absl::StrCat("PROMPT: ", kEmoji)));
    EXPECT_EQ(whole.held_bytes, 0);
  }
  // What nothing completes stands in the turn that began it.
  MustGenerate(Ids("s", begun));
  MustGenerate(Ids("s", Tokens("x")));
  for (const int page_size : {0, 1, 2}) {
    const Transcript lost = ReadAll("s", page_size);
    EXPECT_THAT(Shown(lost.turns.at(2)), ElementsAre(absl::StrCat("PROMPT: ", kReplacement)))
        << page_size;
    EXPECT_THAT(Shown(lost.turns.at(3)), ElementsAre("PROMPT: x"));
  }
}

TEST_F(ReadTranscriptTest, AStoreOfAServerThatKeptNoTurnsIsRead) {
  Create("s");
  Say("s", "From another age", 5);
  const Transcript before = ReadAll("s");
  const memstore::Key key{"default", "sessions/s"};
  auto record = store->store->Get(key);
  ASSERT_TRUE(record.ok());
  storage::StoredSession data;
  ASSERT_TRUE(data.ParseFromString(record->value));
  memstore::Transaction transaction;
  memstore::Put put{.key = key, .expected_version = record->version, .chunks = record->chunks};
  for (storage::TranscriptChunk& chunk : *data.mutable_head()->mutable_transcript()) {
    memstore::ChunkId id{};
    std::copy(chunk.id().begin(), chunk.id().end(), id.begin());
    memstore::NewChunk old;
    old.bytes = store->store->GetChunk("default", id)->substr(0, chunk.num_tokens() * 4);
    old.id = memstore::HashChunk(old.bytes);
    chunk.set_id(old.id.data(), old.id.size());
    chunk.clear_turn_bytes();
    put.chunks.push_back(old.id);
    transaction.new_chunks.push_back(std::move(old));
  }
  put.value = data.SerializeAsString();
  transaction.puts.push_back(std::move(put));
  ASSERT_TRUE(store->store->Commit(transaction).ok());

  Start();
  Transcript old = ReadAll("s");
  EXPECT_EQ(old.ids(), before.ids());
  EXPECT_EQ(old.text(), before.text());
  ASSERT_EQ(old.turns.size(), 1u);
  EXPECT_EQ(old.turns[0].version(), 0);
  EXPECT_FALSE(old.turns[0].has_commit_time());
  EXPECT_EQ(old.turns[0].parts(0).role(), Part::ROLE_UNSPECIFIED);
  Say("s", "and today", 3);
  old = ReadAll("s", 4);
  ASSERT_EQ(old.turns.size(), 2u);
  EXPECT_EQ(old.turns[0].num_tokens(), static_cast<int64_t>(before.ids().size()));
  EXPECT_EQ(Shown(old.turns[1])[0], "PROMPT: and today");
}

TEST_F(ReadTranscriptTest, RefusesWhatCannotBeRead) {
  Create("bare", [](v1::Session& session) { session.set_transcript(v1::Session::NONE); });
  Say("bare", "nothing is kept", 2);
  EXPECT_EQ(ReasonOf(Read(Ask("bare")).status()), reason::kTranscriptNotKept);
  Create("s");
  Say("s", "short", 2);
  auto request = Ask("s");
  request.set_position_tokens(1000);
  EXPECT_EQ(ReasonOf(Read(request).status()), reason::kPositionOutOfRange);
  EXPECT_EQ(Metadata(Read(request).status(), "position_tokens"),
            absl::StrCat(Get("s").position_tokens()));
  request.set_position_tokens(-1);
  request.set_page_size(-1);
  request.set_view(static_cast<v1::ReadTranscriptRequest::View>(9));
  EXPECT_THAT(BadFields(Read(request).status()),
              ElementsAre("page_size", "position_tokens", "view"));
  EXPECT_EQ(ReasonOf(Read(Ask("no-such")).status()), reason::kSessionNotFound);
  EXPECT_EQ(ReasonOf(Read(Ask("s@v99")).status()), reason::kSnapshotNotFound);
  EXPECT_EQ(ReasonOf(Read(Ask("tenants/other/sessions/s")).status()), reason::kAccessDenied);
}

TEST_F(ReadTranscriptTest, ADamagedSessionCanStillBeReadBack) {
  Create("s");
  const auto turn = Say("s", "Remember this", 3);
  const memstore::Key key{"default", "sessions/s"};
  auto record = store->store->Get(key);
  storage::StoredSession data;
  ASSERT_TRUE(record.ok() && data.ParseFromString(record->value));
  data.set_damaged(true);
  memstore::Transaction transaction;
  transaction.puts.push_back({.key = key,
                              .expected_version = record->version,
                              .value = data.SerializeAsString(),
                              .chunks = record->chunks});
  ASSERT_TRUE(store->store->Commit(transaction).ok());
  EXPECT_EQ(ReasonOf(Generate(Request("s", "x", 1), *std::make_unique<CollectingSink>())),
            reason::kSessionDamaged);
  EXPECT_EQ(Shown(ReadAll("s").turns.at(0)).back(), Answer(turn, /*at_end=*/true));
}

}  // namespace
}  // namespace mneme::server
