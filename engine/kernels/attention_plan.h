// The order of keys that attention.h prescribes, shared by the backends.
#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/kernels/attention.h"

namespace mneme::engine {

// Keys [begin, end) of one tile that a query, or some query of a block, sees. Tiles are numbered in
// the order of visiting: the sink tiles from position 0, then the grid tiles from position S.
struct KeyRange {
  int64_t begin;
  int64_t end;
  bool operator==(const KeyRange&) const = default;
};

inline int64_t SinkTiles(int64_t sinks) { return (sinks + kAttentionTile - 1) / kAttentionTile; }

// First position of a tile, and one past its last.
inline KeyRange TileRange(int64_t sinks, int64_t tile) {
  const int64_t sink_tiles = SinkTiles(sinks);
  if (tile < sink_tiles) {
    return {tile * kAttentionTile, std::min(sinks, (tile + 1) * kAttentionTile)};
  }
  const int64_t begin = sinks + (tile - sink_tiles) * kAttentionTile;
  return {begin, begin + kAttentionTile};
}

// The part of the tile visible to queries [first, last]; may be empty.
inline KeyRange VisibleRange(int64_t sinks, int64_t window, int64_t tile, int64_t first,
                             int64_t last) {
  KeyRange range = TileRange(sinks, tile);
  if (tile >= SinkTiles(sinks)) range.begin = std::max(range.begin, first - window + 1);
  range.end = std::min(range.end, last + 1);
  return range;
}

// Partials: 0 is the sinks, 1 + i the grid positions [S + i * chunk, S + (i + 1) * chunk).
inline int64_t FirstTileOfPartial(int64_t sinks, int64_t partial) {
  if (partial == 0) return 0;
  return SinkTiles(sinks) + (partial - 1) * (kAttentionChunk / kAttentionTile);
}

// Partials with a key visible to some query of [first, last]: 0, then [begin, end).
constexpr KeyRange GridPartials(int64_t sinks, int64_t window, int64_t first, int64_t last) {
  if (last < sinks) return {1, 1};
  const int64_t oldest = std::max(sinks, first - window + 1);
  return {1 + (oldest - sinks) / kAttentionChunk, 1 + (last - sinks) / kAttentionChunk + 1};
}

// Row of the ring that holds position j.
constexpr int64_t RingRow(int64_t sinks, int64_t window, int64_t j) {
  return j < sinks ? j : sinks + (j - sinks) % window;
}

// Where the state keeps the key and the value of position j, rows of row_bytes.
struct KeptRow {
  std::byte* k;
  std::byte* v;
};
inline KeptRow KeptRowOf(const AttentionArgs& args, int64_t j, int64_t row_bytes) {
  if (args.pages != nullptr) {
    std::byte* row = args.pages[j / kPageTokens] + j % kPageTokens * row_bytes;
    return {row + args.k_in_page, row + args.v_in_page};
  }
  const int64_t at = RingRow(args.sinks, args.window, j) * row_bytes;
  return {args.k_ring + at, args.v_ring + at};
}

// Calls attend(first, count) then write(first, count) for pieces of the call's tokens such that no
// write removes a key that a query of the same piece still sees.
template <typename Attend, typename Write>
void ForEachPiece(const AttentionArgs& args, Attend attend, Write write) {
  for (int64_t t = 0; t < args.T; t += args.window) {
    const int64_t count = std::min(args.window, args.T - t);
    attend(t, count);
    write(t, count);
  }
}

}  // namespace mneme::engine
