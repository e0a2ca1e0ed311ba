// Checkpoints of real models' sizes without their files: names, shapes and configuration as the
// engine expects them, numbers from one small random pattern, or none at all.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/core/dtype.h"

namespace mneme::bench {

enum class ModelKind { kLlama, kRwkv7, kTitansMag, kTitansMac, kInfini };

struct ModelShape {
  std::string_view name;
  ModelKind kind;
  int64_t layers;
  int64_t width;
  int64_t ffn_width;
  int64_t vocab_size;
  int64_t heads;
  int64_t kv_heads;  // of Llama and Infini; otherwise `heads`
  bool tied = false;
  // Tokens that attention looks back, or of a segment.
  int64_t window = 2048;
};

// 135 M and 1.1 B of Llama, 0.19 B and 1.5 B of RWKV-7, some 0.3 B of the others.
std::span<const ModelShape> ModelShapes();
// Everything the same but sizes: a pass takes no time, wherever it runs.
ModelShape Toy(const ModelShape& shape);

enum class Values {
  kNone,    // zeros that take no memory: for who never reads matrices
  kRandom,  // finite
};
// Matrices of `dtype`; those whose rows are no whole number of its blocks, of Q8_0, else of F16, as
// converters have it. Low-rank maps, and all that is no matrix, stay floats.
std::shared_ptr<const engine::Checkpoint> MakeCheckpoint(const ModelShape& shape,
                                                         engine::DType dtype, Values values);

}  // namespace mneme::bench
