// The CUDA backend: one launcher per entry of the kernel table, each beside its kernels.
#pragma once

#include "engine/kernels/kernels.h"

namespace mneme::engine::cuda {

void MatMul(Exec& exec, std::span<const MatMulTask> tasks, const float* x, int64_t x_stride,
            int64_t T);
void EmbedRows(Exec& exec, const Weight& table, std::span<const int32_t> rows, float* y);
void RmsNorm(Exec& exec, const float* x, const float* w, float eps, int64_t T, int64_t D, float* y);
void Rope(Exec& exec, const RopeArgs& args);
void Attention(Exec& exec, std::span<const AttentionArgs> batch);
void BlockAttention(Exec& exec, std::span<const BlockAttentionArgs> batch);
void CopyRows(Exec& exec, std::span<const CopyRowsArgs> batch);
void StoreRows(Exec& exec, std::span<const StoreRowsArgs> batch);
void FiniteRows(Exec& exec, const float* x, int64_t T, int64_t width, uint8_t* finite);
void SiluMul(Exec& exec, const float* gate, const float* up, int64_t n, float* y);
void Add(Exec& exec, const float* x, int64_t n, float* y);
void Mul(Exec& exec, const float* x, int64_t n, float* y);
void Activate(Exec& exec, Activation f, const float* x, int64_t n, float* y);
void SeriesActivate(Exec& exec, const SeriesActivateArgs& args);
void LayerNorm(Exec& exec, const LayerNormArgs& args);
void TokenShift(Exec& exec, std::span<const TokenShiftArgs> batch);
void Lerp(Exec& exec, std::span<const LerpArgs> batch);
void Wkv4(Exec& exec, std::span<const Wkv4Args> batch);
void Wkv6(Exec& exec, std::span<const Wkv6Args> batch);
void Wkv7Prepare(Exec& exec, const Wkv7PrepareArgs& args);
void Wkv7(Exec& exec, std::span<const Wkv7Args> batch);
void Wkv7Bonus(Exec& exec, const Wkv7BonusArgs& args);
void InfiniFeatureMap(Exec& exec, const float* x, int64_t n, float* y);
void InfiniMix(Exec& exec, const InfiniMixShape& shape, std::span<const InfiniMixArgs> batch);
void ShortConv(Exec& exec, std::span<const ShortConvArgs> batch);
void TitansRates(Exec& exec, const TitansRatesArgs& args, int64_t T, float* z);
void TitansMemory(Exec& exec, const TitansMemoryLayer& layer,
                  std::span<const TitansMemoryArgs> batch);
void TitansAttention(Exec& exec, const TitansAttentionLayer& layer,
                     std::span<const TitansAttentionArgs> batch);

}  // namespace mneme::engine::cuda
