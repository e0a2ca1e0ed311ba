// Attention over sinks, a ring or pages, and the call's own rows (attention.h); work is laid out as
// attention_core.cuh says, a partial being the header's. One launch reads the ring as it was before
// the call and the call's rows where they are; the next one writes the ring, so that a call may be
// longer than the window.
#include "engine/kernels/cuda/attention_core.cuh"
#include "engine/kernels/cuda/cuda.h"
#include "engine/kernels/cuda/device.cuh"
#include "engine/kernels/cuda/launch.h"

namespace mneme::engine::cuda {
namespace {

// Partials as GridPartials numbers them; a partial's number is the keys' source.
struct Sequence {
  static constexpr bool kKeeps = true;

  AttentionArgs args;  // for kernels, `pages` lies on the device

  size_t num_pages() const {
    return args.pages == nullptr ? 0 : (args.position + args.T + kPageTokens - 1) / kPageTokens;
  }
  size_t ListBytes() const { return Upload::Bytes<std::byte*>(num_pages()); }
  void AddLists(Upload& upload) {
    if (args.pages != nullptr) args.pages = upload.Add(std::span(args.pages, num_pages()));
  }

  __host__ __device__ int64_t tokens() const { return args.T; }

  __host__ __device__ int64_t Partials(int64_t first, int64_t last) const {
    const KeyRange grid =
        GridPartials(args.sinks, args.window, args.position + first, args.position + last);
    return (args.sinks > 0 ? 1 : 0) + grid.end - grid.begin;
  }

  __device__ Keys KeysOf(int64_t first, int64_t last, int64_t i) const {
    if (args.sinks > 0 && i-- == 0) return {0, args.sinks, 0};
    const int64_t partial =
        GridPartials(args.sinks, args.window, args.position + first, args.position + last).begin +
        i;
    return {args.sinks + (partial - 1) * kAttentionChunk, kAttentionChunk, partial};
  }

  __device__ KeyRange Visible(const Keys& keys, int64_t t) const {
    const int64_t p = args.position + t - keys.begin;
    const int64_t begin = keys.source == 0 ? 0 : p - args.window + 1;
    return {begin > 0 ? begin : 0, p + 1 < keys.count ? p + 1 : keys.count};
  }

  __device__ const float* Query(const Keys& keys, int64_t t) const {
    return (keys.source == 0 ? args.q_sink : args.q) + t * args.q_stride;
  }
  __device__ float* Out(int64_t t) const { return args.out + t * args.out_stride; }

  __device__ int64_t element_bytes() const { return args.ring_dtype == DType::kF16 ? 2 : 4; }

  // Where position p is kept, and how many from there on lie behind each other.
  __device__ std::byte* Row(bool values, int64_t p, int64_t* count) const {
    const int64_t row_bytes = args.kv_heads * args.head_dim * element_bytes();
    if (args.pages != nullptr) {
      *count = kPageTokens - p % kPageTokens;
      return args.pages[p / kPageTokens] + (values ? args.v_in_page : args.k_in_page) +
             p % kPageTokens * row_bytes;
    }
    const int64_t row = RingRow(args.sinks, args.window, p);
    *count = (p < args.sinks ? args.sinks : args.sinks + args.window) - row;
    return (values ? args.v_ring : args.k_ring) + row * row_bytes;
  }

  __device__ StoredRows Rows(const Keys& keys, int64_t kv_head, bool values, int64_t j,
                             int64_t end) const {
    const bool half = args.ring_dtype == DType::kF16;
    const int64_t p = keys.begin + j, column = kv_head * args.head_dim;
    if (p >= args.position) {
      const float* from = values ? args.v : args.k;
      return {from + (p - args.position) * args.kv_stride + column, args.kv_stride, end - j,
              half ? Stored::kF32ToRound : Stored::kF32};
    }
    int64_t count = 0;
    const std::byte* row = Row(values, p, &count);
    const int64_t left = (keys.begin + end < args.position ? keys.begin + end : args.position) - p;
    return {row + column * element_bytes(), args.kv_heads * args.head_dim,
            count < left ? count : left, half ? Stored::kF16 : Stored::kF32};
  }

  __device__ void Keep(int64_t t) const {
    const int64_t p = args.position + t;
    if (p >= args.sinks && t < args.T - args.window) return;  // a later row takes its place
    const int64_t width = args.kv_heads * args.head_dim;
    for (const bool values : {false, true}) {
      const float* from = (values ? args.v : args.k) + t * args.kv_stride;
      int64_t count = 0;
      std::byte* row = Row(values, p, &count);
      for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
        if (args.ring_dtype == DType::kF16) {
          reinterpret_cast<uint16_t*>(row)[i] = FloatToHalfBits(from[i]);
        } else {
          reinterpret_cast<float*>(row)[i] = from[i];
        }
      }
    }
  }
};

}  // namespace

void Attention(Exec& exec, std::span<const AttentionArgs> batch) {
  if (batch.empty()) return;
  OpList<Sequence> sequences;
  sequences.reserve(batch.size());
  for (const AttentionArgs& args : batch) sequences.push_back({args});
  const AttentionArgs& one = batch[0];
  Attend<Sequence>(Cuda(exec), sequences,
                   {.kv_heads = one.kv_heads,
                    .group = one.query_heads / one.kv_heads,
                    .key_dim = one.head_dim,
                    .value_dim = one.head_dim,
                    .scale = one.scale});
}

}  // namespace mneme::engine::cuda
