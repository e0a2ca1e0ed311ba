// A valid Infini-attention model made in memory.
#pragma once

#include <memory>
#include <string>

#include "tests/engine/arch/fake_host.h"

namespace mneme::engine {

// The fake host block with dv 6, N 5; every option that has no default is set.
inline std::shared_ptr<FakeCheckpoint> FakeInfini(int layers = 2, bool delta = false) {
  auto c = FakeHost("infini", layers, 6);
  c->Set("value_head_dim", int64_t{6});
  c->Set("segment_tokens", int64_t{5});
  c->Set("memory_update", std::string(delta ? "linear_delta" : "linear"));
  for (int i = 0; i < layers; ++i) {
    c->Add("model.layers." + std::to_string(i) + ".self_attn.memory_gate", {4}, 1);
  }
  return c;
}

}  // namespace mneme::engine
