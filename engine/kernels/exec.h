// What an op needs besides its operands: the device that runs it and the numeric contract.
#pragma once

#include "engine/device/device.h"
#include "engine/kernels/contract.h"

namespace mneme::engine {

// One per model, used by one thread at a time that holds the device's turn.
class Exec {
 public:
  Exec(Device& device, Contract contract) : device_(device), contract_(contract) {}

  Device& device() { return device_; }
  const Kernels& kernels() const { return device_.kernels(); }
  Contract contract() const { return contract_; }

 private:
  Device& device_;
  const Contract contract_;
};

}  // namespace mneme::engine
