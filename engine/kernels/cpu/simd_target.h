// Which instruction set the cpu backend runs, behind kernels.h's PinSimdTarget().
#pragma once

#include <cstdint>
#include <string>

namespace mneme::engine::cpu {

enum class SimdTarget : int { kScalar, kSse4, kAvx2, kAvx3 };

// The pinned target, else the best one. Cheap: decided once, then one relaxed load.
SimdTarget CurrentSimdTarget();

// Its name, as PinSimdTarget() takes it.
std::string SimdTargetName();

// True if the current target is avx3 and the processor has 8-bit dot products (AVX512-VNNI). They
// give the same integers as the avx2 sequence, so this changes speed, never bits.
bool HasVnni();

}  // namespace mneme::engine::cpu
