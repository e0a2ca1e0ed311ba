#include "server/core/transcript.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "server/core/errors.h"

namespace mneme::server {
namespace {

static_assert(std::endian::native == std::endian::little, "chunks are little-endian");

constexpr int64_t kFullChunkBytes = kMaxChunkTokens * 4;

// Ids in a row, and the turns that begin among them.
struct Stretch {
  std::vector<int32_t> ids;
  std::vector<storage::StoredTurn> turns;
};

bool IsFull(const storage::TranscriptChunk& chunk) {
  return chunk.num_tokens() >= kMaxChunkTokens || ChunkBytes(chunk) >= kFullChunkBytes;
}

absl::Status Corrupt(std::string_view what) {
  return Error(absl::StatusCode::kDataLoss, reason::kStateCorrupt,
               absl::StrCat("the stored transcript failed its checks: ",
                            absl::string_view(what.data(), what.size())));
}

// More tokens than anything has read; sums of what is below it do not overflow.
constexpr int64_t kMaxPosition = int64_t{1} << 40;

bool IsPosition(int64_t n) { return n >= 0 && n <= kMaxPosition; }

// Counts are what the store has, and may be anything; chunks are what their ids say.
absl::Status CheckCounts(const TranscriptList& list) {
  for (const storage::TranscriptChunk& chunk : list) {
    if (chunk.id().size() != 32) return Corrupt("a chunk's id has a bad length");
    if (chunk.num_tokens() < 0 || chunk.num_tokens() > kMaxChunkTokens ||
        !IsPosition(chunk.turn_bytes())) {
      return Corrupt("a chunk has a bad length");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckTurn(const storage::StoredTurn& turn) {
  bool good = IsPosition(turn.position_tokens());
  for (const storage::StoredRun& run : turn.runs()) {
    good = good && IsPosition(run.num_tokens()) && run.lead_bytes() >= 0 && run.trail_bytes() >= 0;
  }
  return good ? absl::OkStatus() : Corrupt("a turn has a bad length");
}

// Of a list whose counts were checked.
absl::StatusOr<Stretch> Decode(const storage::TranscriptChunk& chunk, const ReadChunk& read) {
  MNEME_ASSIGN_OR_RETURN(const std::string bytes, read(ToChunkId(chunk.id())));
  if (static_cast<int64_t>(bytes.size()) != ChunkBytes(chunk)) {
    return Corrupt("a chunk has a bad length");
  }
  Stretch out;
  out.ids.resize(chunk.num_tokens());
  const size_t id_bytes = out.ids.size() * 4;
  if (id_bytes > 0) std::memcpy(out.ids.data(), bytes.data(), id_bytes);
  storage::StoredTurns turns;
  if (!turns.ParseFromArray(bytes.data() + id_bytes, static_cast<int>(chunk.turn_bytes()))) {
    return Corrupt("a chunk's turns cannot be read");
  }
  for (const storage::StoredTurn& turn : turns.turns()) MNEME_RETURN_IF_ERROR(CheckTurn(turn));
  out.turns.assign(turns.turns().begin(), turns.turns().end());
  return out;
}

absl::StatusOr<std::vector<storage::StoredTurn>> TurnsOf(const storage::TranscriptChunk& chunk,
                                                         const ReadChunk& read) {
  if (chunk.turn_bytes() == 0) return std::vector<storage::StoredTurn>();
  MNEME_ASSIGN_OR_RETURN(Stretch stretch, Decode(chunk, read));
  return std::move(stretch.turns);
}

storage::TranscriptChunk Encode(std::span<const int32_t> ids,
                                std::span<const storage::StoredTurn> turns,
                                std::vector<memstore::NewChunk>& new_chunks) {
  memstore::NewChunk chunk;
  chunk.bytes.assign(reinterpret_cast<const char*>(ids.data()), ids.size_bytes());
  storage::StoredTurns stored;
  stored.mutable_turns()->Assign(turns.begin(), turns.end());
  stored.AppendToString(&chunk.bytes);
  chunk.id = memstore::HashChunk(chunk.bytes);
  storage::TranscriptChunk entry;
  entry.set_id(FromChunkId(chunk.id));
  entry.set_num_tokens(static_cast<int64_t>(ids.size()));
  entry.set_turn_bytes(static_cast<int64_t>(chunk.bytes.size() - ids.size_bytes()));
  new_chunks.push_back(std::move(chunk));
  return entry;
}

// Adds `stretch`, which follows the end of `list`, as chunks of its own.
void AddChunks(TranscriptList& list, const Stretch& stretch,
               std::vector<memstore::NewChunk>& new_chunks) {
  int64_t position = TranscriptTokens(list);
  auto turn = stretch.turns.begin();
  for (size_t at = 0; at < stretch.ids.size(); at += kMaxChunkTokens) {
    const size_t n = std::min<size_t>(kMaxChunkTokens, stretch.ids.size() - at);
    position += static_cast<int64_t>(n);
    const auto end = std::find_if(turn, stretch.turns.end(), [&](const storage::StoredTurn& t) {
      return t.position_tokens() >= position;
    });
    *list.Add() = Encode(std::span(stretch.ids).subspan(at, n), {turn, end}, new_chunks);
    turn = end;
  }
}

// Ends `turn` at `position`, which lies inside it.
void CutTurn(storage::StoredTurn& turn, int64_t position) {
  int64_t left = position - turn.position_tokens();
  int kept = 0;
  for (storage::StoredRun& run : *turn.mutable_runs()) {
    if (left == 0) break;
    if (left < run.num_tokens()) {
      run.set_num_tokens(left);
      run.clear_trail_bytes();
    }
    left -= run.num_tokens();
    ++kept;
  }
  turn.mutable_runs()->DeleteSubrange(kept, turn.runs_size() - kept);
  turn.clear_finish_reason();
}

bool Overruns(const storage::StoredTurn& turn, int64_t position) {
  return turn.position_tokens() + TurnTokens(turn) > position;
}

}  // namespace

memstore::ChunkId ToChunkId(const std::string& bytes) {
  memstore::ChunkId id{};
  std::memcpy(id.data(), bytes.data(), std::min(bytes.size(), id.size()));
  return id;
}

std::string FromChunkId(const memstore::ChunkId& id) {
  return std::string(reinterpret_cast<const char*>(id.data()), id.size());
}

absl::Status AppendTranscript(TranscriptList& list, std::span<const int32_t> tokens,
                              const storage::StoredTurn& turn, const ReadChunk& read,
                              std::vector<memstore::NewChunk>& new_chunks) {
  if (tokens.empty()) return absl::OkStatus();
  MNEME_RETURN_IF_ERROR(CheckCounts(list));
  int tail = 0;
  while (tail < list.size() && !IsFull(list.Get(list.size() - 1 - tail))) ++tail;
  Stretch added;
  if (tail + 1 > kMaxTailChunks) {
    const int first = list.size() - tail;
    for (int i = first; i < list.size(); ++i) {
      MNEME_ASSIGN_OR_RETURN(Stretch old, Decode(list.Get(i), read));
      added.ids.insert(added.ids.end(), old.ids.begin(), old.ids.end());
      std::move(old.turns.begin(), old.turns.end(), std::back_inserter(added.turns));
    }
    list.DeleteSubrange(first, tail);
  }
  added.ids.insert(added.ids.end(), tokens.begin(), tokens.end());
  added.turns.push_back(turn);
  AddChunks(list, added, new_chunks);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> ReadTranscriptIds(const TranscriptList& list, int64_t begin,
                                                       int64_t end, const ReadChunk& read) {
  MNEME_RETURN_IF_ERROR(CheckCounts(list));
  if (begin < 0 || begin > end || end > TranscriptTokens(list)) {
    return Corrupt("it is shorter than the session's position");
  }
  std::vector<int32_t> out;
  int64_t at = 0;
  for (const storage::TranscriptChunk& chunk : list) {
    const int64_t next = at + chunk.num_tokens();
    if (next > begin && at < end) {
      MNEME_ASSIGN_OR_RETURN(const Stretch stretch, Decode(chunk, read));
      out.insert(out.end(), stretch.ids.begin() + std::max<int64_t>(0, begin - at),
                 stretch.ids.begin() + std::min<int64_t>(chunk.num_tokens(), end - at));
    }
    at = next;
  }
  return out;
}

absl::StatusOr<std::vector<storage::StoredTurn>> ReadTranscriptTurns(const TranscriptList& list,
                                                                     int64_t begin, int64_t end,
                                                                     const ReadChunk& read) {
  MNEME_RETURN_IF_ERROR(CheckCounts(list));
  int chunks = 0;  // that begin before `end`
  for (int64_t at = 0; chunks < list.size() && at < end; ++chunks) {
    at += list.Get(chunks).num_tokens();
  }
  // From behind: the turn in which `begin` lies may have begun long before.
  std::vector<storage::StoredTurn> out;
  for (int i = chunks - 1; i >= 0 && (out.empty() || out.front().position_tokens() > begin); --i) {
    MNEME_ASSIGN_OR_RETURN(auto turns, TurnsOf(list.Get(i), read));
    out.insert(out.begin(), std::make_move_iterator(turns.begin()),
               std::make_move_iterator(turns.end()));
  }
  for (int i = chunks; i < list.size() && out.empty(); ++i) {
    MNEME_ASSIGN_OR_RETURN(out, TurnsOf(list.Get(i), read));
  }
  const int64_t known_from = out.empty() ? TranscriptTokens(list) : out.front().position_tokens();
  std::erase_if(out, [&](const storage::StoredTurn& turn) {
    return turn.position_tokens() >= end || !Overruns(turn, begin);
  });
  if (known_from > begin) {
    storage::StoredTurn unknown;
    unknown.add_runs()->set_num_tokens(known_from);
    out.insert(out.begin(), std::move(unknown));
  }
  return out;
}

absl::Status TruncateTranscript(TranscriptList& list, int64_t position, const ReadChunk& read,
                                std::vector<memstore::NewChunk>& new_chunks) {
  MNEME_RETURN_IF_ERROR(CheckCounts(list));
  int64_t at = 0;
  int keep = 0;
  while (keep < list.size() && at + list.Get(keep).num_tokens() <= position) {
    at += list.Get(keep++).num_tokens();
  }
  Stretch rest;
  if (at < position) {
    if (keep == list.size()) return Corrupt("it is shorter than the session's position");
    MNEME_ASSIGN_OR_RETURN(rest, Decode(list.Get(keep), read));
    rest.ids.resize(position - at);
    std::erase_if(rest.turns, [&](const storage::StoredTurn& turn) {
      return turn.position_tokens() >= position;
    });
  }
  list.DeleteSubrange(keep, list.size() - keep);
  if (!rest.turns.empty()) {
    if (Overruns(rest.turns.back(), position)) CutTurn(rest.turns.back(), position);
  } else {
    // The turn that is cut may have begun in a chunk that stays.
    int last = keep - 1;
    while (last >= 0 && list.Get(last).turn_bytes() == 0) --last;
    if (last >= 0) {
      MNEME_ASSIGN_OR_RETURN(Stretch stretch, Decode(list.Get(last), read));
      if (!stretch.turns.empty() && Overruns(stretch.turns.back(), position)) {
        CutTurn(stretch.turns.back(), position);
        *list.Mutable(last) = Encode(stretch.ids, stretch.turns, new_chunks);
      }
    }
  }
  AddChunks(list, rest, new_chunks);
  return absl::OkStatus();
}

int64_t TranscriptTokens(const TranscriptList& list) {
  uint64_t n = 0;  // whose sums wrap around: the counts may not have been checked
  for (const auto& chunk : list) n += static_cast<uint64_t>(chunk.num_tokens());
  return static_cast<int64_t>(n);
}

int64_t ChunkBytes(const storage::TranscriptChunk& chunk) {
  return static_cast<int64_t>(static_cast<uint64_t>(chunk.num_tokens()) * 4 +
                              static_cast<uint64_t>(chunk.turn_bytes()));
}

int64_t TurnTokens(const storage::StoredTurn& turn) {
  int64_t n = 0;
  for (const storage::StoredRun& run : turn.runs()) n += run.num_tokens();
  return n;
}

}  // namespace mneme::server
