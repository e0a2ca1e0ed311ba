// Attention of a block of queries over runs of stored keys (block_attention.h); work is laid out as
// attention_core.cuh says. Every kAttentionChunk places of the list are a partial.
#include "engine/kernels/cuda/attention_core.cuh"
#include "engine/kernels/cuda/cuda.h"
#include "engine/kernels/cuda/device.cuh"
#include "engine/kernels/cuda/launch.h"

namespace mneme::engine::cuda {
namespace {

struct KeyList {
  static constexpr bool kKeeps = false;

  KeyRun runs[kMaxKeyRuns];
  int64_t places;  // of all runs
  DType dtype;
  bool causal;
  int64_t T;
  int64_t kv_heads, key_dim, value_dim;
  const float* q;
  int64_t q_stride;
  float* out;
  int64_t out_stride;

  __host__ __device__ int64_t tokens() const { return T; }

  // Places that query t sees.
  __host__ __device__ int64_t Seen(int64_t t) const {
    return causal ? places - (T - 1 - t) : places;
  }

  __host__ __device__ int64_t Partials(int64_t, int64_t last) const {
    return (Seen(last) + kAttentionChunk - 1) / kAttentionChunk;
  }
  __device__ Keys KeysOf(int64_t, int64_t, int64_t i) const {
    return {i * kAttentionChunk, kAttentionChunk, 0};
  }
  __device__ KeyRange Visible(const Keys& keys, int64_t t) const {
    const int64_t end = Seen(t) - keys.begin;
    return {0, end < keys.count ? end : keys.count};
  }

  __device__ const float* Query(const Keys&, int64_t t) const { return q + t * q_stride; }
  __device__ float* Out(int64_t t) const { return out + t * out_stride; }

  __device__ StoredRows Rows(const Keys& keys, int64_t kv_head, bool values, int64_t j,
                             int64_t end) const {
    int64_t row = keys.begin + j;
    int run = 0;
    while (row >= runs[run].rows) row -= runs[run++].rows;
    const int64_t width = values ? value_dim : key_dim;
    const int64_t at = (row * kv_heads + kv_head) * width;
    const std::byte* from = values ? runs[run].v : runs[run].k;
    const int64_t left = runs[run].rows - row;
    return {from + at * (dtype == DType::kF16 ? 2 : 4), kv_heads * width,
            left < end - j ? left : end - j, dtype == DType::kF16 ? Stored::kF16 : Stored::kF32};
  }
};

}  // namespace

void BlockAttention(Exec& exec, std::span<const BlockAttentionArgs> batch) {
  if (batch.empty()) return;
  OpList<KeyList> lists;
  lists.reserve(batch.size());
  for (const BlockAttentionArgs& args : batch) {
    KeyList& list = lists.emplace_back();
    std::copy(args.runs.begin(), args.runs.end(), list.runs);
    list.places = 0;
    for (const KeyRun& run : args.runs) list.places += run.rows;
    list.dtype = args.dtype;
    list.causal = args.causal;
    list.T = args.T;
    list.kv_heads = args.kv_heads;
    list.key_dim = args.key_dim;
    list.value_dim = args.value_dim;
    list.q = args.q;
    list.q_stride = args.q_stride;
    list.out = args.out;
    list.out_stride = args.out_stride;
  }
  const BlockAttentionArgs& one = batch[0];
  Attend<KeyList>(Cuda(exec), lists,
                  {.kv_heads = one.kv_heads,
                   .group = one.query_heads / one.kv_heads,
                   .key_dim = one.key_dim,
                   .value_dim = one.value_dim,
                   .scale = one.scale});
}

}  // namespace mneme::engine::cuda
