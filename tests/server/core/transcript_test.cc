// The transcript's chunks against plain vectors of ids and turns.
#include "server/core/transcript.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "server/core/errors.h"

namespace mneme::server {
namespace {

using ::testing::ElementsAre;

class TranscriptTest : public ::testing::Test {
 protected:
  const ReadChunk read_ = [this](const memstore::ChunkId& id) -> absl::StatusOr<std::string> {
    ++reads_;
    return chunks_.at(id);
  };

  void Store(std::vector<memstore::NewChunk> fresh) {
    for (auto& chunk : fresh) chunks_[chunk.id] = std::move(chunk.bytes);
  }
  // A turn of `tokens`, as two runs where it can be.
  void Append(int64_t tokens) {
    std::vector<int32_t> ids(tokens);
    for (auto& id : ids) id = static_cast<int32_t>(random_() % 50000);
    storage::StoredTurn turn;
    turn.set_position_tokens(static_cast<int64_t>(all_.size()));
    turn.set_version(++version_);
    turn.set_finish_reason(v1::EOS);
    for (const int64_t n : {tokens / 3, tokens - tokens / 3}) {
      if (n == 0) continue;
      turn.add_runs()->set_num_tokens(n);
      turn.mutable_runs()->rbegin()->set_trail_bytes(1);
    }
    std::vector<memstore::NewChunk> fresh;
    ASSERT_TRUE(AppendTranscript(list_, ids, turn, read_, fresh).ok());
    Store(std::move(fresh));
    all_.insert(all_.end(), ids.begin(), ids.end());
    if (tokens > 0) turns_.push_back(turn);
  }
  // What a server that kept no turns has written.
  void AppendOld(int64_t tokens) {
    Append(tokens);
    turns_.pop_back();
    storage::TranscriptChunk& last = *list_.rbegin();
    std::string& bytes = chunks_[ToChunkId(last.id())];
    bytes.resize(last.num_tokens() * 4);
    last.clear_turn_bytes();
  }

  // The versions of the turns that [begin, end) overlaps.
  std::vector<int64_t> Versions(const TranscriptList& list, int64_t begin, int64_t end) {
    std::vector<int64_t> out;
    const auto turns = ReadTranscriptTurns(list, begin, end, read_);
    EXPECT_TRUE(turns.ok()) << turns.status();
    if (!turns.ok()) return out;
    for (const auto& turn : *turns) out.push_back(turn.version());
    return out;
  }
  std::vector<int64_t> Expected(int64_t begin, int64_t end) const {
    std::vector<int64_t> out;
    for (const auto& turn : turns_) {
      if (turn.position_tokens() < end && turn.position_tokens() + TurnTokens(turn) > begin) {
        out.push_back(turn.version());
      }
    }
    return out;
  }
  int64_t size() const { return static_cast<int64_t>(all_.size()); }
  int64_t Random(int64_t below) { return static_cast<int64_t>(random_() % below); }

  std::mt19937 random_{11};
  std::map<memstore::ChunkId, std::string> chunks_;
  TranscriptList list_;
  std::vector<int32_t> all_;
  std::vector<storage::StoredTurn> turns_;
  int64_t version_ = 0;
  int reads_ = 0;
};

TEST_F(TranscriptTest, ManySmallAppendsStayFewChunks) {
  for (int round = 0; round < 300; ++round) {
    ASSERT_NO_FATAL_FAILURE(Append(round == 100 ? 150000 : Random(40)));
    ASSERT_LE(list_.size(), kMaxTailChunks + 1 + 3);
    ASSERT_EQ(TranscriptTokens(list_), size());
  }
  for (const auto& chunk : list_) {
    EXPECT_LE(chunk.num_tokens(), kMaxChunkTokens);
    EXPECT_EQ(ChunkBytes(chunk), static_cast<int64_t>(chunks_.at(ToChunkId(chunk.id())).size()));
  }
  EXPECT_EQ(*ReadTranscriptIds(list_, 0, size(), read_), all_);
  EXPECT_EQ(*ReadTranscriptIds(list_, 70, 75, read_),
            std::vector<int32_t>(all_.begin() + 70, all_.begin() + 75));
  EXPECT_EQ(Versions(list_, 0, size()), Expected(0, size()));
  for (int i = 0; i < 300; ++i) {
    const int64_t begin = Random(size()), end = begin + 1 + Random(size() - begin);
    ASSERT_EQ(Versions(list_, begin, end), Expected(begin, end)) << begin << " " << end;
  }
  EXPECT_EQ(ReasonOf(ReadTranscriptIds(list_, 0, size() + 1, read_).status()),
            reason::kStateCorrupt);
}

TEST_F(TranscriptTest, AChunkOfManyTurnsFillsUpToo) {
  for (int i = 0; i < 20000; ++i) Append(1);
  for (const auto& chunk : list_) EXPECT_LE(ChunkBytes(chunk), 300 << 10);
  EXPECT_GT(list_.size(), 1);
  EXPECT_THAT(Versions(list_, 9000, 9003), ElementsAre(9001, 9002, 9003));
}

TEST_F(TranscriptTest, APageReadsTheChunksItNeeds) {
  for (int i = 0; i < 20; ++i) Append(kMaxChunkTokens);
  reads_ = 0;
  EXPECT_THAT(Versions(list_, 5 * kMaxChunkTokens, 5 * kMaxChunkTokens + 10), ElementsAre(6));
  EXPECT_EQ(reads_, 1);
}

TEST_F(TranscriptTest, ATurnLongerThanAChunkIsFoundFromItsEnd) {
  Append(10);
  Append(5 * kMaxChunkTokens);
  Append(10);
  EXPECT_THAT(Versions(list_, size() - 11, size()), ElementsAre(2, 3));
  EXPECT_THAT(Versions(list_, size() - 12, size() - 11), ElementsAre(2));
}

TEST_F(TranscriptTest, TruncationCutsTheTurnItGoesThrough) {
  for (int round = 0; round < 60; ++round) Append(round == 20 ? 150000 : 1 + Random(40));
  std::vector<int64_t> positions = {0, 1, kMaxChunkTokens, 100000, size() - 1, size()};
  for (int i = 0; i < 60; ++i) positions.push_back(Random(size()));
  for (const auto& turn : turns_) positions.push_back(turn.position_tokens());
  for (const int64_t position : positions) {
    SCOPED_TRACE(position);
    TranscriptList cut = list_;
    std::vector<memstore::NewChunk> fresh;
    ASSERT_TRUE(TruncateTranscript(cut, position, read_, fresh).ok());
    Store(std::move(fresh));
    EXPECT_EQ(*ReadTranscriptIds(cut, 0, position, read_),
              std::vector<int32_t>(all_.begin(), all_.begin() + position));
    if (position == 0) {
      EXPECT_EQ(cut.size(), 0);
      continue;
    }
    EXPECT_EQ(Versions(cut, 0, position), Expected(0, position));
    const auto last = ReadTranscriptTurns(cut, position - 1, position, read_)->back();
    EXPECT_EQ(last.position_tokens() + TurnTokens(last), position);
    const auto& whole = turns_.at(last.version() - 1);
    const bool is_cut = TurnTokens(last) < TurnTokens(whole);
    EXPECT_EQ(last.finish_reason(), is_cut ? v1::FINISH_REASON_UNSPECIFIED : v1::EOS);
    EXPECT_GT(last.runs().rbegin()->num_tokens(), 0);
    const auto& run = whole.runs(last.runs_size() - 1);
    const bool run_is_cut = last.runs().rbegin()->num_tokens() < run.num_tokens();
    EXPECT_EQ(last.runs().rbegin()->trail_bytes(), run_is_cut ? 0 : 1);
  }
}

TEST_F(TranscriptTest, WhatWasStoredWithoutTurnsIsOneUnknownTurn) {
  AppendOld(30);
  AppendOld(40);
  EXPECT_THAT(Versions(list_, 0, 70), ElementsAre(0));
  Append(5);
  for (int i = 0; i < 2 * kMaxTailChunks; ++i) Append(1);  // merges old and new
  for (const int64_t begin : {0, 10, 69}) {
    const auto turns = *ReadTranscriptTurns(list_, begin, begin + 1, read_);
    ASSERT_EQ(turns.size(), 1u);
    EXPECT_EQ(turns[0].version(), 0);
    EXPECT_EQ(turns[0].position_tokens(), 0);
    EXPECT_EQ(TurnTokens(turns[0]), 70);
    EXPECT_EQ(turns[0].runs(0).role(), v1::TranscriptPart::ROLE_UNSPECIFIED);
  }
  EXPECT_THAT(Versions(list_, 69, 71), ElementsAre(0, 3));
}

TEST_F(TranscriptTest, RefusesChunksThatAreNotWhatTheListSays) {
  Append(100);
  const std::string good = chunks_.begin()->second;
  for (const std::string& bad : {good + "x", good.substr(0, good.size() - 1), std::string(),
                                 good.substr(0, 400) + std::string(good.size() - 400, '\xFF')}) {
    chunks_.begin()->second = bad;
    EXPECT_EQ(ReasonOf(ReadTranscriptTurns(list_, 0, 100, read_).status()), reason::kStateCorrupt);
  }
}

}  // namespace
}  // namespace mneme::server
