// RWKV-4 as the Hugging Face checkpoints name and shape it.
#include <cmath>
#include <string>

#include "engine/arch/rwkv/rwkv_hf_layout.h"
#include "engine/arch/rwkv/v4/weights.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::rwkv4 {
namespace {

absl::StatusOr<TimeMix> LoadTimeMix(WeightReader& reader, int64_t index,
                                    const rwkv::Config& config) {
  const int64_t C = config.width;
  const std::string prefix = rwkv::HfAttention(index);
  const std::string mix = prefix + "time_mix_";
  TimeMix layer;
  MNEME_ASSIGN_OR_RETURN(layer.mu_r, rwkv::LoadTimeMixShare(reader, mix + "receptance", C));
  MNEME_ASSIGN_OR_RETURN(layer.mu_k, rwkv::LoadTimeMixShare(reader, mix + "key", C));
  MNEME_ASSIGN_OR_RETURN(layer.mu_v, rwkv::LoadTimeMixShare(reader, mix + "value", C));
  MNEME_ASSIGN_OR_RETURN(std::vector<float> decay, reader.Floats(prefix + "time_decay", {{C}}));
  // Beyond f32 it is -inf, which forgets at once, as it should.
  for (float& d : decay) d = -std::exp(d);
  layer.decay = reader.Place(decay);
  MNEME_ASSIGN_OR_RETURN(layer.bonus, reader.Vector(prefix + "time_first", {{C}}));
  MNEME_RETURN_IF_ERROR(
      rwkv::LoadHfProjections(reader, prefix, C, &layer.r, &layer.k, &layer.v, &layer.output));
  return layer;
}

}  // namespace

absl::StatusOr<Weights> LoadHf(const Checkpoint& checkpoint, Memory& memory) {
  Weights weights;
  weights.model.store = WeightStore(memory);
  WeightReader reader(checkpoint, "rwkv4", weights.model.store);
  rwkv::Config& config = weights.model.config;
  MNEME_ASSIGN_OR_RETURN(config, rwkv::ParseHfConfig(checkpoint, "rwkv", reader));
  MNEME_RETURN_IF_ERROR(rwkv::LoadHfTensors(
      reader, rwkv::HfShares::kTimeMix, [&](int64_t i) { return LoadTimeMix(reader, i, config); },
      &weights.model, &weights.time_mix));
  return weights;
}

}  // namespace mneme::engine::rwkv4
