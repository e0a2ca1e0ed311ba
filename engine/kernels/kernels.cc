#include "engine/kernels/kernels.h"

#include <array>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/core/thread_pool.h"

namespace mneme::engine {

#define ENGINE_BACKEND(name)       \
  const Kernels& name##_kernels(); \
  std::unique_ptr<Device> name##_device(int num_threads);
#include "engine/kernels/backend_list.inc"
#undef ENGINE_BACKEND

namespace {

struct Backend {
  const Kernels& (*kernels)();
  std::unique_ptr<Device> (*device)(int num_threads);
};
constexpr Backend kBackends[] = {
#define ENGINE_BACKEND(name) {&name##_kernels, &name##_device},
#include "engine/kernels/backend_list.inc"
#undef ENGINE_BACKEND
};

}  // namespace

std::span<const Kernels* const> AllBackends() {
  static const auto table = [] {
    std::array<const Kernels*, std::size(kBackends)> all;
    for (size_t i = 0; i < std::size(kBackends); ++i) all[i] = &kBackends[i].kernels();
    return all;
  }();
  return table;
}

const Kernels* FindBackend(std::string_view name) {
  for (const Kernels* kernels : AllBackends()) {
    if (kernels->name == name) return kernels;
  }
  return nullptr;
}

std::string BackendNames() {
  return absl::StrJoin(AllBackends(), ", ", [](std::string* out, const Kernels* kernels) {
    out->append(kernels->name);
  });
}

absl::StatusOr<std::unique_ptr<Device>> CreateDevice(std::string_view backend, int num_threads) {
  if (num_threads < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_threads is ", num_threads, ", expected 0 or more"));
  }
  if (num_threads == 0) num_threads = AvailableProcessors();
  for (const Backend& entry : kBackends) {
    if (entry.kernels().name == backend) return entry.device(num_threads);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("no backend '", std::string(backend), "'; there are ", BackendNames()));
}

}  // namespace mneme::engine
