// A model without engine and tokenizer around it: sequences that step together, on any device.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/arch/arch.h"
#include "engine/device/device.h"
#include "engine/device/memory.h"
#include "engine/kernels/batch.h"
#include "engine/kernels/contract.h"

namespace mneme::bench {

class ModelRun {
 public:
  // `device` must outlive it. INVALID_ARGUMENT for a checkpoint that is no model.
  static absl::StatusOr<std::unique_ptr<ModelRun>> Create(
      std::shared_ptr<const engine::Checkpoint> checkpoint, engine::Device& device);

  // Whether some weights are quantised, and so met in int8.
  engine::Contract contract() const;
  const engine::Arch& arch() const { return *arch_; }

  // So many sequences, all said to be at `position`; as many as before are those of before.
  // RESOURCE_EXHAUSTED if they do not fit.
  absl::Status Begin(int64_t sequences, int64_t position);
  // One pass: each sequence reads `tokens` more, and has logits after its last one if `wanted`, as
  // decoding and the end of a prompt have. By the kernels of `by`, which is the device or stands
  // before it. The device may not be done when it returns.
  absl::Status Pass(engine::Device& by, int64_t tokens, bool wanted);
  // A state to another one's place and back, through the device's memory. Bytes that were copied.
  int64_t CopyState();

 private:
  ModelRun(engine::Device& device, std::unique_ptr<engine::Arch> arch)
      : device_(device), arch_(std::move(arch)) {}

  engine::Device& device_;
  const std::unique_ptr<engine::Arch> arch_;
  std::vector<engine::Block> states_;
  int64_t position_ = 0;
  engine::Batch batch_;
  std::vector<int32_t> tokens_;
  std::vector<uint8_t> finite_;
  engine::Block hidden_, logits_;
};

}  // namespace mneme::bench
