#include "engine/arch/titans/kernels.h"

namespace mneme::engine::titans {

const TitansKernels* FindTitansKernels(std::string_view backend) {
  for (const TitansKernels* kernels : {&ReferenceTitansKernels(), &CpuTitansKernels()}) {
    if (kernels->backend == backend) return kernels;
  }
  return nullptr;
}

}  // namespace mneme::engine::titans
