// What the kernel tests share: every (backend, SIMD target) of this machine.
//
// Kernels see the tests' own arrays: a host's or emulated device's kernels reach them, and a real
// device's because main() here shows it the heap and the stack (tests/support/device_visible.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/core/dtype.h"
#include "engine/device/device.h"
#include "engine/kernels/activation.h"
#include "engine/kernels/host.h"
#include "engine/kernels/kernels.h"
#include "tests/engine/kernels/random_operands.h"

namespace mneme::engine {

// One way to run the kernels. Only `cpu` has SIMD targets.
struct Variant {
  const Kernels* kernels;
  std::string simd;

  std::string Name() const { return std::string(kernels->name) + (simd.empty() ? "" : "/" + simd); }
  // Call before the first kernel of this variant.
  void Select() const { PinSimdTarget(simd); }
  // Whether sums follow the fused multiply-add of contract.h to the bit.
  bool Fused() const { return simd != "sse4" && simd != "scalar"; }
};

// `reference` first, then those that the program is run on (tests/support/tested_backends.h).
std::vector<Variant> AllVariants();
// A name of either as GoogleTest allows it.
std::string ParameterName(std::string_view name);
// Their tables, each once. Kernels of a device's table are done when they return.
std::vector<const Kernels*> TestBackends();

namespace internal {
struct OwnedDevice {
  std::unique_ptr<Device> owned_device;
};
}  // namespace internal

// An Exec with a device of its own.
class KernelExec : private internal::OwnedDevice, public Exec {
 public:
  // Of a table above.
  KernelExec(const Kernels& kernels, Contract contract, int num_threads);
};

// The activation's formula in double.
double Exact(Activation f, double x);

}  // namespace mneme::engine
