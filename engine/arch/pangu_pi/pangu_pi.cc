// PanGu-pi (Wang et al. 2023, arXiv:2312.17276): the Llama block with a series of activations in
// the feed-forward and shortcuts around the attention. Both are options of engine/arch/llama/
// (pangu_options.h), and without them the two are the same to the bit; this is the name.
#include "engine/arch/arch.h"
#include "engine/arch/config_reader.h"

namespace mneme::engine::pangu_pi {

bool Matches(const Checkpoint& checkpoint) { return HasModelType(checkpoint, {"pangu_pi"}); }

absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint,
                                             const ArchOptions& options) {
  // By way of the registry: no architecture includes another one.
  for (const ArchEntry& entry : AllArchs()) {
    if (entry.name == "llama") return entry.create(std::move(checkpoint), options);
  }
  return absl::UnimplementedError(
      checkpoint->path() + ": architecture pangu_pi needs llama, which this build does not have");
}

}  // namespace mneme::engine::pangu_pi
