#include "engine/kernels/attention.h"

#include <cmath>
#include <limits>
#include <vector>

#include "engine/kernels/attention_plan.h"
#include "engine/kernels/host.h"
#include "engine/kernels/reference/reference.h"
#include "engine/kernels/reference/stored_element.h"

namespace mneme::engine::reference {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// An online softmax over some keys: the largest score, the sum of weights and the weighted values.
struct Partial {
  explicit Partial(int64_t width) : o(width, 0.0f) {}
  float m = kNegativeInfinity;
  float l = 0;
  std::vector<float> o;
};

void Merge(const Partial& from, Partial* into) {
  if (into->l == 0 && into->m == kNegativeInfinity) {
    *into = from;
    return;
  }
  const float m = std::max(into->m, from.m);
  const float a = std::exp(into->m - m);
  const float b = std::exp(from.m - m);
  into->l = a * into->l + b * from.l;
  for (size_t d = 0; d < into->o.size(); ++d) into->o[d] = a * into->o[d] + b * from.o[d];
  into->m = m;
}

class Sequence {
 public:
  explicit Sequence(const AttentionArgs& args) : args_(args) {}

  // Query of token t and head h; rows of tokens [piece, t] are read from the call, older ones from
  // where they are kept.
  void Attend(int64_t t, int64_t piece, int64_t h) const {
    const int64_t p = args_.position + t;
    const int64_t kv_head = h / (args_.query_heads / args_.kv_heads);
    Partial total(args_.head_dim);
    const KeyRange grid = GridPartials(args_.sinks, args_.window, p, p);
    for (int64_t partial = 0; partial < grid.end; ++partial) {
      if (partial > 0 && partial < grid.begin) continue;
      Partial part(args_.head_dim);
      const int64_t end = FirstTileOfPartial(args_.sinks, partial + 1);
      for (int64_t tile = FirstTileOfPartial(args_.sinks, partial); tile < end; ++tile) {
        AddTile(t, piece, h, kv_head, tile, &part);
      }
      if (part.l != 0) Merge(part, &total);
    }
    float* out = args_.out + t * args_.out_stride + h * args_.head_dim;
    for (int64_t d = 0; d < args_.head_dim; ++d) out[d] = total.l == 0 ? 0 : total.o[d] / total.l;
  }

  void Write(int64_t first, int64_t count) {
    for (int64_t t = first; t < first + count; ++t) {
      const KeptRow row = Kept(args_.position + t);
      for (int64_t i = 0; i < args_.kv_heads * args_.head_dim; ++i) {
        WriteElement(args_.k[t * args_.kv_stride + i], args_.ring_dtype, i, row.k);
        WriteElement(args_.v[t * args_.kv_stride + i], args_.ring_dtype, i, row.v);
      }
    }
  }

 private:
  KeptRow Kept(int64_t j) const {
    const int64_t row_bytes =
        args_.kv_heads * args_.head_dim * Traits(args_.ring_dtype).block_bytes;
    return KeptRowOf(args_, j, row_bytes);
  }

  // Channel d of position j, rounded to the type it is kept in.
  float Key(int64_t j, int64_t piece, int64_t kv_head, int64_t d) const {
    const int64_t column = kv_head * args_.head_dim + d;
    if (j < args_.position + piece) return ReadElement(Kept(j).k, args_.ring_dtype, column);
    return RoundElement(args_.k[(j - args_.position) * args_.kv_stride + column], args_.ring_dtype);
  }
  float Value(int64_t j, int64_t piece, int64_t kv_head, int64_t d) const {
    const int64_t column = kv_head * args_.head_dim + d;
    if (j < args_.position + piece) return ReadElement(Kept(j).v, args_.ring_dtype, column);
    return RoundElement(args_.v[(j - args_.position) * args_.kv_stride + column], args_.ring_dtype);
  }

  void AddTile(int64_t t, int64_t piece, int64_t h, int64_t kv_head, int64_t tile,
               Partial* part) const {
    const int64_t p = args_.position + t;
    const KeyRange keys = VisibleRange(args_.sinks, args_.window, tile, p, p);
    if (keys.begin >= keys.end) return;
    const bool sink = tile < SinkTiles(args_.sinks);
    const float* q = (sink ? args_.q_sink : args_.q) + t * args_.q_stride + h * args_.head_dim;
    float score[kAttentionTile];
    float m = part->m;
    for (int64_t j = keys.begin; j < keys.end; ++j) {
      float dot = 0;
      for (int64_t d = 0; d < args_.head_dim; ++d) {
        dot += q[d] * Key(j, piece, kv_head, d);
      }
      score[j - keys.begin] = args_.scale * dot;
      m = std::max(m, score[j - keys.begin]);
    }
    const float shrink = std::exp(part->m - m);
    part->l *= shrink;
    for (float& o : part->o) o *= shrink;
    for (int64_t j = keys.begin; j < keys.end; ++j) {
      const float e = std::exp(score[j - keys.begin] - m);
      part->l += e;
      for (int64_t d = 0; d < args_.head_dim; ++d) {
        part->o[d] += e * Value(j, piece, kv_head, d);
      }
    }
    part->m = m;
  }

  const AttentionArgs& args_;
};

}  // namespace

void Attention(Exec& exec, std::span<const AttentionArgs> batch) {
  for (const AttentionArgs& args : batch) {
    Sequence sequence(args);
    ForEachPiece(
        args,
        [&](int64_t first, int64_t count) {
          Host(exec).pool().Run(count * args.query_heads, [&](int64_t task, int) {
            sequence.Attend(first + task / args.query_heads, first, task % args.query_heads);
          });
        },
        [&](int64_t first, int64_t count) { sequence.Write(first, count); });
  }
}

}  // namespace mneme::engine::reference
