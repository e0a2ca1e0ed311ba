#include "bench/roofline.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "engine/core/aligned_buffer.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mneme::bench {
namespace {

using Clock = std::chrono::steady_clock;

// Runs fn(thread) on every thread at once; seconds from the common start to the last end.
double Timed(int threads, absl::FunctionRef<void(int)> fn) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i) {
    pool.emplace_back([&, i] {
      ready.fetch_add(1);
      while (!go.load()) std::this_thread::yield();
      fn(i);
    });
  }
  while (ready.load() < threads) std::this_thread::yield();
  const auto begin = Clock::now();
  go.store(true);
  for (std::thread& thread : pool) thread.join();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

volatile uint64_t sink;

#if defined(__x86_64__)

constexpr int64_t kIterations = 20'000'000;

__attribute__((target("avx2"))) uint64_t SumAvx2(const std::byte* p, size_t size) {
  __m256i s[4] = {};
  for (size_t i = 0; i + 256 <= size; i += 256) {
    _mm_prefetch(reinterpret_cast<const char*>(p + i + 4096), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(p + i + 4096 + 64), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(p + i + 4096 + 128), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(p + i + 4096 + 192), _MM_HINT_T0);
    for (int v = 0; v < 4; ++v) {
      const auto* at = reinterpret_cast<const __m256i*>(p + i) + 2 * v;
      s[v] = _mm256_add_epi64(s[v],
                              _mm256_add_epi64(_mm256_load_si256(at), _mm256_load_si256(at + 1)));
    }
  }
  const __m256i sum = _mm256_add_epi64(_mm256_add_epi64(s[0], s[1]), _mm256_add_epi64(s[2], s[3]));
  return static_cast<uint64_t>(_mm256_extract_epi64(sum, 0) + _mm256_extract_epi64(sum, 1) +
                               _mm256_extract_epi64(sum, 2) + _mm256_extract_epi64(sum, 3));
}

// Ten independent chains hide a latency of four or five at two per cycle. The chains are single
// variables, because an array would stay in memory; the empty asm keeps the compiler from seeing
// that the operands are constant.
#define MNEME_TEN(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9)

#define MNEME_START(n) auto s##n = zero;
// Through a signed number: the conversion to unsigned branches, and GCC then spills the chains.
#define MNEME_SUM(n) total = total + static_cast<uint64_t>(static_cast<int64_t>(Low(s##n)));

__attribute__((target("avx2"))) inline int Low(__m256i v) { return _mm256_extract_epi32(v, 0); }
__attribute__((target("avx2"))) inline float Low(__m256 v) { return _mm256_cvtss_f32(v); }
__attribute__((target("avx512f"))) inline int Low(__m512i v) {
  alignas(64) int lanes[16];
  _mm512_store_si512(lanes, v);
  return lanes[0];
}
__attribute__((target("avx512f"))) inline float Low(__m512 v) {
  alignas(64) float lanes[16];
  _mm512_store_ps(lanes, v);
  return lanes[0];
}

__attribute__((target("avx2,fma"))) void F32Fma(int64_t iterations) {
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(1e-6f), zero = b;
  MNEME_TEN(MNEME_START)
  for (int64_t i = 0; i < iterations; ++i) {
#define MNEME_STEP(n)                 \
  s##n = _mm256_fmadd_ps(s##n, a, b); \
  asm volatile("" : "+x"(s##n));
    MNEME_TEN(MNEME_STEP)
#undef MNEME_STEP
  }
  uint64_t total = 0;
  MNEME_TEN(MNEME_SUM)
  sink = total;
}

// Unsigned times signed bytes: pairs summed to 16 bits, those to 32 bits.
__attribute__((target("avx2"))) void Int8MaddMadd(int64_t iterations) {
  const __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5), ones = _mm256_set1_epi16(1);
  const __m256i zero = _mm256_setzero_si256();
  MNEME_TEN(MNEME_START)
  for (int64_t i = 0; i < iterations; ++i) {
#define MNEME_STEP(n)                                              \
  {                                                                \
    __m256i pairs = _mm256_maddubs_epi16(a, b);                    \
    asm volatile("" : "+x"(pairs));                                \
    s##n = _mm256_add_epi32(s##n, _mm256_madd_epi16(pairs, ones)); \
    asm volatile("" : "+x"(s##n));                                 \
  }
    MNEME_TEN(MNEME_STEP)
#undef MNEME_STEP
  }
  uint64_t total = 0;
  MNEME_TEN(MNEME_SUM)
  sink = total;
}

// The same with pair sums added in 16 bits first, which four-bit codes allow eight times.
__attribute__((target("avx2"))) void Int8MaddAdd(int64_t iterations) {
  const __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
  const __m256i zero = _mm256_setzero_si256();
  MNEME_TEN(MNEME_START)
  for (int64_t i = 0; i < iterations; ++i) {
#define MNEME_STEP(n)                           \
  {                                             \
    __m256i pairs = _mm256_maddubs_epi16(a, b); \
    asm volatile("" : "+x"(pairs));             \
    s##n = _mm256_add_epi16(s##n, pairs);       \
    asm volatile("" : "+x"(s##n));              \
  }
    MNEME_TEN(MNEME_STEP)
#undef MNEME_STEP
  }
  uint64_t total = 0;
  MNEME_TEN(MNEME_SUM)
  sink = total;
}

__attribute__((target("avx512f,avx512vnni"))) void Int8Vnni512(int64_t iterations) {
  const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5), zero = _mm512_setzero_si512();
  MNEME_TEN(MNEME_START)
  for (int64_t i = 0; i < iterations; ++i) {
#define MNEME_STEP(n)                     \
  s##n = _mm512_dpbusd_epi32(s##n, a, b); \
  asm volatile("" : "+v"(s##n));
    MNEME_TEN(MNEME_STEP)
#undef MNEME_STEP
  }
  uint64_t total = 0;
  MNEME_TEN(MNEME_SUM)
  sink = total;
}

__attribute__((target("avx512f"))) void F32Fma512(int64_t iterations) {
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(1e-6f), zero = b;
  MNEME_TEN(MNEME_START)
  for (int64_t i = 0; i < iterations; ++i) {
#define MNEME_STEP(n)                 \
  s##n = _mm512_fmadd_ps(s##n, a, b); \
  asm volatile("" : "+v"(s##n));
    MNEME_TEN(MNEME_STEP)
#undef MNEME_STEP
  }
  uint64_t total = 0;
  MNEME_TEN(MNEME_SUM)
  sink = total;
}

#undef MNEME_TEN
#undef MNEME_START
#undef MNEME_SUM

double BestGops(int threads, void (*work)(int64_t), double ops_per_iteration) {
  double best = 0;
  for (int repeat = 0; repeat < 3; ++repeat) {
    const double seconds = Timed(threads, [&](int) { work(kIterations); });
    best = std::max(best, threads * ops_per_iteration * kIterations / seconds / 1e9);
  }
  return best;
}

#endif  // __x86_64__

uint64_t SumPortable(const std::byte* p, size_t size) {
  uint64_t sum = 0;
  const auto* words = reinterpret_cast<const uint64_t*>(p);
  for (size_t i = 0; i < size / 8; ++i) sum += words[i];
  return sum;
}

}  // namespace

double MeasureReadGbps(int threads, size_t buffer_bytes, int repeats) {
  engine::AlignedBuffer buffer(buffer_bytes);
  // A pattern, so that no page is the shared page of zeros.
  auto* words = buffer.as<uint64_t>();
  for (size_t i = 0; i < buffer_bytes / 8; i += 64) words[i] = i;
  const size_t share = buffer_bytes / threads / 256 * 256;
  // Long enough that starting the threads does not count.
  constexpr size_t kLeastBytes = size_t{256} << 20;
  const size_t passes = share == 0 ? 0 : std::max<size_t>(1, kLeastBytes / (share * threads));
  auto sum = SumPortable;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) sum = SumAvx2;
#endif
  double best = 0;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    std::atomic<uint64_t> total{0};
    const double seconds = Timed(threads, [&](int i) {
      for (size_t pass = 0; pass < passes; ++pass) total += sum(buffer.data() + i * share, share);
    });
    sink = total.load();
    best = std::max(best, static_cast<double>(passes * share * threads) / seconds / 1e9);
  }
  return best;
}

double MeasureF32Gflops(int threads) {
  double best = 0;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    best = BestGops(threads, F32Fma, 10 * 8 * 2);
  }
  if (__builtin_cpu_supports("avx512f")) {
    best = std::max(best, BestGops(threads, F32Fma512, 10 * 16 * 2));
  }
#endif
  return best;
}

Roofline MeasureRoofline(int threads, size_t buffer_bytes, int repeats) {
  Roofline roofline;
  roofline.threads = threads;
  roofline.read_gbps = MeasureReadGbps(threads, buffer_bytes, repeats);
  roofline.f32_gflops = MeasureF32Gflops(threads);
#if defined(__x86_64__)
  const auto consider = [&](void (*work)(int64_t), double ops, const char* method) {
    const double gops = BestGops(threads, work, ops);
    if (gops <= roofline.int8_gops) return;
    roofline.int8_gops = gops;
    roofline.int8_method = method;
  };
  if (__builtin_cpu_supports("avx2")) {
    consider(Int8MaddMadd, 10 * 32 * 2, "vpmaddubsw+vpmaddwd+vpaddd");
    consider(Int8MaddAdd, 10 * 32 * 2, "vpmaddubsw+vpaddw");
  }
  if (__builtin_cpu_supports("avx512vnni")) {
    consider(Int8Vnni512, 10 * 64 * 2, "vpdpbusd (512 bit)");
  }
#endif
  return roofline;
}

}  // namespace mneme::bench
