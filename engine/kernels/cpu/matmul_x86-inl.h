// Matrix products in 256-bit vectors. Included once per instruction set, with
//   MICRO_NAMESPACE, MICRO_TARGET (target attribute string), MICRO_VNNI (0 or 1).
// No #pragma once: the inclusions differ.

#define MICRO_FN __attribute__((target(MICRO_TARGET)))
#define MICRO_INLINE __attribute__((target(MICRO_TARGET), always_inline)) inline
#define MICRO_LAMBDA __attribute__((target(MICRO_TARGET), always_inline))

namespace mneme::engine::cpu {
namespace MICRO_NAMESPACE {

constexpr int kRows = 8;  // rows a step works on: one per lane

// f(0), ..., f(N - 1) with constant arguments. A loop, even an unrolled one, would leave arrays of
// sums in memory: gcc splits an array into registers before it unrolls.
template <typename F, int... I>
MICRO_INLINE void UnrollOver(F& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int N, typename F>
MICRO_INLINE void Unroll(F f) {
  UnrollOver(f, std::make_integer_sequence<int, N>{});
}

// ---------------------------------------------------------------------------------------------
// Activations

MICRO_INLINE int32_t SumLanes(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
  return _mm_cvtsi128_si32(s);
}

MICRO_INLINE uint32_t MaxLanes(__m256i v) {
  __m128i m = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(m));
}

MICRO_FN void QuantizeRow(const float* x, const QuantizedRows& out) {
  const __m256i magnitude_mask = _mm256_set1_epi32(0x7fffffff);
  for (int64_t b = 0; b < out.blocks; ++b) {
    __m256 v[4];
    __m256i max = _mm256_setzero_si256();
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_loadu_ps(x + b * kCodeBlock + 8 * i);
      // Magnitudes order like their bits, and NaN above infinity above the rest.
      max = _mm256_max_epu32(max, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude_mask));
    }
    const uint32_t max_bits = MaxLanes(max);
    int8_t* q = out.q + b * kCodeBlock;
    const bool finite = max_bits < 0x7f800000u;
    const float d =
        finite ? std::bit_cast<float>(max_bits) / 127.0f : std::numeric_limits<float>::quiet_NaN();
    if (!(d >= std::numeric_limits<float>::min())) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), _mm256_setzero_si256());
      out.d[b] = out.s[b] = finite ? 0.0f : d;
      out.sum[b] = 0;
      continue;
    }
    const __m256 scale = _mm256_set1_ps(d);
    __m256i i32[4];
    for (int i = 0; i < 4; ++i) i32[i] = _mm256_cvtps_epi32(_mm256_div_ps(v[i], scale));
    const int32_t sum = SumLanes(
        _mm256_add_epi32(_mm256_add_epi32(i32[0], i32[1]), _mm256_add_epi32(i32[2], i32[3])));
    const __m256i i8 =
        _mm256_packs_epi16(_mm256_packs_epi32(i32[0], i32[1]), _mm256_packs_epi32(i32[2], i32[3]));
    // Packing works within 128-bit halves: put the groups of four back in order.
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q),
                        _mm256_permutevar8x32_epi32(i8, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
    out.d[b] = d;
    out.s[b] = d * static_cast<float>(sum);
    out.sum[b] = sum;
  }
}

// ---------------------------------------------------------------------------------------------
// Pieces

MICRO_INLINE __m128i Load128(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
MICRO_INLINE __m256i Load256(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
MICRO_INLINE __m256i Load128Twice(const void* low, const void* high) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(Load128(low)), Load128(high), 1);
}
MICRO_INLINE int32_t Load32(const void* p) {
  int32_t v;
  std::memcpy(&v, p, 4);
  return v;
}
MICRO_INLINE int Load16(const void* p) {
  uint16_t v;
  std::memcpy(&v, p, 2);
  return v;
}
MICRO_INLINE float LoadHalf(const void* p) { return _cvtsh_ss(static_cast<uint16_t>(Load16(p))); }

// Halfs at `offset` of eight blocks, as f32.
MICRO_INLINE __m256 GatherHalfs(const uint8_t* const* p, int64_t offset) {
  __m128i h = _mm_cvtsi32_si128(Load16(p[0] + offset));
  h = _mm_insert_epi16(h, Load16(p[1] + offset), 1);
  h = _mm_insert_epi16(h, Load16(p[2] + offset), 2);
  h = _mm_insert_epi16(h, Load16(p[3] + offset), 3);
  h = _mm_insert_epi16(h, Load16(p[4] + offset), 4);
  h = _mm_insert_epi16(h, Load16(p[5] + offset), 5);
  h = _mm_insert_epi16(h, Load16(p[6] + offset), 6);
  h = _mm_insert_epi16(h, Load16(p[7] + offset), 7);
  return _mm256_cvtph_ps(h);
}

// Pairs of halfs (scale, minimum) at `offset` of eight blocks.
MICRO_INLINE void GatherHalfPairs(const uint8_t* const* p, int64_t offset, __m256* first,
                                  __m256* second) {
  const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  __m128i low = _mm_cvtsi32_si128(Load32(p[0] + offset));
  low = _mm_insert_epi32(low, Load32(p[1] + offset), 1);
  low = _mm_insert_epi32(low, Load32(p[2] + offset), 2);
  low = _mm_insert_epi32(low, Load32(p[3] + offset), 3);
  __m128i high = _mm_cvtsi32_si128(Load32(p[4] + offset));
  high = _mm_insert_epi32(high, Load32(p[5] + offset), 1);
  high = _mm_insert_epi32(high, Load32(p[6] + offset), 2);
  high = _mm_insert_epi32(high, Load32(p[7] + offset), 3);
  low = _mm_shuffle_epi8(low, order);
  high = _mm_shuffle_epi8(high, order);
  *first = _mm256_cvtph_ps(_mm_unpacklo_epi64(low, high));
  *second = _mm256_cvtph_ps(_mm_unpackhi_epi64(low, high));
}

// V: __m256 or __m128, outputs of eight or four rows; as Finished, one by one at the span's end.
template <typename V>
MICRO_INLINE void StoreRows(const RowSpan& span, int64_t row, int64_t t, V value) {
  constexpr int64_t kLanes = sizeof(V) / sizeof(float);
  float* y = span.y + t * span.y_stride + row;
  const int64_t rows = span.rows - row;
  if (rows >= kLanes) {
    V old, bias;
    if (span.accumulate) std::memcpy(&old, y, sizeof old);
    if (span.plain) {
      value = span.accumulate ? old + value : value;
    } else {
      value = value * span.scale;
      if (span.bias != nullptr) {
        std::memcpy(&bias, span.bias + row, sizeof bias);
        value = (span.accumulate ? old + bias : bias) + value;
      } else {
        value = span.accumulate ? old + value : value;
      }
    }
    std::memcpy(y, &value, sizeof value);
    return;
  }
  float lanes[kLanes];
  std::memcpy(lanes, &value, sizeof value);
  for (int64_t i = 0; i < rows; ++i) y[i] = Finished(span, row + i, y[i], lanes[i]);
}

// Row pointers of a step. Past the end they repeat the last row: its lanes are not stored.
MICRO_INLINE void RowPointers(const RowSpan& span, int64_t row, const uint8_t** p) {
  const size_t row_bytes = span.weight->row_bytes();
  const auto* data = reinterpret_cast<const uint8_t*>(span.weight->data);
  for (int i = 0; i < kRows; ++i) {
    p[i] = data + (span.row + std::min(row + i, span.rows - 1)) * row_bytes;
  }
}

// Asks for the weights of later steps. A step reads eight rows side by side, so the request runs a
// whole step ahead, in the order of memory, and a little more: the last row's beginning is the
// nearest to its use. The hardware's own prefetch stops at the page and knows nothing of the next
// range.
class Prefetcher {
 public:
  // For a span that reads on from `row` of it.
  MICRO_INLINE explicit Prefetcher(const RowSpan& span) {
    const size_t row_bytes = span.weight->row_bytes();
    const auto* data = reinterpret_cast<const uint8_t*>(span.weight->data);
    end_ = data + span.stream_end * row_bytes;
    next_ = reinterpret_cast<const uint8_t*>(span.next);
    at_ = data + span.row * row_bytes + PrefetchDistance(row_bytes);
    Follow();
  }

  // Asks for the next `count_bytes`.
  MICRO_INLINE void Step(int64_t count_bytes) {
    for (int64_t i = 0; i < count_bytes; i += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(at_ + i), _MM_HINT_T0);
    }
    at_ += count_bytes;
  }

  // To be called now and then: where one range ends another begins.
  MICRO_INLINE void Follow() {
    if (at_ >= end_ && next_ != nullptr) {
      at_ = next_ + (at_ - end_);
      next_ = nullptr;
    }
  }

 private:
  const uint8_t* at_;
  const uint8_t* end_;
  const uint8_t* next_;
};

// ---------------------------------------------------------------------------------------------
// kInt8, one token: dot products of one block of eight rows, one row per lane

// [r0 r1 r2 r3 | r4 r5 r6 r7] from four vectors whose halves belong to rows i and i + 4.
#if MICRO_VNNI
MICRO_INLINE __m256i NibbleDot(__m256i w, __m256i q_low, __m256i q_high) {
  const __m256i mask = _mm256_set1_epi8(15);
  const __m256i low = _mm256_and_si256(w, mask);
  const __m256i high = _mm256_and_si256(_mm256_srli_epi16(w, 4), mask);
  return _mm256_dpbusd_epi32(_mm256_dpbusd_epi32(_mm256_setzero_si256(), low, q_low), high, q_high);
}
MICRO_INLINE __m256i ReduceNibbleDots(__m256i a, __m256i b, __m256i c, __m256i d) {
  return _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
}
#else
MICRO_INLINE __m256i NibbleDot(__m256i w, __m256i q_low, __m256i q_high) {
  const __m256i mask = _mm256_set1_epi8(15);
  const __m256i low = _mm256_and_si256(w, mask);
  const __m256i high = _mm256_and_si256(_mm256_srli_epi16(w, 4), mask);
  return _mm256_add_epi16(_mm256_maddubs_epi16(low, q_low), _mm256_maddubs_epi16(high, q_high));
}
// A lane holds four products of at most 15 * 127; sixteen of them still fit 16 bits.
MICRO_INLINE __m256i ReduceNibbleDots(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i sums = _mm256_hadd_epi16(_mm256_hadd_epi16(a, b), _mm256_hadd_epi16(c, d));
  return _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
}
#endif

// 32 products of signed bytes, in eight lanes. |w| <= 128 and |q| <= 127: pairs fit 16 bits.
MICRO_INLINE __m256i SignedDot(__m256i w, __m256i q) {
  const __m256i magnitude = _mm256_abs_epi8(w);
  const __m256i signed_q = _mm256_sign_epi8(q, w);
#if MICRO_VNNI
  return _mm256_dpbusd_epi32(_mm256_setzero_si256(), magnitude, signed_q);
#else
  return _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, signed_q), _mm256_set1_epi16(1));
#endif
}

MICRO_INLINE __m256i ReduceRowDots(const __m256i* v) {
  const __m256i low =
      _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
  const __m256i high =
      _mm256_hadd_epi32(_mm256_hadd_epi32(v[4], v[5]), _mm256_hadd_epi32(v[6], v[7]));
  return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20),
                          _mm256_permute2x128_si256(low, high, 0x31));
}

template <DType kType>
MICRO_FN void OneTokenInt8(const RowSpan& span, const QuantizedRows& x) {
  constexpr bool kMin = kType == DType::kQ4_1;
  constexpr int64_t kBytes = kType == DType::kQ8_0 ? 34 : kMin ? 20 : 18;
  Prefetcher prefetcher(span);
  for (int64_t row = 0; row < span.rows; row += kRows) {
    const uint8_t* p[kRows];
    RowPointers(span, row, p);
    prefetcher.Follow();
    __m256 a = _mm256_setzero_ps();
    __m256 m = _mm256_setzero_ps();
    for (int64_t b = 0; b < x.blocks; ++b) {
      prefetcher.Step(kBytes * kRows);
      const int64_t at = b * kBytes;
      const int8_t* q = x.q + b * kCodeBlock;
      __m256i dot;
      __m256 scale;
      __m256 min = _mm256_setzero_ps();
      if constexpr (kType == DType::kQ8_0) {
        const __m256i qs = Load256(q);
        __m256i v[kRows];
        for (int i = 0; i < kRows; ++i) v[i] = SignedDot(Load256(p[i] + at + 2), qs);
        dot = ReduceRowDots(v);
        scale = GatherHalfs(p, at);
      } else {
        constexpr int kCodes = kMin ? 4 : 2;
        const __m256i q_low = _mm256_broadcastsi128_si256(Load128(q));
        const __m256i q_high = _mm256_broadcastsi128_si256(Load128(q + 16));
        __m256i v[4];
        for (int i = 0; i < 4; ++i) {
          v[i] = NibbleDot(Load128Twice(p[i] + at + kCodes, p[i + 4] + at + kCodes), q_low, q_high);
        }
        dot = ReduceNibbleDots(v[0], v[1], v[2], v[3]);
        if constexpr (kMin) {
          GatherHalfPairs(p, at, &scale, &min);
        } else {
          dot = _mm256_sub_epi32(dot, _mm256_set1_epi32(8 * x.sum[b]));
          scale = GatherHalfs(p, at);
        }
      }
      a = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot),
                          _mm256_mul_ps(scale, _mm256_broadcast_ss(x.d + b)), a);
      if constexpr (kMin) m = _mm256_fmadd_ps(min, _mm256_broadcast_ss(x.s + b), m);
    }
    StoreRows(span, row, 0, kMin ? _mm256_add_ps(a, m) : a);
  }
}

// ---------------------------------------------------------------------------------------------
// kInt8, many tokens: eight rows unpacked once to bytes, interleaved so that a lane is a row

// [B][8 groups][8 rows][4 codes]; scale [B][2][8 rows], min [B][8 rows].
struct Panel {
  uint8_t* codes;
  float* scale;
  float* min;
};

MICRO_INLINE void Transpose8x8(__m256i* v) {
  __m256i a[8], b[8];
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
    a[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    b[4 * i + 0] = _mm256_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
    b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
    v[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
  }
}

// Bit e of `bits` as 16 in byte e.
MICRO_INLINE __m256i FifthBits(int32_t bits) {
  const __m256i byte_of_element =
      _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit_of_element = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
  const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), byte_of_element);
  const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit_of_element), bit_of_element);
  return _mm256_and_si256(set, _mm256_set1_epi8(16));
}

template <DType kType>
MICRO_FN void FillPanel(const RowSpan& span, int64_t row, int64_t blocks, const Panel& panel,
                        Prefetcher& prefetcher) {
  const uint8_t* p[kRows];
  RowPointers(span, row, p);
  prefetcher.Follow();
  for (int64_t b = 0; b < blocks; ++b) {
    __m256i v[kRows];
    if constexpr (kType == DType::kQ8_0) {
      prefetcher.Step(34 * kRows);
      for (int i = 0; i < kRows; ++i) {
        v[i] = Load256(p[i] + b * 34 + 2);
#if MICRO_VNNI
        v[i] = _mm256_xor_si256(v[i], _mm256_set1_epi8(static_cast<char>(0x80)));
#endif
      }
      const __m256 scale = GatherHalfs(p, b * 34);
      _mm256_store_ps(panel.scale + b * 16, scale);
    } else if constexpr (kType == DType::kQ4_0 || kType == DType::kQ4_1 || kType == DType::kQ5_0 ||
                         kType == DType::kQ5_1) {
      constexpr bool kMin = kType == DType::kQ4_1 || kType == DType::kQ5_1;
      constexpr bool kFifth = kType == DType::kQ5_0 || kType == DType::kQ5_1;
      constexpr int64_t kHalfs = kMin ? 4 : 2;
      constexpr int64_t kCodes = kHalfs + (kFifth ? 4 : 0);
      constexpr int64_t kBytes = kCodes + 16;
      prefetcher.Step(kBytes * kRows);
      for (int i = 0; i < kRows; ++i) {
        const uint8_t* block = p[i] + b * kBytes;
        const __m128i packed = Load128(block + kCodes);
        const __m256i both =
            _mm256_inserti128_si256(_mm256_castsi128_si256(packed), _mm_srli_epi16(packed, 4), 1);
        v[i] = _mm256_and_si256(both, _mm256_set1_epi8(15));
        if constexpr (kFifth) v[i] = _mm256_or_si256(v[i], FifthBits(Load32(block + kHalfs)));
      }
      if constexpr (kMin) {
        __m256 scale, min;
        GatherHalfPairs(p, b * kBytes, &scale, &min);
        _mm256_store_ps(panel.scale + b * 16, scale);
        _mm256_store_ps(panel.min + b * 8, min);
      } else {
        _mm256_store_ps(panel.scale + b * 16, GatherHalfs(p, b * kBytes));
      }
    } else {
      for (int i = 0; i < kRows; ++i) {
        CodeBlock block;
        UnpackCodes(kType, reinterpret_cast<const std::byte*>(p[i]), b, &block);
        v[i] = Load256(block.code);
        panel.scale[b * 16 + i] = block.scale[0];
        panel.scale[b * 16 + 8 + i] = block.scale[1];
        panel.min[b * 8 + i] = block.min;
      }
    }
    Transpose8x8(v);
    for (int g = 0; g < 8; ++g) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(panel.codes + b * 256) + g, v[g]);
    }
  }
}

// How codes of a type multiply: how many products of two pairs fit 16 bits, what offset is left.
template <DType kType>
struct Coding {
  static constexpr bool kMin = kType == DType::kQ4_1 || kType == DType::kQ5_1 ||
                               kType == DType::kQ4_K || kType == DType::kQ5_K;
  static constexpr bool kFourBits =
      kType == DType::kQ4_0 || kType == DType::kQ4_1 || kType == DType::kQ4_K;
  // Sums of pairs: 15 * 254 * 8, 31 * 254 * 4 and 63 * 254 * 2 stay below 32768.
  static constexpr int kAdds = kFourBits ? 8 : kType == DType::kQ6_K ? 2 : 4;
#if MICRO_VNNI
  static constexpr bool kSigned = false;
#else
  static constexpr bool kSigned = kType == DType::kQ8_0;
#endif
  static constexpr int kOffsetBits = kType == DType::kQ4_0               ? 3
                                     : kType == DType::kQ5_0             ? 4
                                     : kType == DType::kQ6_K             ? 5
                                     : kType == DType::kQ8_0 && !kSigned ? 7
                                                                         : 0;
  static constexpr int kLinks = kType == DType::kQ6_K ? 2 : 1;
};

// Stops gcc from turning a chain of integer additions into a tree, which needs more registers than
// there are and spills.
MICRO_INLINE void KeepOrder(__m256i& v) { asm("" : "+x"(v)); }

// Four activation bytes to every lane.
MICRO_INLINE __m256i BroadcastGroup(const int8_t* q) { return _mm256_set1_epi32(Load32(q)); }

// Exact dot products of kGroups groups of one block for kTokens tokens.
template <DType kType, int kTokens, int kGroups>
MICRO_INLINE void DotGroups(const uint8_t* codes, const int8_t* const* q, __m256i* dot) {
  Unroll<kTokens>([&](auto t) MICRO_LAMBDA { dot[t] = _mm256_setzero_si256(); });
#if MICRO_VNNI
  Unroll<kGroups>([&](auto g) MICRO_LAMBDA {
    const __m256i w = Load256(codes + 32 * g);
    Unroll<kTokens>([&](auto t) MICRO_LAMBDA {
      dot[t] = _mm256_dpbusd_epi32(dot[t], w, BroadcastGroup(q[t] + 4 * g));
    });
  });
#else
  using C = Coding<kType>;
  const __m256i ones = _mm256_set1_epi16(1);
  if constexpr (C::kSigned) {
    Unroll<kGroups>([&](auto g) MICRO_LAMBDA {
      const __m256i w = Load256(codes + 32 * g);
      const __m256i magnitude = _mm256_abs_epi8(w);
      Unroll<kTokens>([&](auto t) MICRO_LAMBDA {
        const __m256i signed_q = _mm256_sign_epi8(BroadcastGroup(q[t] + 4 * g), w);
        dot[t] = _mm256_add_epi32(
            dot[t], _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, signed_q), ones));
        KeepOrder(dot[t]);
      });
    });
  } else {
    Unroll<kGroups / C::kAdds>([&](auto part) MICRO_LAMBDA {
      __m256i sums[kTokens];
      Unroll<C::kAdds>([&](auto i) MICRO_LAMBDA {
        constexpr int kGroup = part * C::kAdds + i;
        const __m256i w = Load256(codes + 32 * kGroup);
        Unroll<kTokens>([&](auto t) MICRO_LAMBDA {
          const __m256i pairs = _mm256_maddubs_epi16(w, BroadcastGroup(q[t] + 4 * kGroup));
          sums[t] = i == 0 ? pairs : _mm256_add_epi16(sums[t], pairs);
          KeepOrder(sums[t]);
        });
      });
      Unroll<kTokens>([&](auto t) MICRO_LAMBDA {
        dot[t] = _mm256_add_epi32(dot[t], _mm256_madd_epi16(sums[t], ones));
      });
    });
  }
#endif
}

template <DType kType, int kTokens>
MICRO_FN void PanelTimesTokens(const RowSpan& span, int64_t row, const Panel& panel,
                               const QuantizedRows& x, int64_t t0) {
  using C = Coding<kType>;
  constexpr int kGroups = 8 / C::kLinks;
  static_assert(C::kSigned || kGroups % C::kAdds == 0);
  const QuantizedRows in = x.From(t0);
  const int64_t blocks = x.blocks;
  const int64_t K = x.K;
  __m256 a[kTokens], m[kTokens];
  Unroll<kTokens>([&](auto t) MICRO_LAMBDA { a[t] = m[t] = _mm256_setzero_ps(); });
  for (int64_t b = 0; b < blocks; ++b) {
    Unroll<C::kLinks>([&](auto link) MICRO_LAMBDA {
      const int8_t* q[kTokens];
      Unroll<kTokens>([&](auto t)
                          MICRO_LAMBDA { q[t] = in.q + t * K + b * kCodeBlock + link * 16; });
      __m256i dot[kTokens];
      DotGroups<kType, kTokens, kGroups>(panel.codes + b * 256 + link * 128, q, dot);
      const __m256 scale = _mm256_load_ps(panel.scale + b * 16 + link * 8);
      Unroll<kTokens>([&](auto t) MICRO_LAMBDA {
        const int64_t at = t * blocks + b;
        if constexpr (C::kOffsetBits > 0) {
          int32_t sum = in.sum[at];
          if constexpr (C::kLinks == 2) {
            // Halves of a block have no stored sum: take it from the codes.
            sum = 0;
            for (int e = 0; e < 16; ++e) sum += q[t][e];
          }
          dot[t] =
              _mm256_sub_epi32(dot[t], _mm256_slli_epi32(_mm256_set1_epi32(sum), C::kOffsetBits));
        }
        a[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[t]),
                               _mm256_mul_ps(scale, _mm256_broadcast_ss(in.d + at)), a[t]);
      });
    });
    if constexpr (C::kMin) {
      const __m256 min = _mm256_load_ps(panel.min + b * 8);
      Unroll<kTokens>([&](auto t) MICRO_LAMBDA {
        m[t] = _mm256_fmadd_ps(min, _mm256_broadcast_ss(in.s + t * blocks + b), m[t]);
      });
    }
  }
  Unroll<kTokens>([&](auto t) MICRO_LAMBDA {
    StoreRows(span, row, t0 + t, C::kMin ? _mm256_add_ps(a[t], m[t]) : a[t]);
  });
}

template <DType kType>
MICRO_FN void ManyTokensInt8(const RowSpan& span, const QuantizedRows& x, int64_t T,
                             std::byte* scratch) {
  Panel panel;
  panel.codes = reinterpret_cast<uint8_t*>(scratch);
  panel.scale = reinterpret_cast<float*>(scratch + x.blocks * 256);
  panel.min = panel.scale + x.blocks * 16;
  Prefetcher prefetcher(span);
  for (int64_t row = 0; row < span.rows; row += kRows) {
    FillPanel<kType>(span, row, x.blocks, panel, prefetcher);
    int64_t t = 0;
    for (; t + 4 <= T; t += 4) PanelTimesTokens<kType, 4>(span, row, panel, x, t);
    if (T - t == 3) PanelTimesTokens<kType, 3>(span, row, panel, x, t);
    if (T - t == 2) PanelTimesTokens<kType, 2>(span, row, panel, x, t);
    if (T - t == 1) PanelTimesTokens<kType, 1>(span, row, panel, x, t);
  }
}

MICRO_FN void RowsInt8(const RowSpan& span, const QuantizedRows& x, int64_t T, std::byte* scratch) {
  switch (span.weight->dtype) {
    case DType::kQ8_0:
      return T == 1 ? OneTokenInt8<DType::kQ8_0>(span, x)
                    : ManyTokensInt8<DType::kQ8_0>(span, x, T, scratch);
    case DType::kQ4_0:
      return T == 1 ? OneTokenInt8<DType::kQ4_0>(span, x)
                    : ManyTokensInt8<DType::kQ4_0>(span, x, T, scratch);
    case DType::kQ4_1:
      return T == 1 ? OneTokenInt8<DType::kQ4_1>(span, x)
                    : ManyTokensInt8<DType::kQ4_1>(span, x, T, scratch);
    case DType::kQ5_0:
      return ManyTokensInt8<DType::kQ5_0>(span, x, T, scratch);
    case DType::kQ5_1:
      return ManyTokensInt8<DType::kQ5_1>(span, x, T, scratch);
    case DType::kQ4_K:
      return ManyTokensInt8<DType::kQ4_K>(span, x, T, scratch);
    case DType::kQ5_K:
      return ManyTokensInt8<DType::kQ5_K>(span, x, T, scratch);
    case DType::kQ6_K:
      return ManyTokensInt8<DType::kQ6_K>(span, x, T, scratch);
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      break;
  }
  assert(false && "int8 products want a quantised weight");
}

// ---------------------------------------------------------------------------------------------
// kF32

// Reads kStep elements from `index * kStep` of a row as vectors of eight f32.
template <DType kType>
struct Reader {
  static constexpr int kStep =
      kType == DType::kF32 || kType == DType::kF16 || kType == DType::kBF16 ? 8 : 32;
  static constexpr int kVectors = kStep / 8;

  MICRO_INLINE static void Read(const uint8_t* row, int64_t index, __m256* out) {
    if constexpr (kType == DType::kF32) {
      out[0] = _mm256_castsi256_ps(Load256(row + 32 * index));
    } else if constexpr (kType == DType::kF16) {
      out[0] = _mm256_cvtph_ps(Load128(row + 16 * index));
    } else if constexpr (kType == DType::kBF16) {
      out[0] = _mm256_castsi256_ps(
          _mm256_slli_epi32(_mm256_cvtepu16_epi32(Load128(row + 16 * index)), 16));
    } else if constexpr (kType == DType::kQ8_0) {
      const uint8_t* block = row + 34 * index;
      const __m256 d = _mm256_set1_ps(LoadHalf(block));
      for (int i = 0; i < 4; ++i) {
        const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(block + 2 + 8 * i));
        out[i] = _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)));
      }
    } else {
      constexpr bool kMin = kType == DType::kQ4_1;
      const uint8_t* block = row + (kMin ? 20 : 18) * index;
      const __m256 d = _mm256_set1_ps(LoadHalf(block));
      const __m128i packed = Load128(block + (kMin ? 4 : 2));
      const __m128i mask = _mm_set1_epi8(15);
      __m128i low = _mm_and_si128(packed, mask);
      __m128i high = _mm_and_si128(_mm_srli_epi16(packed, 4), mask);
      if constexpr (!kMin) {
        low = _mm_sub_epi8(low, _mm_set1_epi8(8));
        high = _mm_sub_epi8(high, _mm_set1_epi8(8));
      }
      const __m128i parts[4] = {low, _mm_srli_si128(low, 8), high, _mm_srli_si128(high, 8)};
      for (int i = 0; i < 4; ++i) {
        out[i] = _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(parts[i])));
        if constexpr (kMin) out[i] = _mm256_add_ps(out[i], _mm256_set1_ps(LoadHalf(block + 2)));
      }
    }
  }
};

// The last K mod 8 elements, padded with zeros: they leave the sums as they are.
MICRO_INLINE __m256 ReadTail(const float* x, int64_t count) {
  alignas(32) float lanes[8] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = x[i];
  return _mm256_load_ps(lanes);
}

template <DType kType>
MICRO_FN __m256 ReadWeightTail(const uint8_t* row, int64_t K) {
  alignas(32) float lanes[8] = {};
  const int64_t begin = K / 8 * 8;
  const size_t element = RowBytes(kType, 1);
  DequantizeRow(kType, reinterpret_cast<const std::byte*>(row + begin * element), K - begin, lanes);
  return _mm256_load_ps(lanes);
}

// The eight partial sums of each of four outputs added up in the contract's order.
MICRO_INLINE __m128 SumF32(const __m256* s) {
  const auto halves = [&](int i) MICRO_LAMBDA {
    return _mm_add_ps(_mm256_castps256_ps128(s[i]), _mm256_extractf128_ps(s[i], 1));
  };
  const auto pairs = [&](int i) MICRO_LAMBDA {
    const __m128 a = halves(i), b = halves(i + 1);
    return _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
  };
  const __m128 first = pairs(0), second = pairs(2);
  return _mm_add_ps(_mm_movelh_ps(first, second), _mm_movehl_ps(second, first));
}

template <DType kType>
MICRO_FN void OneTokenRows(const RowSpan& span, int64_t row, const uint8_t* const* p,
                           const float* x, int64_t K, Prefetcher* prefetcher) {
  using R = Reader<kType>;
  __m256 s[kRows];
  Unroll<kRows>([&](auto i) MICRO_LAMBDA { s[i] = _mm256_setzero_ps(); });
  const int64_t steps = K / R::kStep;
  constexpr int64_t kStepBytes = kType == DType::kF32                            ? 32
                                 : kType == DType::kF16 || kType == DType::kBF16 ? 16
                                 : kType == DType::kQ8_0                         ? 34
                                 : kType == DType::kQ4_1                         ? 20
                                                                                 : 18;
  for (int64_t k = 0; k < steps; ++k) {
    if (prefetcher != nullptr) prefetcher->Step(kStepBytes * kRows);
    __m256 xs[R::kVectors];
    Unroll<R::kVectors>([&](auto v)
                            MICRO_LAMBDA { xs[v] = _mm256_loadu_ps(x + k * R::kStep + 8 * v); });
    Unroll<kRows>([&](auto i) MICRO_LAMBDA {
      __m256 w[R::kVectors];
      R::Read(p[i], k, w);
      Unroll<R::kVectors>([&](auto v) MICRO_LAMBDA { s[i] = _mm256_fmadd_ps(w[v], xs[v], s[i]); });
    });
  }
  if (const int64_t tail = K - steps * R::kStep; R::kStep == 8 && tail > 0) {
    const __m256 xs = ReadTail(x + K - tail, tail);
    Unroll<kRows>([&](auto i) MICRO_LAMBDA {
      s[i] = _mm256_fmadd_ps(ReadWeightTail<kType>(p[i], K), xs, s[i]);
    });
  }
  StoreRows(span, row, 0, _mm256_set_m128(SumF32(s + 4), SumF32(s)));
}

template <DType kType>
MICRO_FN void OneTokenF32(const RowSpan& span, const float* x) {
  Prefetcher prefetcher(span);
  for (int64_t row = 0; row < span.rows; row += kRows) {
    const uint8_t* p[kRows];
    RowPointers(span, row, p);
    prefetcher.Follow();
    OneTokenRows<kType>(span, row, p, x, span.weight->columns, &prefetcher);
  }
}

// Types without a reader of their own go through f32 rows in scratch.
MICRO_FN void OneTokenUnpackedF32(const RowSpan& span, const float* x, float* scratch) {
  const int64_t K = span.weight->columns;
  for (int64_t row = 0; row < span.rows; row += kRows) {
    const uint8_t* p[kRows];
    RowPointers(span, row, p);
    for (int i = 0; i < kRows; ++i) {
      float* unpacked = scratch + i * K;
      if (row + i < span.rows) {
        DequantizeRow(span.weight->dtype, reinterpret_cast<const std::byte*>(p[i]), K, unpacked);
      }
      p[i] = reinterpret_cast<const uint8_t*>(row + i < span.rows ? unpacked : scratch);
    }
    OneTokenRows<DType::kF32>(span, row, p, x, K, nullptr);
  }
}

template <DType kType>
MICRO_FN void UnpackRow(const uint8_t* p, int64_t K, float* out) {
  using R = Reader<kType>;
  const int64_t steps = K / R::kStep;
  for (int64_t k = 0; k < steps; ++k) {
    __m256 w[R::kVectors];
    R::Read(p, k, w);
    for (int v = 0; v < R::kVectors; ++v) _mm256_storeu_ps(out + k * R::kStep + 8 * v, w[v]);
  }
  if (R::kStep == 8 && steps * 8 < K) {
    _mm256_storeu_ps(out + steps * 8, ReadWeightTail<kType>(p, K));
  }
}

MICRO_FN void UnpackAnyRow(DType dtype, const uint8_t* p, int64_t K, float* out) {
  switch (dtype) {
    case DType::kF32:
      return UnpackRow<DType::kF32>(p, K, out);
    case DType::kF16:
      return UnpackRow<DType::kF16>(p, K, out);
    case DType::kBF16:
      return UnpackRow<DType::kBF16>(p, K, out);
    case DType::kQ8_0:
      return UnpackRow<DType::kQ8_0>(p, K, out);
    case DType::kQ4_0:
      return UnpackRow<DType::kQ4_0>(p, K, out);
    case DType::kQ4_1:
      return UnpackRow<DType::kQ4_1>(p, K, out);
    default:
      return DequantizeRow(dtype, reinterpret_cast<const std::byte*>(p), K, out);
  }
}

// What SumF32 adds up; with 3 tokens: 12 sums, 3 inputs and a weight fill 16 registers.
constexpr int kTileRows = 4;

template <int kTokens>
MICRO_FN void TileF32(const RowSpan& span, int64_t row, const float* w, int64_t w_stride,
                      const float* x, int64_t x_stride, int64_t K, int64_t t0) {
  __m256 s[kTokens * kTileRows];
  Unroll<kTokens * kTileRows>([&](auto i) MICRO_LAMBDA { s[i] = _mm256_setzero_ps(); });
  const auto add = [&](int64_t k, const __m256* xs) MICRO_LAMBDA {
    Unroll<kTileRows>([&](auto i) MICRO_LAMBDA {
      const __m256 ws = _mm256_loadu_ps(w + i * w_stride + k);
      Unroll<kTokens>([&](auto t) MICRO_LAMBDA {
        s[t * kTileRows + i] = _mm256_fmadd_ps(ws, xs[t], s[t * kTileRows + i]);
      });
    });
  };
  const float* in = x + t0 * x_stride;
  const int64_t whole = K / 8 * 8;
  for (int64_t k = 0; k < whole; k += 8) {
    __m256 xs[kTokens];
    Unroll<kTokens>([&](auto t) MICRO_LAMBDA { xs[t] = _mm256_loadu_ps(in + t * x_stride + k); });
    add(k, xs);
  }
  if (whole < K) {
    __m256 xs[kTokens];
    Unroll<kTokens>([&](auto t)
                        MICRO_LAMBDA { xs[t] = ReadTail(in + t * x_stride + whole, K - whole); });
    add(whole, xs);
  }
  Unroll<kTokens>([&](auto t)
                      MICRO_LAMBDA { StoreRows(span, row, t0 + t, SumF32(s + t * kTileRows)); });
}

MICRO_FN void ManyTokensF32(const RowSpan& span, const float* x, int64_t x_stride, int64_t T,
                            float* scratch) {
  const int64_t K = span.weight->columns;
  const int64_t w_stride = (K + 7) / 8 * 8;
  for (int64_t row = 0; row < span.rows; row += kTileRows) {
    const uint8_t* p[kRows];
    RowPointers(span, row, p);
    for (int i = 0; i < kTileRows; ++i) {
      UnpackAnyRow(span.weight->dtype, p[i], K, scratch + i * w_stride);
    }
    int64_t t = 0;
    for (; t + 3 <= T; t += 3) TileF32<3>(span, row, scratch, w_stride, x, x_stride, K, t);
    if (T - t == 2) TileF32<2>(span, row, scratch, w_stride, x, x_stride, K, t);
    if (T - t == 1) TileF32<1>(span, row, scratch, w_stride, x, x_stride, K, t);
  }
}

MICRO_FN void RowsF32(const RowSpan& span, const float* x, int64_t x_stride, int64_t T,
                      std::byte* scratch) {
  auto* floats = reinterpret_cast<float*>(scratch);
  if (T > 1) return ManyTokensF32(span, x, x_stride, T, floats);
  switch (span.weight->dtype) {
    case DType::kF32:
      return OneTokenF32<DType::kF32>(span, x);
    case DType::kF16:
      return OneTokenF32<DType::kF16>(span, x);
    case DType::kBF16:
      return OneTokenF32<DType::kBF16>(span, x);
    case DType::kQ8_0:
      return OneTokenF32<DType::kQ8_0>(span, x);
    case DType::kQ4_0:
      return OneTokenF32<DType::kQ4_0>(span, x);
    case DType::kQ4_1:
      return OneTokenF32<DType::kQ4_1>(span, x);
    default:
      return OneTokenUnpackedF32(span, x, floats);
  }
}

constexpr MatMulMicro kMicro = {QuantizeRow, RowsF32, RowsInt8};

}  // namespace MICRO_NAMESPACE
}  // namespace mneme::engine::cpu

#undef MICRO_FN
#undef MICRO_INLINE
#undef MICRO_LAMBDA
