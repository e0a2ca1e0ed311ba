#include "engine/arch/infini/memory_kernels.h"

namespace mneme::engine::infini {

const MemoryKernels* FindMemoryKernels(std::string_view backend) {
  for (const MemoryKernels* kernels : {&ReferenceMemoryKernels(), &CpuMemoryKernels()}) {
    if (kernels->backend == backend) return kernels;
  }
  return nullptr;
}

}  // namespace mneme::engine::infini
