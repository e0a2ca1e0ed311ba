#include "tests/support/tested_backends.h"

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace mneme::test {

std::vector<const engine::Kernels*> TestedBackends() {
  const char* name = std::getenv("TESTED_BACKEND");
  if (name == nullptr) {
    return {engine::AllBackends().begin(), engine::AllBackends().end()};
  }
  const char* plugin = std::getenv("TESTED_PLUGIN");
  if (plugin == nullptr) {
    plugin = std::string_view(name) == "cuda" ? MNEME_CUDA_PLUGIN : MNEME_CUDA_EMU_PLUGIN;
  }
  const absl::Status opened = engine::OpenBackend(plugin);
  const engine::Kernels* kernels = engine::FindBackend(name);
  if (kernels == nullptr) {
    std::fprintf(stderr, "TESTED_BACKEND is %s: there is none: %s\n", name,
                 opened.ToString().c_str());
    std::abort();
  }
  return {kernels};
}

}  // namespace mneme::test
