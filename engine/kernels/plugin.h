// A backend in a shared library of its own, which processes open that find it: what it needs of a
// vendor's libraries stays out of the server.
//
// The library exports `mneme_backend`, C linkage, returning the one BackendPlugin. It shares C++
// types with the engine, so both must be of one build: `build_id` is compared before anything else
// is looked at.
#pragma once

#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/device/device.h"

namespace mneme::engine {

struct Kernels;

// Of the backend's device `ordinal`, with `num_threads` of the host's processors for what a device
// leaves to them. INVALID_ARGUMENT says how many there are if that is none of them;
// FAILED_PRECONDITION: it is none that can be used, or this machine has none at all.
using MakeDeviceFn = absl::StatusOr<std::unique_ptr<Device>> (*)(int num_threads, int ordinal);

struct BackendPlugin {
  const char* build_id;  // first, for ever
  const Kernels* kernels;
  MakeDeviceFn device;
};

using BackendPluginFn = const BackendPlugin* (*)();
inline constexpr const char* kBackendPluginSymbol = "mneme_backend";

}  // namespace mneme::engine
