// RWKV checkpoints of other programs, as the Hugging Face layouts that the architectures read
// (docs/checkpoint_format.md): llama.cpp's GGUF files of RWKV-6 and 7, and rwkv.cpp's .bin files of
// RWKV-4 to 7.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/checkpoint/checkpoint.h"

namespace mneme::engine::rwkv {

// The checkpoint itself if it is of no such format. Weights stay where and as they are in the file;
// what a converter computed from small vectors (decays) is undone. NOT_FOUND and INVALID_ARGUMENT
// name a key or tensor of the file; UNIMPLEMENTED names an extension that is not supported.
absl::StatusOr<std::shared_ptr<const Checkpoint>> InHfLayout(
    std::shared_ptr<const Checkpoint> checkpoint);

// --- The formats (rwkv_gguf_format.cc, rwkv_cpp_format.cc) ---

bool IsRwkvGguf(const Checkpoint& checkpoint);
absl::StatusOr<std::shared_ptr<const Checkpoint>> FromGguf(
    std::shared_ptr<const Checkpoint> checkpoint);
// Every .bin file is one of these.
absl::StatusOr<std::shared_ptr<const Checkpoint>> FromRwkvCpp(
    std::shared_ptr<const Checkpoint> checkpoint);

}  // namespace mneme::engine::rwkv
