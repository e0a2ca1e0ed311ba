// What holds for the tensors of any file that a parser accepts.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <span>

#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/finite.h"

namespace mneme::engine {

// Aborts unless every tensor lies in `file`, under its own name and as large as its shape says.
template <typename Tensors>
void CheckTensors(std::span<const std::byte> file, const Tensors& tensors) {
  for (const auto& [name, tensor] : tensors) {
    if (name != tensor.name || tensor.data < file.data() || tensor.size_bytes > file.size()) {
      std::abort();
    }
    if (tensor.data + tensor.size_bytes > file.data() + file.size()) std::abort();
    int64_t rows = 1;
    for (size_t i = 0; i + 1 < tensor.shape.size(); ++i) rows *= tensor.shape[i];
    if (RowBytes(tensor.dtype, tensor.shape.back()) * rows != tensor.size_bytes) std::abort();
    AllFinite(tensor.dtype, {tensor.data, tensor.size_bytes});  // reads every block
  }
}

}  // namespace mneme::engine
