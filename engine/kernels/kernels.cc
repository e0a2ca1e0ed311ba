#include "engine/kernels/kernels.h"

#include <array>
#include <iterator>

namespace mneme::engine {

#define ENGINE_BACKEND(name) const Kernels& name##_kernels();
#include "engine/kernels/backend_list.inc"
#undef ENGINE_BACKEND

namespace {
using Getter = const Kernels& (*)();
constexpr Getter kGetters[] = {
#define ENGINE_BACKEND(name) &name##_kernels,
#include "engine/kernels/backend_list.inc"
#undef ENGINE_BACKEND
};
}  // namespace

std::span<const Kernels* const> AllBackends() {
  static const auto table = [] {
    std::array<const Kernels*, std::size(kGetters)> all;
    for (size_t i = 0; i < std::size(kGetters); ++i) all[i] = &kGetters[i]();
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

}  // namespace mneme::engine
