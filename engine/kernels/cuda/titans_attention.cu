// Attention of Titans (titans_attention.h); work is laid out as attention_core.cuh says. Partials:
// the persistent tokens, then of each stream every kAttentionChunk positions from 0 on, those of a
// segment counted in it. One launch rounds the call's rows as it reads them; the next one rounds
// them where they lie and keeps the last ones.
#include "engine/kernels/cuda/attention_core.cuh"
#include "engine/kernels/cuda/cuda.h"
#include "engine/kernels/cuda/device.cuh"
#include "engine/kernels/cuda/launch.h"
#include "engine/kernels/titans_attention.h"

namespace mneme::engine::cuda {
namespace {

constexpr int64_t kPersistent = -1;  // a source of keys; others are streams

struct Segment {
  static constexpr bool kKeeps = true;

  TitansAttentionLayer layer;
  int64_t position;  // of the first row, in its segment if there are segments
  int64_t rows;
  int64_t num_streams;
  TitansKeyStream streams[kMaxTitansStreams];
  const float* q;
  const float* q_rotated;
  float* out;

  __host__ __device__ int64_t tokens() const { return rows; }

  // The oldest position that row t sees.
  __host__ __device__ int64_t Oldest(int64_t t) const {
    const int64_t oldest = position + t - layer.window + 1;
    return oldest > 0 ? oldest : 0;
  }
  __host__ __device__ int64_t Chunks(int64_t first, int64_t last) const {
    return (position + last) / kAttentionChunk - Oldest(first) / kAttentionChunk + 1;
  }
  __host__ __device__ int64_t Partials(int64_t first, int64_t last) const {
    return (layer.persistent_tokens > 0 ? 1 : 0) + num_streams * Chunks(first, last);
  }
  __device__ Keys KeysOf(int64_t first, int64_t last, int64_t i) const {
    if (layer.persistent_tokens > 0 && i-- == 0) return {0, layer.persistent_tokens, kPersistent};
    const int64_t chunks = Chunks(first, last);
    const int64_t chunk = Oldest(first) / kAttentionChunk + i % chunks;
    return {chunk * kAttentionChunk, kAttentionChunk, i / chunks};
  }
  __device__ KeyRange Visible(const Keys& keys, int64_t t) const {
    if (keys.source == kPersistent) return {0, keys.count};
    const int64_t begin = Oldest(t) - keys.begin, end = position + t + 1 - keys.begin;
    return {begin > 0 ? begin : 0, end < keys.count ? end : keys.count};
  }

  __device__ int64_t width() const { return layer.heads * layer.head_dim; }
  __device__ const float* Query(const Keys& keys, int64_t t) const {
    return (keys.source == kPersistent ? q : q_rotated) + t * width();
  }
  __device__ float* Out(int64_t t) const { return out + t * width(); }

  __device__ StoredRows Rows(const Keys& keys, int64_t head, bool values, int64_t j,
                             int64_t end) const {
    const bool half = layer.dtype == DType::kF16;
    const int64_t column = head * layer.head_dim;
    if (keys.source == kPersistent) {
      const float* from = values ? layer.persistent_v : layer.persistent_k;
      return {from + j * width() + column, width(), end - j, Stored::kF32};
    }
    const TitansKeyStream& stream = streams[keys.source];
    const int64_t p = keys.begin + j;
    if (p >= position) {
      const float* from = values ? stream.v : stream.k;
      return {from + (p - position) * width() + column, width(), end - j,
              half ? Stored::kF32ToRound : Stored::kF32};
    }
    const int64_t ring = layer.window - 1, row = p % ring;
    int64_t count = (keys.begin + end < position ? keys.begin + end : position) - p;
    if (count > ring - row) count = ring - row;
    const std::byte* from = values ? stream.kept_v : stream.kept_k;
    return {from + (row * width() + column) * (half ? 2 : 4), width(), count,
            half ? Stored::kF16 : Stored::kF32};
  }

  __device__ void Keep(int64_t t) const {
    const int64_t ring = layer.window - 1;
    // A ring keeps the last rows, a segment its first ones: its last query needs nobody's row
    // later.
    const bool keep = layer.segments ? position + t < ring : t >= rows - ring;
    const int64_t row = (position + t) % ring;
    for (int64_t s = 0; s < num_streams; ++s) {
      const TitansKeyStream& stream = streams[s];
      KeepRow(stream.k + t * width(), stream.kept_k, row, keep);
      KeepRow(stream.v + t * width(), stream.kept_v, row, keep);
    }
  }
  __device__ void KeepRow(float* x, std::byte* kept, int64_t row, bool keep) const {
    for (int64_t i = threadIdx.x; i < width(); i += blockDim.x) {
      const int64_t to = row * width() + i;
      if (layer.dtype == DType::kF32) {
        if (keep) reinterpret_cast<float*>(kept)[to] = x[i];
        continue;
      }
      const uint16_t half = FloatToHalfBits(x[i]);
      x[i] = HalfBitsToFloat(half);
      if (keep) reinterpret_cast<uint16_t*>(kept)[to] = half;
    }
  }
};

}  // namespace

void TitansAttention(Exec& exec, const TitansAttentionLayer& layer,
                     std::span<const TitansAttentionArgs> batch) {
  if (batch.empty()) return;
  OpList<Segment> segments;
  segments.reserve(batch.size());
  for (const TitansAttentionArgs& args : batch) {
    Segment& segment = segments.emplace_back();
    segment.layer = layer;
    segment.position = layer.segments ? args.position % layer.window : args.position;
    segment.rows = args.rows;
    segment.num_streams = args.num_streams;
    std::copy(args.streams.begin(), args.streams.end(), segment.streams);
    segment.q = args.q;
    segment.q_rotated = args.q_rotated;
    segment.out = args.out;
  }
  Attend<Segment>(Cuda(exec), segments,
                  {.kv_heads = layer.heads,
                   .group = 1,
                   .key_dim = layer.head_dim,
                   .value_dim = layer.head_dim,
                   .scale = layer.scale});
}

}  // namespace mneme::engine::cuda
