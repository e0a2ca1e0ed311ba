// RWKV-6 as the Hugging Face checkpoints name and shape it.
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/arch/config_reader.h"
#include "engine/arch/rwkv6/weights.h"
#include "engine/arch/rwkv_hf_layout.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::rwkv6 {
namespace {

absl::StatusOr<TimeMix> LoadTimeMix(WeightReader& reader, int64_t index,
                                    const rwkv::Config& config) {
  const int64_t C = config.width;
  const std::string prefix = rwkv::HfAttention(index);
  constexpr const char* kNames[kNumMixes] = {"w", "k", "v", "r", "g"};
  TimeMix layer;
  MNEME_ASSIGN_OR_RETURN(layer.mu_x, reader.Vector(prefix + "time_maa_x", C));
  for (int i = 0; i < kNumMixes; ++i) {
    MNEME_ASSIGN_OR_RETURN(layer.mu[i],
                           reader.Vector(absl::StrCat(prefix, "time_maa_", kNames[i]), C));
  }
  const std::string w1 = prefix + "time_maa_w1";
  const std::string expected = absl::StrCat("[", C, ", 5 R]");
  MNEME_ASSIGN_OR_RETURN(const std::vector<int64_t> shape, reader.Shape(w1, expected));
  if (shape.size() != 2 || shape[1] < kNumMixes || shape[1] > kMaxWidth ||
      shape[1] % kNumMixes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(reader.path(), ": tensor \"", w1, "\": expected shape ", expected));
  }
  MNEME_ASSIGN_OR_RETURN(layer.mix_a, reader.Transposed(w1, shape[1], C));
  MNEME_ASSIGN_OR_RETURN(layer.mix_b, reader.TransposedStack(prefix + "time_maa_w2", kNumMixes, C,
                                                             shape[1] / kNumMixes));
  MNEME_ASSIGN_OR_RETURN(
      layer.decay,
      rwkv::LoadLowRank(reader,
                        {prefix + "time_decay_w1", prefix + "time_decay_w2", prefix + "time_decay"},
                        C, rwkv::FactorLayout::kInOut));
  MNEME_ASSIGN_OR_RETURN(layer.bonus,
                         reader.Floats(prefix + "time_faaaa", {{config.heads, config.head_size}}));
  MNEME_RETURN_IF_ERROR(
      rwkv::LoadHfProjections(reader, prefix, C, &layer.r, &layer.k, &layer.v, &layer.output));
  MNEME_ASSIGN_OR_RETURN(layer.gate, reader.Matrix(prefix + "gate.weight", C, C));
  MNEME_ASSIGN_OR_RETURN(layer.group_norm, rwkv::LoadNorm(reader, prefix + "ln_x", C));
  return layer;
}

}  // namespace

absl::StatusOr<Weights> LoadHf(const Checkpoint& checkpoint) {
  WeightReader reader(checkpoint, "rwkv6");
  Weights weights;
  rwkv::Config& config = weights.model.config;
  MNEME_ASSIGN_OR_RETURN(config, rwkv::ParseHfConfig(checkpoint, "rwkv6", reader));
  const std::string heads = rwkv::HfAttention(0) + "time_faaaa";
  MNEME_RETURN_IF_ERROR(rwkv::SetHeads(reader, heads, &config));
  MNEME_RETURN_IF_ERROR(rwkv::FinishHfHeads(checkpoint, heads, &config));
  MNEME_RETURN_IF_ERROR(rwkv::LoadHfTensors(
      reader, rwkv::HfShares::kTimeMaa, [&](int64_t i) { return LoadTimeMix(reader, i, config); },
      &weights.model, &weights.time_mix));
  return weights;
}

}  // namespace mneme::engine::rwkv6
