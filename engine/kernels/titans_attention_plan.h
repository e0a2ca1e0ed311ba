// The order of the parts of a call of titans_attention.h, shared by the backends.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/kernels/host.h"
#include "engine/kernels/titans_attention.h"

namespace mneme::engine {

// Keys and values of one head that a query sees, in ascending order.
struct TitansKeys {
  const float* k = nullptr;  // [count, hd]
  const float* v = nullptr;  // [count, hd]
  int64_t stride = 0;
  int64_t count = 0;
  bool rotated = true;  // meets the rotated query
};

// Scratch for the scores of `keys` keys, padded to whole vectors.
inline constexpr int64_t TitansScoreElements(int64_t keys) { return (keys + 7) / 8 * 8; }

// One head of one sequence. `Ops` has, as static functions:
//   Attend(q_plain, q_rotated, runs, head_dim, scale, scores, out)   one query over all runs
//   Load(rows, dtype, stride, count, n, out)   out [count, n] = rows that begin `stride` elements
//                                              apart
//   Store(x, dtype, n, row)                    row[0, n) = x
//   Round(x, dtype, n)                         x[0, n) as it would come back
template <typename Ops>
class TitansAttentionHead {
 public:
  // `worker` has room for WorkerElements.
  TitansAttentionHead(const TitansAttentionLayer& layer, const TitansAttentionArgs& args,
                      int64_t head, float* worker)
      : layer_(layer),
        args_(args),
        ring_(layer.window - 1),
        n_(FirstPosition(layer, args)),
        oldest_(n_ - KeptRows(layer, args)),
        middle_(std::min(n_, (oldest_ / ring_ + 1) * ring_)),
        stride_(layer.heads * layer.head_dim),
        column_(head * layer.head_dim),
        scores_(worker),
        converted_(worker + ScoreElements(layer, args)) {}

  // Of f32.
  static int64_t WorkerElements(const TitansAttentionLayer& layer,
                                const TitansAttentionArgs& args) {
    const int64_t converted =
        layer.dtype == DType::kF32 ? 0 : 2 * args.num_streams * KeptRows(layer, args);
    return ScoreElements(layer, args) + converted * layer.head_dim;
  }

  void Run() {
    std::array<Stream, kMaxTitansStreams> streams;
    for (int i = 0; i < args_.num_streams; ++i) streams[i] = Open(args_.streams[i]);
    for (int64_t t = 0; t < args_.rows; ++t) {
      Attend(t, std::span(streams).first(args_.num_streams));
    }
    for (int i = 0; i < args_.num_streams; ++i) Keep(args_.streams[i]);
  }

 private:
  // Rows that lie behind each other.
  struct Piece {
    const float* k;
    const float* v;
    int64_t stride;
    int64_t begin, end;  // positions
  };
  // Where the ring wraps, older rows are two pieces; the third is this call's.
  using Stream = std::array<Piece, 3>;

  static int64_t FirstPosition(const TitansAttentionLayer& layer, const TitansAttentionArgs& args) {
    return layer.segments ? args.position % layer.window : args.position;
  }
  // Rows of the state that the call's queries may see.
  static int64_t KeptRows(const TitansAttentionLayer& layer, const TitansAttentionArgs& args) {
    return std::min(FirstPosition(layer, args), layer.window - 1);
  }
  static int64_t ScoreElements(const TitansAttentionLayer& layer, const TitansAttentionArgs& args) {
    const int64_t keys = std::min(layer.window, KeptRows(layer, args) + args.rows);
    return TitansScoreElements(layer.persistent_tokens + args.num_streams * keys);
  }

  Stream Open(const TitansKeyStream& stream) {
    for (int64_t t = 0; t < args_.rows; ++t) {
      Ops::Round(stream.k + t * stride_ + column_, layer_.dtype, layer_.head_dim);
      Ops::Round(stream.v + t * stride_ + column_, layer_.dtype, layer_.head_dim);
    }
    return {Kept(stream, oldest_, middle_), Kept(stream, middle_, n_),
            Piece{stream.k + column_, stream.v + column_, stride_, n_, n_ + args_.rows}};
  }

  // The state's rows of positions [begin, end) as f32: where they lie, or converted.
  Piece Kept(const TitansKeyStream& stream, int64_t begin, int64_t end) {
    const int64_t at = begin % ring_ * stride_ + column_;
    if (layer_.dtype == DType::kF32) {
      return {reinterpret_cast<const float*>(stream.kept_k) + at,
              reinterpret_cast<const float*>(stream.kept_v) + at, stride_, begin, end};
    }
    const auto convert = [&](const std::byte* rows) {
      float* out = converted_;
      converted_ += (end - begin) * layer_.head_dim;
      Ops::Load(rows + at * Traits(layer_.dtype).block_bytes, layer_.dtype, stride_, end - begin,
                layer_.head_dim, out);
      return out;
    };
    const float* k = convert(stream.kept_k);
    return {k, convert(stream.kept_v), layer_.head_dim, begin, end};
  }

  void Attend(int64_t t, std::span<const Stream> streams) {
    std::array<TitansKeys, 1 + 3 * kMaxTitansStreams> runs;
    size_t count = 0;
    if (layer_.persistent_tokens > 0) {
      runs[count++] = {layer_.persistent_k + column_, layer_.persistent_v + column_, stride_,
                       layer_.persistent_tokens, /*rotated=*/false};
    }
    const int64_t first = std::max<int64_t>(0, n_ + t - layer_.window + 1), last = n_ + t;
    for (const Stream& stream : streams) {
      for (const Piece& piece : stream) {
        const int64_t skip = std::max<int64_t>(0, first - piece.begin);
        const int64_t visible = std::min(piece.end, last + 1) - piece.begin - skip;
        if (visible <= 0) continue;
        runs[count++] = {piece.k + skip * piece.stride, piece.v + skip * piece.stride, piece.stride,
                         visible};
      }
    }
    const int64_t at = t * stride_ + column_;
    Ops::Attend(args_.q + at, args_.q_rotated + at, std::span(runs).first(count), layer_.head_dim,
                layer_.scale, scores_, args_.out + at);
  }

  // The last rows into the state.
  void Keep(const TitansKeyStream& stream) {
    const int64_t element = Traits(layer_.dtype).block_bytes;
    // A ring keeps the last rows, a segment its first ones: its last query needs nobody's row
    // later.
    const int64_t begin = layer_.segments ? 0 : std::max<int64_t>(0, args_.rows - ring_);
    const int64_t end = layer_.segments ? std::min(args_.rows, ring_ - n_) : args_.rows;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t from = t * stride_ + column_;
      const int64_t to = ((n_ + t) % ring_ * stride_ + column_) * element;
      Ops::Store(stream.k + from, layer_.dtype, layer_.head_dim, stream.kept_k + to);
      Ops::Store(stream.v + from, layer_.dtype, layer_.head_dim, stream.kept_v + to);
    }
  }

  const TitansAttentionLayer& layer_;
  const TitansAttentionArgs& args_;
  const int64_t ring_;    // rows of the state
  const int64_t n_;       // position of the first row, in its segment if there are segments
  const int64_t oldest_;  // position of the oldest row of the state that a query may see
  const int64_t middle_;  // first position behind the ring's end
  const int64_t stride_;
  const int64_t column_;
  float* const scores_;
  float* converted_;
};

// Every head of every sequence, on the pool.
template <typename Ops>
void RunTitansAttention(Exec& exec, const TitansAttentionLayer& layer,
                        std::span<const TitansAttentionArgs> batch) {
  int64_t elements = 0;
  for (const TitansAttentionArgs& args : batch) {
    elements = std::max(elements, TitansAttentionHead<Ops>::WorkerElements(layer, args));
  }
  const auto workers = Host(exec).WorkerScratch(HostDevice::kTitansAttentionWorkers, elements);
  Host(exec).pool().Run(
      static_cast<int64_t>(batch.size()) * layer.heads, [&](int64_t task, int worker) {
        const TitansAttentionArgs& args = batch[task / layer.heads];
        TitansAttentionHead<Ops>(layer, args, task % layer.heads, workers.Of(worker)).Run();
      });
}

}  // namespace mneme::engine
