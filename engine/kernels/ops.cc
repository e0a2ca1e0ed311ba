#include "engine/kernels/ops.h"

#include <algorithm>
#include <array>
#include <cassert>

#include "absl/container/inlined_vector.h"
#include "engine/device/raw.h"
#include "engine/kernels/exec.h"
#include "engine/kernels/kernels.h"

namespace mneme::engine::ops {
namespace {

bool SameShape(const Rows& a, const Rows& b) {
  return a.count() == b.count() && a.width() == b.width();
}

// Elementwise ops see one array.
[[maybe_unused]] bool SameArrays(const Rows& a, const Rows& b) {
  return SameShape(a, b) && a.contiguous() && b.contiguous();
}

// The first row of a run in `rows`; null for rows that are not there.
float* At(const Rows& rows, const Run& run) {
  return rows ? Raw(rows) + run.first_row * rows.stride() : nullptr;
}

// What a decode step's calls need fits without an allocation: they are many and short.
template <typename Args>
using List = absl::InlinedVector<Args, 4>;

// One entry per run.
template <typename Args, typename Make>
List<Args> ForEach(std::span<const Run> runs, Make make) {
  List<Args> batch;
  batch.reserve(runs.size());
  for (const Run& run : runs) batch.push_back(make(run));
  return batch;
}

CopyRowsArgs CopyOf(const Rows& from, const Rows& to) {
  assert(SameShape(from, to));
  return {.from = Raw(from),
          .from_stride = from.stride(),
          .to = Raw(to),
          .to_stride = to.stride(),
          .rows = from.count(),
          .width = from.width()};
}

}  // namespace

void MatMul(Exec& exec, Rows x, std::span<const Product> products) {
  List<MatMulTask> tasks;
  tasks.reserve(products.size());
  for (const Product& product : products) {
    const Matrix& weight = product.weight;
    assert(weight.columns() == x.width());
    assert(product.y.count() == x.count() && product.y.width() == weight.rows());
    assert(!product.bias || product.bias.size() == weight.rows());
    tasks.push_back({.weight = Raw(weight),
                     .y = Raw(product.y),
                     .y_stride = product.y.stride(),
                     .accumulate = product.accumulate,
                     .bias = Raw(product.bias),
                     .scale = product.scale});
  }
  exec.kernels().matmul(exec, tasks, Raw(x), x.stride(), x.count());
}

void Embed(Exec& exec, const Matrix& table, std::span<const int32_t> tokens, Rows y) {
  assert(y.contiguous() && y.width() == table.columns());
  assert(y.count() == static_cast<int64_t>(tokens.size()));
  exec.kernels().embed_rows(exec, Raw(table), tokens, Raw(y));
}

void RmsNorm(Exec& exec, Rows x, Vector w, float eps, Rows y) {
  assert(SameArrays(x, y) && w.size() == x.width());
  exec.kernels().rms_norm(exec, Raw(x), Raw(w), eps, x.count(), x.width(), Raw(y));
}

void LayerNorm(Exec& exec, Rows x, Vector w, Vector b, float eps, Rows y, int64_t groups) {
  assert(SameArrays(x, y) && w.size() == x.width() && b.size() == x.width());
  exec.kernels().layer_norm(exec, {.x = Raw(x),
                                   .w = Raw(w),
                                   .b = Raw(b),
                                   .eps = eps,
                                   .T = x.count(),
                                   .D = x.width(),
                                   .groups = groups,
                                   .y = Raw(y)});
}

void Rope(Exec& exec, std::span<const Rows> rows, const Rotation& rotation,
          std::span<const int64_t> positions) {
  List<RotatedRows> rotated;
  for (const Rows& x : rows) {
    assert(x.width() % rotation.head_dim == 0);
    assert(x.count() == static_cast<int64_t>(positions.size()));
    rotated.push_back({Raw(x), x.stride(), x.width() / rotation.head_dim});
  }
  exec.kernels().rope(exec, {.rows = rotated,
                             .head_dim = rotation.head_dim,
                             .rotary_dim = rotation.rotary_dim,
                             .layout = rotation.layout,
                             .positions = positions,
                             .theta = rotation.theta});
}

void SiluMul(Exec& exec, Rows gate, Rows up, Rows y) {
  assert(SameArrays(gate, up) && SameArrays(up, y));
  exec.kernels().silu_mul(exec, Raw(gate), Raw(up), y.elements(), Raw(y));
}

void Add(Exec& exec, Rows x, Rows y) {
  assert(SameArrays(x, y));
  exec.kernels().add(exec, Raw(x), x.elements(), Raw(y));
}

void Mul(Exec& exec, Rows x, Rows y) {
  assert(SameArrays(x, y));
  exec.kernels().mul(exec, Raw(x), x.elements(), Raw(y));
}

void Activate(Exec& exec, Activation f, Rows x, Rows y) {
  assert(SameArrays(x, y));
  exec.kernels().activate(exec, f, Raw(x), x.elements(), Raw(y));
}

void SeriesActivate(Exec& exec, std::span<const Activation> series, Rows x, Vector scale,
                    Vector bias, Rows y) {
  assert(SameArrays(x, y));
  assert(scale.size() == static_cast<int64_t>(series.size()) * x.width());
  assert(bias.size() == scale.size());
  exec.kernels().series_activate(exec, {.x = Raw(x),
                                        .scale = Raw(scale),
                                        .bias = Raw(bias),
                                        .series = series,
                                        .T = x.count(),
                                        .C = x.width(),
                                        .y = Raw(y)});
}

void Copy(Exec& exec, Rows from, Rows to) {
  const CopyRowsArgs copy = CopyOf(from, to);
  exec.kernels().copy_rows(exec, {&copy, 1});
}

void Copy(Exec& exec, Vector from, Rows to) {
  assert(from.size() == to.width() || from.size() == to.elements());
  const CopyRowsArgs copy{.from = Raw(from),
                          .from_stride = from.size() == to.width() ? 0 : to.width(),
                          .to = Raw(to),
                          .to_stride = to.stride(),
                          .rows = to.count(),
                          .width = to.width()};
  exec.kernels().copy_rows(exec, {&copy, 1});
}

void Gather(Exec& exec, Rows from, std::span<const int64_t> rows, Rows to) {
  List<CopyRowsArgs> copies;
  // Neighbours in one piece.
  for (size_t begin = 0, end; begin < rows.size(); begin = end) {
    for (end = begin + 1; end < rows.size() && rows[end] == rows[end - 1] + 1;) ++end;
    const auto count = static_cast<int64_t>(end - begin);
    copies.push_back(
        CopyOf(from.Slice(rows[begin], count), to.Slice(static_cast<int64_t>(begin), count)));
  }
  exec.kernels().copy_rows(exec, copies);
}

void Scatter(Exec& exec, Rows from, std::span<const Run> pieces, Rows to) {
  int64_t first = 0;
  const auto copies = ForEach<CopyRowsArgs>(pieces, [&](const Run& piece) {
    const Rows rows = from.Slice(first, piece.rows);
    first += piece.rows;
    return CopyOf(rows, to.Slice(piece.first_row, piece.rows));
  });
  exec.kernels().copy_rows(exec, copies);
}

void StoreRows(Exec& exec, std::span<const Run> runs, Rows x, const StateField& field,
               int64_t ring_rows) {
  const int64_t row_bytes = x.width() * Traits(field.dtype).block_bytes;
  List<StoreRowsArgs> stores;
  for (const Run& run : runs) {
    // Of more rows than the ring has, the last ones; where it wraps, in two pieces.
    const int64_t skip = std::max<int64_t>(0, run.rows - ring_rows);
    for (int64_t t = skip, count; t < run.rows; t += count) {
      const int64_t at = (run.position + t) % ring_rows;
      count = std::min(run.rows - t, ring_rows - at);
      stores.push_back({.x = At(x, run) + t * x.stride(),
                        .x_stride = x.stride(),
                        .rows = count,
                        .width = x.width(),
                        .dtype = field.dtype,
                        .to = Raw(run.slot, field) + at * row_bytes});
    }
  }
  exec.kernels().store_rows(exec, stores);
}

void WriteState(Exec& exec, std::span<const Run> runs, Rows x, const StateField& field) {
  exec.kernels().store_rows(exec, ForEach<StoreRowsArgs>(runs, [&](const Run& run) {
                              return StoreRowsArgs{.x = At(x, run),
                                                   .x_stride = x.stride(),
                                                   .rows = run.rows,
                                                   .width = x.width(),
                                                   .dtype = field.dtype,
                                                   .to = Raw(run.slot, field)};
                            }));
}

void ReadState(Exec& exec, std::span<const Run> runs, const StateField& field, Rows x) {
  assert(field.dtype == DType::kF32);
  exec.kernels().copy_rows(exec, ForEach<CopyRowsArgs>(runs, [&](const Run& run) {
                             return CopyRowsArgs{.from = RawFloats(run.slot, field),
                                                 .from_stride = x.width(),
                                                 .to = At(x, run),
                                                 .to_stride = x.stride(),
                                                 .rows = run.rows,
                                                 .width = x.width()};
                           }));
}

void WriteState(Exec& exec, StateSlot slot, Vector from, const StateField& field) {
  assert(field.dtype == DType::kF32);
  const CopyRowsArgs copy{
      .from = Raw(from), .to = RawFloats(slot, field), .rows = 1, .width = from.size()};
  exec.kernels().copy_rows(exec, {&copy, 1});
}

void Attend(Exec& exec, std::span<const Run> runs, const Attention& a) {
  assert(SameShape(a.q, a.q_sink) && SameShape(a.q, a.out) && SameShape(a.new_k, a.new_v));
  assert(a.q.width() == a.query_heads * a.head_dim);
  assert(a.new_k.width() == a.kv_heads * a.head_dim);
  assert(a.q.stride() == a.q_sink.stride() && a.new_k.stride() == a.new_v.stride());
  assert(a.k.paged == a.v.paged && a.k.dtype == a.v.dtype && (!a.k.paged || a.sinks == 0));
  exec.kernels().attention(exec, ForEach<AttentionArgs>(runs, [&](const Run& run) {
                             AttentionArgs args{.ring_dtype = a.k.dtype,
                                                .sinks = a.sinks,
                                                .window = a.window,
                                                .position = run.position,
                                                .T = run.rows,
                                                .query_heads = a.query_heads,
                                                .kv_heads = a.kv_heads,
                                                .head_dim = a.head_dim,
                                                .scale = a.scale,
                                                .q = At(a.q, run),
                                                .q_sink = At(a.q_sink, run),
                                                .q_stride = a.q.stride(),
                                                .k = At(a.new_k, run),
                                                .v = At(a.new_v, run),
                                                .kv_stride = a.new_k.stride(),
                                                .out = At(a.out, run),
                                                .out_stride = a.out.stride()};
                             if (a.k.paged) {
                               assert(run.position + run.rows <= a.window);
                               args.pages = RawPages(run.slot);
                               args.k_in_page = a.k.offset_bytes;
                               args.v_in_page = a.v.offset_bytes;
                             } else {
                               args.k_ring = Raw(run.slot, a.k);
                               args.v_ring = Raw(run.slot, a.v);
                             }
                             return args;
                           }));
}

void Attend(Exec& exec, std::span<const Run> runs, const BlockAttention& a) {
  assert(a.q.width() == a.query_heads * a.key_dim && a.out.width() == a.query_heads * a.value_dim);
  const DType dtype = a.block_tokens > 0 ? a.k.dtype : a.memory_k.dtype;
  const int64_t element = Traits(dtype).block_bytes;
  const int64_t k_row = a.kv_heads * a.key_dim * element;
  const int64_t v_row = a.kv_heads * a.value_dim * element;
  const int64_t B = a.block_tokens, ring = a.ring_blocks * B;
  exec.kernels().block_attention(
      exec, ForEach<BlockAttentionArgs>(runs, [&](const Run& run) {
        BlockAttentionArgs args{.dtype = dtype,
                                .causal = a.causal,
                                .T = run.rows,
                                .query_heads = a.query_heads,
                                .kv_heads = a.kv_heads,
                                .key_dim = a.key_dim,
                                .value_dim = a.value_dim,
                                .scale = a.scale,
                                .q = At(a.q, run),
                                .q_stride = a.q.stride(),
                                .out = At(a.out, run),
                                .out_stride = a.out.stride()};
        size_t count = 0;
        const auto see = [&](const StateField& k, const StateField& v, int64_t first,
                             int64_t rows) {
          if (rows == 0) return;
          args.runs[count++] = {Raw(run.slot, k) + first * k_row, Raw(run.slot, v) + first * v_row,
                                rows};
        };
        if (B == 0) {
          see(a.memory_k, a.memory_v, 0, a.memory_rows);
          return args;
        }
        const int64_t begin = run.position - run.position % B;  // of the current block
        const int64_t past = std::min(a.past_blocks * B, begin);
        const int64_t oldest = (begin - past) % ring;
        const int64_t unwrapped = std::min(past, ring - oldest);
        see(a.k, a.v, oldest, unwrapped);
        see(a.k, a.v, 0, past - unwrapped);
        see(a.memory_k, a.memory_v, 0, a.memory_rows);
        // A block lies in one piece: the ring is a whole number of them.
        see(a.k, a.v, begin % ring, a.causal ? run.position - begin + run.rows : B);
        return args;
      }));
}

void TokenShift(Exec& exec, std::span<const Run> runs, Rows x, const StateField& previous,
                Rows delta) {
  assert(SameArrays(x, delta));
  exec.kernels().token_shift(exec, ForEach<TokenShiftArgs>(runs, [&](const Run& run) {
                               return TokenShiftArgs{.x = At(x, run),
                                                     .previous = RawFloats(run.slot, previous),
                                                     .delta = At(delta, run),
                                                     .T = run.rows,
                                                     .C = x.width()};
                             }));
}

void Lerp(Exec& exec, Rows x, Rows delta, std::span<const Blend> blends) {
  assert(SameArrays(x, delta));
  List<LerpArgs> batch;
  for (const Blend& blend : blends) {
    assert(SameArrays(x, blend.y) && blend.mu.size() == x.width());
    batch.push_back({.x = Raw(x),
                     .delta = Raw(delta),
                     .mu = Raw(blend.mu),
                     .dynamic = Raw(blend.dynamic),
                     .dynamic_stride = blend.dynamic.stride(),
                     .T = x.count(),
                     .C = x.width(),
                     .y = Raw(blend.y)});
  }
  exec.kernels().lerp(exec, batch);
}

void Scan(Exec& exec, std::span<const Run> runs, const Wkv4& wkv) {
  assert(SameArrays(wkv.k, wkv.v) && SameArrays(wkv.k, wkv.y));
  exec.kernels().wkv4(exec, ForEach<Wkv4Args>(runs, [&](const Run& run) {
                        return Wkv4Args{.numerator = RawFloats(run.slot, wkv.numerator),
                                        .denominator = RawFloats(run.slot, wkv.denominator),
                                        .exponent = RawFloats(run.slot, wkv.exponent),
                                        .decay = Raw(wkv.decay),
                                        .bonus = Raw(wkv.bonus),
                                        .k = At(wkv.k, run),
                                        .v = At(wkv.v, run),
                                        .y = At(wkv.y, run),
                                        .T = run.rows,
                                        .C = wkv.k.width()};
                      }));
}

void Scan(Exec& exec, std::span<const Run> runs, const Wkv6& wkv) {
  assert(SameArrays(wkv.r, wkv.k) && SameArrays(wkv.k, wkv.v) && SameArrays(wkv.v, wkv.y));
  assert(static_cast<bool>(wkv.decay) != static_cast<bool>(wkv.fixed_decay));
  exec.kernels().wkv6(exec, ForEach<Wkv6Args>(runs, [&](const Run& run) {
                        return Wkv6Args{
                            .state = RawFloats(run.slot, wkv.state),
                            .r = At(wkv.r, run),
                            .k = At(wkv.k, run),
                            .v = At(wkv.v, run),
                            .decay = wkv.decay ? At(wkv.decay, run) : Raw(wkv.fixed_decay),
                            .decay_stride = wkv.decay.stride(),
                            .bonus = Raw(wkv.bonus),
                            .y = At(wkv.y, run),
                            .T = run.rows,
                            .heads = wkv.heads,
                            .head_size = wkv.r.width() / wkv.heads};
                      }));
}

void Prepare(Exec& exec, const Wkv7Prepare& wkv) {
  assert(SameArrays(wkv.w, wkv.a) && SameArrays(wkv.a, wkv.k) && SameArrays(wkv.k, wkv.v));
  assert(!wkv.mix || (SameArrays(wkv.mix, wkv.v) && SameArrays(wkv.first, wkv.v)));
  exec.kernels().wkv7_prepare(exec, {.w = Raw(wkv.w),
                                     .a = Raw(wkv.a),
                                     .k = Raw(wkv.k),
                                     .v = Raw(wkv.v),
                                     .kappa = Raw(wkv.kappa),
                                     .mix = Raw(wkv.mix),
                                     .first = Raw(wkv.first),
                                     .k_k = Raw(wkv.k_k),
                                     .k_a = Raw(wkv.k_a),
                                     .T = wkv.k.count(),
                                     .heads = wkv.heads,
                                     .head_size = wkv.k.width() / wkv.heads});
}

void Scan(Exec& exec, std::span<const Run> runs, const Wkv7& wkv) {
  assert(SameArrays(wkv.r, wkv.k) && SameArrays(wkv.k, wkv.v) && SameArrays(wkv.v, wkv.y));
  exec.kernels().wkv7(exec, ForEach<Wkv7Args>(runs, [&](const Run& run) {
                        return Wkv7Args{.state = RawFloats(run.slot, wkv.state),
                                        .r = At(wkv.r, run),
                                        .decay = At(wkv.decay, run),
                                        .k = At(wkv.k, run),
                                        .v = At(wkv.v, run),
                                        .kappa = At(wkv.kappa, run),
                                        .b = At(wkv.b, run),
                                        .y = At(wkv.y, run),
                                        .T = run.rows,
                                        .heads = wkv.heads,
                                        .head_size = wkv.r.width() / wkv.heads};
                      }));
}

void Wkv7Bonus(Exec& exec, int64_t heads, Rows r, Rows k, Rows v, Rows gate, Vector r_k, Rows y) {
  assert(SameArrays(r, k) && SameArrays(k, v) && SameArrays(v, gate) && SameArrays(gate, y));
  exec.kernels().wkv7_bonus(exec, {.r = Raw(r),
                                   .k = Raw(k),
                                   .v = Raw(v),
                                   .gate = Raw(gate),
                                   .r_k = Raw(r_k),
                                   .y = Raw(y),
                                   .T = r.count(),
                                   .heads = heads,
                                   .head_size = r.width() / heads});
}

void InfiniFeatureMap(Exec& exec, Rows x, Rows y) {
  assert(SameArrays(x, y));
  exec.kernels().infini_feature_map(exec, Raw(x), x.elements(), Raw(y));
}

void Mix(Exec& exec, std::span<const Run> runs, const InfiniMix& mix) {
  assert(SameArrays(mix.local, mix.mixed));
  exec.kernels().infini_mix(exec,
                            {.heads = mix.heads,
                             .kv_heads = mix.kv_heads,
                             .key_dim = mix.key_dim,
                             .value_dim = mix.value_dim,
                             .eps = mix.eps,
                             .delta = mix.delta,
                             .memory_share = Raw(mix.memory_share),
                             .local_share = Raw(mix.local_share)},
                            ForEach<InfiniMixArgs>(runs, [&](const Run& run) {
                              return InfiniMixArgs{
                                  .memory = RawFloats(run.slot, mix.memory),
                                  .normalizer = RawFloats(run.slot, mix.normalizer),
                                  .pending_memory = RawFloats(run.slot, mix.pending_memory),
                                  .pending_normalizer = RawFloats(run.slot, mix.pending_normalizer),
                                  .rows = run.rows,
                                  .local_only = run.position < mix.local_until,
                                  .completes = run.completes,
                                  .sq = At(mix.sq, run),
                                  .sk = At(mix.sk, run),
                                  .v = At(mix.v, run),
                                  .local = At(mix.local, run),
                                  .mixed = At(mix.mixed, run)};
                            }));
}

void Convolve(Exec& exec, std::span<const Run> runs, std::span<const Convolution> convolutions) {
  List<ShortConvArgs> batch;
  for (const Convolution& c : convolutions) {
    assert(SameArrays(c.x, c.y) && c.taps.size() == c.num_taps * c.x.width());
    for (const Run& run : runs) {
      batch.push_back({.taps = Raw(c.taps),
                       .num_taps = c.num_taps,
                       .width = c.x.width(),
                       .norm_heads = c.norm_heads,
                       .kept = RawFloats(run.slot, c.kept),
                       .position = run.position,
                       .rows = run.rows,
                       .x = At(c.x, run),
                       .y = At(c.y, run)});
    }
  }
  exec.kernels().short_conv(exec, batch);
}

void TitansRates(Exec& exec, const TitansRatesArgs& args, Rows z) {
  assert(z.contiguous() && z.width() == 3 * args.heads);
  exec.kernels().titans_rates(exec, args, z.count(), Raw(z));
}

void ReadAndWrite(Exec& exec, std::span<const Run> runs, const TitansMemory& memory) {
  assert(SameArrays(memory.q, memory.y));
  TitansMemoryLayer layer{.memory = memory.shape,
                          .heads = memory.heads,
                          .chunk_tokens = memory.chunk_tokens,
                          .token_mode = memory.token_mode,
                          .gradient_clip = memory.gradient_clip,
                          .target = {},
                          .gain = Raw(memory.gain)};
  for (const Vector& target : memory.target) layer.target.push_back(Raw(target));
  exec.kernels().titans_memory(exec, layer, ForEach<TitansMemoryArgs>(runs, [&](const Run& run) {
                                 const auto matrices = [&](const std::vector<StateField>& fields) {
                                   std::vector<float*> at;
                                   for (const StateField& field : fields) {
                                     at.push_back(RawFloats(run.slot, field));
                                   }
                                   return at;
                                 };
                                 return TitansMemoryArgs{
                                     .committed = matrices(memory.committed),
                                     .momentum = matrices(memory.momentum),
                                     .running = matrices(memory.running),
                                     .pending_k = RawFloats(run.slot, memory.pending_k),
                                     .pending_v = RawFloats(run.slot, memory.pending_v),
                                     .pending_rates = RawFloats(run.slot, memory.pending_rates),
                                     .position = run.position,
                                     .rows = run.rows,
                                     .q = At(memory.q, run),
                                     .k = At(memory.k, run),
                                     .v = At(memory.v, run),
                                     .rates = At(memory.rates, run),
                                     .y = At(memory.y, run)};
                               }));
}

void Attend(Exec& exec, std::span<const Run> runs, const TitansAttention& a) {
  assert(SameArrays(a.q, a.q_rotated) && SameArrays(a.q, a.out));
  assert(a.streams.size() <= kMaxTitansStreams);
  exec.kernels().titans_attention(
      exec,
      {.heads = a.heads,
       .head_dim = a.head_dim,
       .scale = a.scale,
       .persistent_tokens = a.persistent_tokens,
       .persistent_k = Raw(a.persistent_k),
       .persistent_v = Raw(a.persistent_v),
       .window = a.window,
       .segments = a.segments,
       .dtype = a.streams[0].kept_k.dtype},
      ForEach<TitansAttentionArgs>(runs, [&](const Run& run) {
        TitansAttentionArgs args{.position = run.position,
                                 .rows = run.rows,
                                 .num_streams = static_cast<int>(a.streams.size()),
                                 .streams = {},
                                 .q = At(a.q, run),
                                 .q_rotated = At(a.q_rotated, run),
                                 .out = At(a.out, run)};
        for (size_t i = 0; i < a.streams.size(); ++i) {
          const TitansStream& stream = a.streams[i];
          args.streams[i] = {Raw(run.slot, stream.kept_k), Raw(run.slot, stream.kept_v),
                             At(stream.k, run), At(stream.v, run)};
        }
        return args;
      }));
}

void FiniteRows(Exec& exec, Rows x, std::span<uint8_t> finite) {
  assert(x.contiguous() && x.count() == static_cast<int64_t>(finite.size()));
  exec.kernels().finite_rows(exec, Raw(x), x.count(), x.width(), finite.data());
}

}  // namespace mneme::engine::ops
