// The state of a Titans model: which tensors a layer has, in which order, and where they lie.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/titans/config.h"
#include "engine/core/dtype.h"
#include "engine/state/schema.h"

namespace mneme::engine::titans {

// Indices of a layer's tensors, counted from its first one; -1: not in this configuration. Shapes
// and meaning are those of docs/checkpoint_format.md.
struct LayerTensors {
  std::vector<int> memory, momentum, running;  // [depth]; running in token mode only
  int pending_k = -1, pending_v = -1, pending_rates = -1;
  int conv_q = -1, conv_k = -1, conv_v = -1, conv_q2 = -1;
  int k = -1, v = -1;                          // mag, mal
  int h_k = -1, h_v = -1, x_k = -1, x_v = -1;  // mac
  int count = 0;
};

class StateMap {
 public:
  StateMap() = default;
  // INVALID_ARGUMENT if a state would be larger than any machine's memory.
  static absl::StatusOr<StateMap> Create(const Config& config, DType kv_dtype);

  const StateSchema& schema() const { return schema_; }
  const LayerTensors& tensors() const { return tensors_; }
  // For people; ends in "= N bytes".
  const std::string& formula() const { return formula_; }

  // None for a tensor that this configuration does not have.
  StateField Field(int64_t layer, int tensor) const {
    return tensor < 0 ? StateField() : schema_.Field(layer * tensors_.count + tensor);
  }

 private:
  LayerTensors tensors_;
  StateSchema schema_;
  std::string formula_;
};

}  // namespace mneme::engine::titans
