#include "engine/kernels/cpu/simd_target.h"

#include <atomic>
#include <iterator>
#include <string>
#include <vector>

#include "engine/kernels/kernels.h"
#define HWY_DISABLED_TARGETS HWY_SSSE3
#include "hwy/highway.h"

namespace mneme::engine {
namespace cpu {
namespace {

struct Named {
  SimdTarget target;
  std::string_view name;
  int64_t highway;
};

// Best first. SSSE3 has no code of its own: whatever lacks SSE4.1 runs scalar.
constexpr Named kTargets[] = {
#if HWY_ARCH_X86
    {SimdTarget::kAvx3, "avx3", HWY_AVX3},
    {SimdTarget::kAvx2, "avx2", HWY_AVX2},
    {SimdTarget::kSse4, "sse4", HWY_SSE4},
#endif
    {SimdTarget::kScalar, "scalar", HWY_SCALAR},
};

// What the processor can run, asked once: CPUID is slow inside a virtual machine.
int64_t Supported() {
  static const int64_t supported = [] {
    int64_t targets = HWY_SCALAR;
    for (const Named& named : kTargets) targets |= hwy::SupportedTargets() & named.highway;
    return targets;
  }();
  return supported;
}

constexpr int kUndecided = -1;
std::atomic<int> current{kUndecided};

void Select(const Named& named) {
  hwy::SetSupportedTargetsForTest(named.highway);
  hwy::GetChosenTarget().Update(named.highway);
  current.store(static_cast<int>(named.target), std::memory_order_relaxed);
}

void SelectBest() {
  for (const Named& named : kTargets) {
    if ((Supported() & named.highway) != 0) return Select(named);
  }
}

}  // namespace

SimdTarget CurrentSimdTarget() {
  int value = current.load(std::memory_order_relaxed);
  if (value == kUndecided) {
    SelectBest();
    value = current.load(std::memory_order_relaxed);
  }
  return static_cast<SimdTarget>(value);
}

std::string SimdTargetName() {
  const SimdTarget target = CurrentSimdTarget();
  for (const Named& named : kTargets) {
    if (named.target == target) return std::string(named.name);
  }
  return "";
}

bool HasVnni() {
#if HWY_ARCH_X86
  static const bool vnni =
      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl");
  return vnni && CurrentSimdTarget() == SimdTarget::kAvx3;
#else
  return false;
#endif
}

}  // namespace cpu

bool PinSimdTarget(std::string_view name) {
  cpu::Supported();  // before a pin can hide anything
  if (name.empty()) {
    cpu::SelectBest();
    return true;
  }
  for (const cpu::Named& named : cpu::kTargets) {
    if (named.name == name && (cpu::Supported() & named.highway) != 0) {
      cpu::Select(named);
      return true;
    }
  }
  return false;
}

std::vector<std::string> AvailableSimdTargets() {
  std::vector<std::string> names;
  for (const cpu::Named& named : cpu::kTargets) {
    if ((cpu::Supported() & named.highway) != 0) names.emplace_back(named.name);
  }
  return names;
}

}  // namespace mneme::engine
