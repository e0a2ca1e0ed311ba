// An architecture: (state, tokens) -> (state', hidden rows) with a state of fixed size.
//
// One folder here and one line in arch_list.inc (docs/adding_an_architecture.md).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/core/dtype.h"
#include "engine/core/rows.h"
#include "engine/device/memory.h"
#include "engine/kernels/batch.h"
#include "engine/state/schema.h"
#include "engine/tokenizer/tokenizer.h"

namespace mneme::engine {

class Exec;

// What a user may choose about the state when a checkpoint is loaded.
struct ArchOptions {
  int64_t window_tokens =
      0;  // attention window R + sinks S in total; 0: the model's trained context
  int64_t sink_tokens = 4;
  DType kv_dtype = DType::kF16;  // kF16 or kF32
  // What a window does with more tokens than it has room for. Architectures without one ignore it.
  enum class Overflow { kSlide, kError } overflow = Overflow::kSlide;
  Memory* memory = &HostMemory();  // for weights and activations; of the device that will run it
};

struct ArchInfo {
  std::string architecture;  // registry name, "llama"
  int64_t vocab_size = 0;
  int64_t num_layers = 0;
  int64_t parameters = 0;
  int64_t weight_bytes = 0;  // of tensors that are used
  int64_t decode_weight_bytes =
      0;  // read to decode one token (a tied head once, one embedding row)
  int64_t layer_matrix_parameters = 0;   // multiplied by every token: embedding and head excluded
  DType weight_dtype = DType::kF32;      // the type most weight bytes have
  bool has_quantized_weights = false;    // otherwise both contracts are the same
  int64_t trained_context_tokens = 0;    // 0: unbounded
  int64_t effective_context_tokens = 0;  // 0: unbounded
  int64_t context_limit_tokens = 0;      // more are refused (Overflow::kError); 0: never
  std::string state_formula;             // for people: "2 * L * Hk * Dh * b * (S + R) = ..."
};

class Arch {
 public:
  virtual ~Arch() = default;

  virtual const ArchInfo& info() const = 0;
  virtual const StateSchema& schema() const = 0;
  // Writes what a sequence begins with into a zeroed state, by ops. Called once, with the Exec that
  // Forward will be given, before the first Forward: every state begins as a copy of this one. The
  // default leaves zeros.
  virtual void InitState(Exec& exec, StateSlot state) {}
  // Feeds every run of the batch, which has at least one row, and writes the hidden rows of its
  // wanted rows as they enter the head, [wanted, D]. Products run over all rows; mixers run per
  // sequence. A sequence's result does not depend on the others or on how its tokens were cut.
  virtual void Forward(Exec& exec, const Batch& batch, Rows hidden) = 0;
  // [V, D]: logits are its products with hidden rows.
  virtual const Matrix& head() const = 0;
};

// Keeps the checkpoint mapped for its own life. INVALID_ARGUMENT names tensor or key and what was
// expected.
using ArchFactory = absl::StatusOr<std::unique_ptr<Arch>> (*)(std::shared_ptr<const Checkpoint>,
                                                              const ArchOptions&);

struct ArchEntry {
  std::string_view name;
  ArchFactory create;
  // Whether this architecture serves the checkpoint, judged by its metadata alone. RWKV checkpoints
  // of other programs come here in the Hugging Face layout (rwkv_formats.h).
  bool (*matches)(const Checkpoint&);
};

// Every line of arch_list.inc.
std::span<const ArchEntry> AllArchs();
// UNIMPLEMENTED names the checkpoint's own architecture if none matches.
absl::StatusOr<std::unique_ptr<Arch>> CreateArch(std::shared_ptr<const Checkpoint> checkpoint,
                                                 const ArchOptions& options);

}  // namespace mneme::engine
