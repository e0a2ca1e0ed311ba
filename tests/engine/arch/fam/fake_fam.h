// A valid TransformerFAM model made in memory.
#pragma once

#include <memory>

#include "tests/engine/arch/fake_host.h"

namespace mneme::engine {

// The fake host block with B 5, m 1, f 3; f 0 makes it BSWA.
inline std::shared_ptr<FakeCheckpoint> FakeFam(int layers = 2, int64_t f = 3, int64_t m = 1) {
  auto c = FakeHost("fam", layers, 4);
  c->Set("block_tokens", int64_t{5});
  c->Set("memory_blocks", m);
  c->Set("fam_tokens", f);
  if (f > 0) c->Add("model.fam_prompt", {f, 8}, 1);
  return c;
}

}  // namespace mneme::engine
