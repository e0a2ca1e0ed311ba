#include "tests/support/emulated_cuda.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

#include "engine/kernels/kernels.h"

namespace mneme::test {

std::unique_ptr<engine::Device> EmulatedCudaDevice() {
  const absl::Status opened = engine::OpenBackend(MNEME_CUDA_EMU_PLUGIN);
  auto device = engine::CreateDevice("cuda-emu", 1);
  if (device.ok()) return *std::move(device);
  std::fprintf(stderr, "no emulated device: %s %s\n", opened.ToString().c_str(),
               device.status().ToString().c_str());
  std::abort();
}

const CuemuCounts& EmulatedCudaCounts() {
  // The library that is open already.
  static const auto get = reinterpret_cast<decltype(&cuemu_counts)>(
      dlsym(dlopen(MNEME_CUDA_EMU_PLUGIN, RTLD_NOW | RTLD_NOLOAD), "cuemu_counts"));
  if (get == nullptr) {
    std::fprintf(stderr, "%s does not count: %s\n", MNEME_CUDA_EMU_PLUGIN, dlerror());
    std::abort();
  }
  return *get();
}

}  // namespace mneme::test
