// PanGu-pi (Wang et al. 2023, arXiv:2312.17276): the Llama block with a series of activations in
// the feed-forward and shortcuts around the attention. Both are options of engine/arch/llama/
// (pangu_options.h), and without them the two are the same to the bit; this is the name.
#include "engine/arch/arch.h"
#include "engine/arch/config_reader.h"

namespace mneme::engine {

// No architecture includes another one's header; this is declared as the registry does.
namespace llama {
absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options);
}  // namespace llama

namespace pangu_pi {

bool Matches(const Checkpoint& checkpoint) { return HasModelType(checkpoint, {"pangu_pi"}); }

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  return llama::Create(std::move(checkpoint), options);
}

}  // namespace pangu_pi
}  // namespace mneme::engine
