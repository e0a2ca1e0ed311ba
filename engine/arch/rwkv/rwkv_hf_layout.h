// What RWKV-4, 5 and 6 have in common in the layout of the Hugging Face `RWKV/*` checkpoints
// (docs/checkpoint_format.md): keys of config.json and tensors.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/rwkv/rwkv_weights.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::rwkv {

// Keys of checkpoints that were other formats' (rwkv_formats.h). "out_in": low-rank factors are
// stored as other matrices, not for products from the right.
inline constexpr const char* kFactorLayoutKey = "translated.low_rank_factors";
// n > 0: att.output and ffn.value of layer l are stored divided by 2^(l div n).
inline constexpr const char* kRescaledEveryKey = "translated.rescaled_every";

// The keys, and the feed-forward width from the tensors; what has to do with heads stays 0.
absl::StatusOr<Config> ParseHfConfig(const Checkpoint& checkpoint, std::string_view model_type,
                                     WeightReader& reader);
// From version 5, once `source`, a tensor, has told heads and head_size: the key agrees, and the
// epsilon of the group norm.
absl::Status FinishHfHeads(const Checkpoint& checkpoint, const std::string& source, Config* config);

// "rwkv.blocks.<index>.attention."
std::string HfAttention(int64_t index);
// {receptance,key,value,output}.weight [C, C] below `prefix`.
absl::Status LoadHfProjections(WeightReader& reader, const std::string& prefix, int64_t C,
                               Matrix* r, Matrix* k, Matrix* v, Matrix* output);
// time_mix_* of versions 4 and 5 are shares of the current token. Returns those of the one before.
absl::StatusOr<Vector> LoadTimeMixShare(WeightReader& reader, const std::string& name, int64_t C);

enum class HfShares { kTimeMix, kTimeMaa };  // of versions 4 and 5, of version 6
absl::StatusOr<Block> LoadHfBlock(WeightReader& reader, int64_t index, const Config& config,
                                  HfShares shares);
// As LoadEnds.
absl::Status LoadHfEnds(WeightReader& reader, Model* model);

// All tensors, once the config is complete; load(index) returns a layer's time mixing.
template <typename TimeMix, typename Load>
absl::Status LoadHfTensors(WeightReader& reader, HfShares shares, Load load, Model* model,
                           std::vector<TimeMix>* time_mix) {
  for (int64_t i = 0; i < model->config.num_layers; ++i) {
    MNEME_ASSIGN_OR_RETURN(TimeMix mix, load(i));
    time_mix->push_back(std::move(mix));
    MNEME_ASSIGN_OR_RETURN(Block block, LoadHfBlock(reader, i, model->config, shares));
    model->blocks.push_back(std::move(block));
  }
  return LoadHfEnds(reader, model);
}

}  // namespace mneme::engine::rwkv
