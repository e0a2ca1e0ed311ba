// For kernels that run on the host's processors, and whoever calls them alone.
#pragma once

#include "engine/device/host_device.h"
#include "engine/kernels/exec.h"
#include "engine/kernels/kernels.h"

namespace mneme::engine {

// The device of an Exec that a host backend's kernel was called with.
inline HostDevice& Host(Exec& exec) { return static_cast<HostDevice&>(exec.device()); }

namespace internal {
struct OwnedHostDevice {
  HostDevice owned_device;
};
}  // namespace internal

// An Exec with a device of its own, for tests and benchmarks of kernels.
class HostExec : private internal::OwnedHostDevice, public Exec {
 public:
  HostExec(const Kernels& kernels, Contract contract, int num_threads)
      : OwnedHostDevice{{kernels.name, kernels.simd_target, kernels, num_threads}},
        Exec(owned_device, contract) {}
};

}  // namespace mneme::engine
