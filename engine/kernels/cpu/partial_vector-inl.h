// The last elements of a row that fill no whole vector. Per-target header of Highway.
#if defined(MNEME_ENGINE_KERNELS_CPU_PARTIAL_VECTOR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MNEME_ENGINE_KERNELS_CPU_PARTIAL_VECTOR_INL_H_
#undef MNEME_ENGINE_KERNELS_CPU_PARTIAL_VECTOR_INL_H_
#else
#define MNEME_ENGINE_KERNELS_CPU_PARTIAL_VECTOR_INL_H_
#endif

#include "engine/kernels/cpu/exp-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mneme::engine::cpu::HWY_NAMESPACE {

// Whether masked loads and stores leave what is masked alone: they then may point beyond an array.
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
#define MNEME_SAFE_MASKS 1
#else
#define MNEME_SAFE_MASKS 0
#endif

// Loads min(count, Lanes(d)) elements; the other lanes are zero. The same arithmetic then runs on
// a full vector, so an element's bits do not depend on where it lies.
HWY_INLINE Vec LoadUpTo(F32 d, const float* p, size_t count) {
  const size_t lanes = hn::Lanes(d);
  if (HWY_LIKELY(count >= lanes)) return hn::LoadU(d, p);
#if MNEME_SAFE_MASKS
  return hn::MaskedLoad(hn::FirstN(d, count), d, p);
#else
  HWY_ALIGN float buffer[8] = {};
  for (size_t i = 0; i < count; ++i) buffer[i] = p[i];
  return hn::Load(d, buffer);
#endif
}

HWY_INLINE void StoreUpTo(F32 d, Vec v, float* p, size_t count) {
  const size_t lanes = hn::Lanes(d);
  if (HWY_LIKELY(count >= lanes)) return hn::StoreU(v, d, p);
#if MNEME_SAFE_MASKS
  hn::BlendedStore(v, hn::FirstN(d, count), d, p);
#else
  HWY_ALIGN float buffer[8];
  hn::Store(v, d, buffer);
  for (size_t i = 0; i < count; ++i) p[i] = buffer[i];
#endif
}

#undef MNEME_SAFE_MASKS

// How many elements of a vector there are: all, or fewer at the end of a row. Loads and stores of
// whole vectors are free of branches then.
struct Whole {
  HWY_INLINE Vec Load(const float* p) const { return hn::LoadU(F32(), p); }
  HWY_INLINE void Store(Vec v, float* p) const { hn::StoreU(v, F32(), p); }
};
struct Part {
  size_t count;
  HWY_INLINE Vec Load(const float* p) const { return LoadUpTo(F32(), p, count); }
  HWY_INLINE void Store(Vec v, float* p) const { StoreUpTo(F32(), v, p, count); }
};

// body(i, Whole or Part) for the first element i of every vector of a row of n.
template <typename Body>
HWY_INLINE void ForEachVector(size_t n, Body body) {
  const size_t lanes = hn::Lanes(F32());
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) body(i, Whole{});
  if (i < n) body(i, Part{n - i});
}

// The same, four vectors a turn: for bodies so short that counting would cost as much.
template <typename Body>
HWY_INLINE void ForEachVectorUnrolled(size_t n, Body body) {
  const size_t lanes = hn::Lanes(F32());
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    body(i, Whole{});
    body(i + lanes, Whole{});
    body(i + 2 * lanes, Whole{});
    body(i + 3 * lanes, Whole{});
  }
  for (; i + lanes <= n; i += lanes) body(i, Whole{});
  if (i < n) body(i, Part{n - i});
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace mneme::engine::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
