// What an op needs besides its operands: the device that runs it and the numeric contract.
#pragma once

#include "engine/device/device.h"
#include "engine/kernels/contract.h"

namespace mneme::engine {

// One per model, used by one thread at a time that holds the device's turn.
class Exec {
 public:
  Exec(Device& device, Contract contract) : Exec(device, device.kernels(), contract) {}
  // With a table that stands before the device's own, as tests have it.
  Exec(Device& device, const Kernels& kernels, Contract contract)
      : device_(device), kernels_(kernels), contract_(contract) {}

  Device& device() { return device_; }
  const Kernels& kernels() const { return kernels_; }
  Contract contract() const { return contract_; }

 private:
  Device& device_;
  const Kernels& kernels_;
  const Contract contract_;
};

}  // namespace mneme::engine
