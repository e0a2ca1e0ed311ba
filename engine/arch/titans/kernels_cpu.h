// SIMD kernels that CpuTitansKernels() lists, as kernels.h describes them.
#pragma once

#include <cstdint>
#include <span>

#include "engine/arch/titans/kernels.h"

namespace mneme::engine::titans::cpu_kernels {

void Convolve(const float* const* rows, const float* taps, int64_t K, int64_t n, float* y);
void Normalize(float* x, int64_t heads, int64_t width);
void Attend(const float* q_plain, const float* q_rotated, std::span<const KeyRun> runs,
            int64_t head_dim, float scale, float* scores, float* out);
void Load(const std::byte* rows, DType dtype, int64_t stride, int64_t count, int64_t n, float* out);
void Store(const float* x, DType dtype, int64_t n, std::byte* row);
void Round(float* x, DType dtype, int64_t n);

}  // namespace mneme::engine::titans::cpu_kernels
