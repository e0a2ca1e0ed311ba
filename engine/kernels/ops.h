// What an architecture may do with the rows of a pass: every op of the kernel table, on opaque
// addresses. The equations, sources and promises of an op are in the header of its kernel; here are
// the shapes, which are checked in one place for all backends (by assert).
//
// Mixers take runs: their rows in `x`, `q`, ... are rows [first_row, first_row + rows) of the pass,
// and their fields lie in the run's state.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/core/rows.h"
#include "engine/kernels/activation.h"
#include "engine/kernels/batch.h"
#include "engine/kernels/rope.h"
#include "engine/kernels/titans_memory.h"

namespace mneme::engine {

class Exec;

namespace ops {

// ---- products (matmul.h, embedding.h)

// y [T, N] = scale * W x + bias, added to what y holds if `accumulate`.
struct Product {
  Matrix weight;  // [N, K]
  Rows y;
  bool accumulate = false;
  Vector bias = {};  // [N], or none
  float scale = 1;
};
// x [T, K]; y are other rows.
void MatMul(Exec& exec, Rows x, std::span<const Product> products);
inline void MatMul(Exec& exec, Rows x, const Product& product) { MatMul(exec, x, {&product, 1}); }
// y [T, D] = rows of table [V, D].
void Embed(Exec& exec, const Matrix& table, std::span<const int32_t> tokens, Rows y);

// ---- row by row (rms_norm.h, layer_norm.h, rope.h, elementwise.h, activation.h); y may be x

// x, y [T, D]; w [D].
void RmsNorm(Exec& exec, Rows x, Vector w, float eps, Rows y);
// The `groups` parts of a row each on their own.
void LayerNorm(Exec& exec, Rows x, Vector w, Vector b, float eps, Rows y, int64_t groups = 1);
struct Rotation {
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;
  RopeLayout layout = RopeLayout::kInterleaved;
  std::span<const double> theta;
};
// [T, a number of heads * head_dim] each, in place.
void Rope(Exec& exec, std::span<const Rows> rows, const Rotation& rotation,
          std::span<const int64_t> positions);
inline void Rope(Exec& exec, Rows x, const Rotation& rotation, std::span<const int64_t> positions) {
  Rope(exec, {&x, 1}, rotation, positions);
}
void SiluMul(Exec& exec, Rows gate, Rows up, Rows y);
void Add(Exec& exec, Rows x, Rows y);  // y += x
void Mul(Exec& exec, Rows x, Rows y);  // y *= x
void Activate(Exec& exec, Activation f, Rows x, Rows y);
// scale, bias [n, C] for the n functions of the series.
void SeriesActivate(Exec& exec, std::span<const Activation> series, Rows x, Vector scale,
                    Vector bias, Rows y);

// ---- copies (rows.h)

void Copy(Exec& exec, Rows from, Rows to);
// Every row of `to`, if there is one row of numbers; otherwise all rows, one behind the other.
void Copy(Exec& exec, Vector from, Rows to);
// Row i of `to` = row rows[i] of `from`.
void Gather(Exec& exec, Rows from, std::span<const int64_t> rows, Rows to);
// The inverse of Batch::Select: the rows of `from`, piece behind piece, to where the pieces are.
void Scatter(Exec& exec, Rows from, std::span<const Run> pieces, Rows to);
// Row of position p to row p mod ring_rows of the field, [ring_rows, width], as its type holds it.
void StoreRows(Exec& exec, std::span<const Run> runs, Rows x, const StateField& field,
               int64_t ring_rows);
// A run's rows to the beginning of the field, and back (f32).
void WriteState(Exec& exec, std::span<const Run> runs, Rows x, const StateField& field);
void ReadState(Exec& exec, std::span<const Run> runs, const StateField& field, Rows x);
// The same numbers to the beginning of a field of f32.
void WriteState(Exec& exec, StateSlot slot, Vector from, const StateField& field);

// ---- attention (attention.h, block_attention.h)

struct Attention {
  // [sinks + window, kv_heads * head_dim], or in pages: then without sinks, and the window is the
  // context's limit.
  StateField k, v;
  int64_t sinks = 0;
  int64_t window = 0;
  int64_t query_heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  float scale = 0;
  Rows q, q_sink;     // [T, query_heads * head_dim], rotated; q_sink as sinks are met
  Rows new_k, new_v;  // [T, kv_heads * head_dim]
  Rows out;           // as q
};
void Attend(Exec& exec, std::span<const Run> runs, const Attention& attention);

// Over rows of the state alone, in this order: whole blocks of the past, a memory, and the block of
// the run's position, which the run's own rows are already in.
struct BlockAttention {
  StateField k, v;           // rings of ring_blocks blocks: position p is row p mod their tokens
  int64_t block_tokens = 0;  // 0: the memory alone
  int64_t ring_blocks = 1;
  int64_t past_blocks = 0;        // that are seen, below ring_blocks
  StateField memory_k, memory_v;  // [memory_rows, ...]
  int64_t memory_rows = 0;
  // The current block up to the query's own position; otherwise all of it.
  bool causal = true;
  int64_t query_heads = 0;
  int64_t kv_heads = 0;
  int64_t key_dim = 0;
  int64_t value_dim = 0;
  float scale = 0;
  Rows q;    // [T, query_heads * key_dim]
  Rows out;  // [T, query_heads * value_dim]
};
void Attend(Exec& exec, std::span<const Run> runs, const BlockAttention& attention);

// ---- RWKV (token_shift.h, wkv.h); rows [T, C], heads of C / heads

// delta[t] = x[t - 1] - x[t]; `previous` [C].
void TokenShift(Exec& exec, std::span<const Run> runs, Rows x, const StateField& previous,
                Rows delta);
// y = x + delta * (mu + dynamic); `dynamic` may be empty. No blend of a call reads what another one
// writes.
struct Blend {
  Vector mu;  // [C]
  Rows y;
  Rows dynamic = {};
};
void Lerp(Exec& exec, Rows x, Rows delta, std::span<const Blend> blends);

struct Wkv4 {
  StateField numerator, denominator, exponent;  // [C]
  Vector decay, bonus;                          // [C]
  Rows k, v;
  Rows y;  // may be k or v
};
void Scan(Exec& exec, std::span<const Run> runs, const Wkv4& wkv);

struct Wkv6 {
  StateField state;  // [heads, N, N]
  int64_t heads = 0;
  Rows r, k, v;
  Rows decay;          // [T, C], or empty:
  Vector fixed_decay;  // [C]
  Vector bonus;        // [C]
  Rows y;              // distinct
};
void Scan(Exec& exec, std::span<const Run> runs, const Wkv6& wkv);

struct Wkv7Prepare {
  int64_t heads = 0;
  Rows w, a, k, v, kappa;
  Rows mix, first;  // empty in the first layer
  Vector k_k, k_a;  // [C]
};
void Prepare(Exec& exec, const Wkv7Prepare& wkv);

struct Wkv7 {
  StateField state;  // [heads, N, N]
  int64_t heads = 0;
  Rows r, decay, k, v, kappa, b;
  Rows y;  // distinct
};
void Scan(Exec& exec, std::span<const Run> runs, const Wkv7& wkv);
// y[t, h] = (y[t, h] + v[t, h] sum_j r_j k_j r_k[h, j]) * gate[t, h]
void Wkv7Bonus(Exec& exec, int64_t heads, Rows r, Rows k, Rows v, Rows gate, Vector r_k, Rows y);

// ---- Infini-attention (infini_memory.h); runs lie in one segment each

void InfiniFeatureMap(Exec& exec, Rows x, Rows y);

struct InfiniMix {
  StateField memory, normalizer, pending_memory, pending_normalizer;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t key_dim = 0;
  int64_t value_dim = 0;
  float eps = 0;
  bool delta = false;
  Vector memory_share, local_share;  // [heads]
  int64_t local_until = 0;           // runs that begin before this position see `local` alone
  Rows sq, sk, v, local;
  Rows mixed;
};
void Mix(Exec& exec, std::span<const Run> runs, const InfiniMix& mix);

// ---- Titans (short_conv.h, titans_memory.h, titans_attention.h)

struct Convolution {
  StateField kept;  // [num_taps - 1, width]; none with one tap
  Vector taps;      // [num_taps, width]
  int64_t num_taps = 0;
  int64_t norm_heads = 0;
  Rows x;
  Rows y;  // other rows
};
void Convolve(Exec& exec, std::span<const Run> runs, std::span<const Convolution> convolutions);

// z [T, 3 * heads], in place.
void TitansRates(Exec& exec, const TitansRatesArgs& args, Rows z);

struct TitansMemory {
  TitansMemoryShape shape;
  int64_t heads = 0;
  int64_t chunk_tokens = 0;
  bool token_mode = false;
  float gradient_clip = 0;
  std::vector<StateField> committed, momentum, running;  // [depth]
  StateField pending_k, pending_v, pending_rates;
  std::span<const Vector> target;  // [depth], or empty
  Vector gain;
  Rows q;
  Rows k, v, rates;  // empty: the memory is only read
  Rows y;
};
void ReadAndWrite(Exec& exec, std::span<const Run> runs, const TitansMemory& memory);

struct TitansStream {
  StateField kept_k, kept_v;
  Rows k, v;
};
struct TitansAttention {
  int64_t heads = 0;
  int64_t head_dim = 0;
  float scale = 0;
  int64_t persistent_tokens = 0;
  Vector persistent_k, persistent_v;
  int64_t window = 0;
  bool segments = false;
  std::span<const TitansStream> streams;
  Rows q, q_rotated;
  Rows out;
};
void Attend(Exec& exec, std::span<const Run> runs, const TitansAttention& attention);

// ---- results

// finite[t] = whether every number of x[t] is one.
void FiniteRows(Exec& exec, Rows x, std::span<uint8_t> finite);

}  // namespace ops
}  // namespace mneme::engine
