// What runs a model: memory, kernels, order and errors. One device serves every model of a process
// that is loaded on it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "engine/device/memory.h"
#include "engine/device/turns.h"

namespace mneme::engine {

struct Kernels;

class Device {
 public:
  virtual ~Device() = default;

  virtual std::string_view name() const = 0;  // of its backend: "cpu"
  // Which one it is: "cpu", or "cuda:1" where a backend can have several.
  virtual std::string place() const { return std::string(name()); }
  // For people: which processor it is.
  virtual std::string description() const = 0;
  // What decides about bits besides the build: "avx3". Part of numerics_id.
  virtual std::string numerics() const = 0;
  virtual const Kernels& kernels() const = 0;
  virtual Memory& memory() = 0;
  // Until all calls so far are done; the first error since the last Wait.
  virtual absl::Status Wait() = 0;
  // OK, or what the device failed of for good: it computes nothing more in this process, and what
  // its memory holds is lost. Thread-safe.
  virtual absl::Status Fault() const { return absl::OkStatus(); }

  // Calls fn(i) for every i in [0, n), on the host's threads that the device has. For who holds the
  // turn. fn must not throw.
  virtual void ForEach(int64_t n, absl::FunctionRef<void(int64_t)> fn) = 0;

  // One pass at a time; models take turns.
  Turns& turns() { return turns_; }

 private:
  Turns turns_;
};

}  // namespace mneme::engine
