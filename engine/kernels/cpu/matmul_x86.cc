#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "engine/kernels/cpu/matmul_micro.h"
#include "engine/kernels/dequantize.h"

#define MICRO_NAMESPACE avx2
#define MICRO_TARGET "avx2,fma,f16c"
#define MICRO_VNNI 0
#include "engine/kernels/cpu/matmul_x86-inl.h"
#undef MICRO_NAMESPACE
#undef MICRO_TARGET
#undef MICRO_VNNI

#define MICRO_NAMESPACE vnni
#define MICRO_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni"
#define MICRO_VNNI 1
#include "engine/kernels/cpu/matmul_x86-inl.h"
#undef MICRO_NAMESPACE
#undef MICRO_TARGET
#undef MICRO_VNNI

namespace mneme::engine::cpu {

const MatMulMicro& Avx2MatMulMicro() { return avx2::kMicro; }
const MatMulMicro& VnniMatMulMicro() { return vnni::kMicro; }

}  // namespace mneme::engine::cpu

#endif  // __x86_64__
