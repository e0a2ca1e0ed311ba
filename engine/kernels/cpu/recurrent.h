// SIMD versions of layer_norm.h, activation.h, token_shift.h and wkv.h.
#pragma once

#include "engine/kernels/kernels.h"

namespace mneme::engine::cpu {

void LayerNorm(Exec& exec, const LayerNormArgs& args);
void Activate(Exec& exec, Activation f, const float* x, int64_t n, float* y);
void SeriesActivate(Exec& exec, const SeriesActivateArgs& args);
void Mul(Exec& exec, const float* x, int64_t n, float* y);
void TokenShift(Exec& exec, std::span<const TokenShiftArgs> batch);
void Lerp(Exec& exec, std::span<const LerpArgs> batch);
void Wkv4(Exec& exec, std::span<const Wkv4Args> batch);
void Wkv6(Exec& exec, std::span<const Wkv6Args> batch);
void Wkv7Prepare(Exec& exec, const Wkv7PrepareArgs& args);
void Wkv7(Exec& exec, std::span<const Wkv7Args> batch);
void Wkv7Bonus(Exec& exec, const Wkv7BonusArgs& args);

}  // namespace mneme::engine::cpu
