// RWKV-5 as the Hugging Face checkpoints name and shape it.
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/arch/config_reader.h"
#include "engine/arch/rwkv/rwkv_hf_layout.h"
#include "engine/arch/rwkv/v5/weights.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::rwkv5 {
namespace {

// What the tensors of the first layer say of all.
struct Version {
  bool per_channel = false;  // decay and bonus; 5.2
  bool gate = false;
};

// [C] from [H]: a head's value for each of its channels.
std::vector<float> Broadcast(const std::vector<float>& heads, int64_t head_size) {
  std::vector<float> values;
  for (const float value : heads) values.insert(values.end(), head_size, value);
  return values;
}

// heads and head_size from "time_first" [H] or [H, 1].
absl::Status SetHeadsPerHead(WeightReader& reader, const std::string& name, rwkv::Config* config) {
  MNEME_ASSIGN_OR_RETURN(const std::vector<int64_t> shape, reader.Shape(name, "[H]"));
  const bool one_a_head = shape.size() == 1 || (shape.size() == 2 && shape[1] == 1);
  if (!one_a_head || shape[0] < 1 || config->width % shape[0] != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(reader.path(), ": tensor \"", name,
                     "\": expected shape [H] or [H, 1], H a divisor of ", config->width));
  }
  config->heads = shape[0];
  config->head_size = config->width / shape[0];
  return absl::OkStatus();
}

absl::Status LoadMemoryRates(WeightReader& reader, const std::string& prefix,
                             const rwkv::Config& config, const Version& version, TimeMix* layer) {
  const int64_t H = config.heads, N = config.head_size;
  const std::string decay = prefix + "time_decay";
  std::vector<float> decays, bonuses;
  if (version.per_channel) {
    MNEME_ASSIGN_OR_RETURN(decays, reader.Floats(decay, {{H, N}}));
    MNEME_ASSIGN_OR_RETURN(bonuses, reader.Floats(prefix + "time_faaaa", {{H, N}}));
  } else {
    const std::string first = prefix + "time_first";
    MNEME_ASSIGN_OR_RETURN(decays, reader.Floats(decay, {{H}, {H, 1}}));
    MNEME_ASSIGN_OR_RETURN(bonuses, reader.Floats(first, {{H}, {H, 1}}));
    decays = Broadcast(decays, N);
    bonuses = Broadcast(bonuses, N);
    for (float& u : bonuses) {
      u = std::exp(u);
      if (std::isfinite(u)) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          reader.path(), ": tensor \"", first, "\" holds a value whose exponential is beyond f32"));
    }
  }
  for (float& d : decays) d = static_cast<float>(std::exp(-std::exp(static_cast<double>(d))));
  layer->decay = reader.Place(decays);
  layer->bonus = reader.Place(bonuses);
  return absl::OkStatus();
}

absl::StatusOr<TimeMix> LoadTimeMix(WeightReader& reader, int64_t index, const rwkv::Config& config,
                                    const Version& version) {
  const int64_t C = config.width;
  const std::string prefix = rwkv::HfAttention(index);
  const auto share = [&](const char* name) {
    return rwkv::LoadTimeMixShare(reader, absl::StrCat(prefix, "time_mix_", name), C);
  };
  TimeMix layer;
  MNEME_ASSIGN_OR_RETURN(layer.mu_r, share("receptance"));
  MNEME_ASSIGN_OR_RETURN(layer.mu_k, share("key"));
  MNEME_ASSIGN_OR_RETURN(layer.mu_v, share("value"));
  MNEME_RETURN_IF_ERROR(LoadMemoryRates(reader, prefix, config, version, &layer));
  MNEME_RETURN_IF_ERROR(
      rwkv::LoadHfProjections(reader, prefix, C, &layer.r, &layer.k, &layer.v, &layer.output));
  if (version.gate) {
    MNEME_ASSIGN_OR_RETURN(layer.mu_g, share("gate"));
    MNEME_ASSIGN_OR_RETURN(layer.gate, reader.Matrix(prefix + "gate.weight", C, C));
  }
  MNEME_ASSIGN_OR_RETURN(layer.group_norm, rwkv::LoadNorm(reader, prefix + "ln_x", C));
  return layer;
}

}  // namespace

absl::StatusOr<Weights> LoadHf(const Checkpoint& checkpoint, Memory& memory) {
  Weights weights;
  weights.model.store = WeightStore(memory);
  WeightReader reader(checkpoint, "rwkv5", weights.model.store);
  rwkv::Config& config = weights.model.config;
  MNEME_ASSIGN_OR_RETURN(config, rwkv::ParseHfConfig(checkpoint, "rwkv5", reader));
  const std::string prefix = rwkv::HfAttention(0);
  const std::string per_channel = prefix + "time_faaaa", per_head = prefix + "time_first";
  if (!reader.Has(per_channel) && !reader.Has(per_head)) {
    return absl::NotFoundError(absl::StrCat(checkpoint.path(), ": tensor \"", per_channel,
                                            "\" (version 5.2) or \"", per_head,
                                            "\" (version 5.1) is missing"));
  }
  const Version version{.per_channel = !reader.Has(per_head),
                        .gate = !reader.Has(per_head) || reader.Has(prefix + "gate.weight") ||
                                reader.Has(prefix + "time_mix_gate")};
  const std::string& heads = version.per_channel ? per_channel : per_head;
  if (version.per_channel) {
    MNEME_RETURN_IF_ERROR(rwkv::SetHeads(reader, heads, &config));
  } else {
    MNEME_RETURN_IF_ERROR(SetHeadsPerHead(reader, heads, &config));
  }
  MNEME_RETURN_IF_ERROR(rwkv::FinishHfHeads(checkpoint, heads, &config));
  MNEME_RETURN_IF_ERROR(rwkv::LoadHfTensors(
      reader, rwkv::HfShares::kTimeMix,
      [&](int64_t i) { return LoadTimeMix(reader, i, config, version); }, &weights.model,
      &weights.time_mix));
  return weights;
}

}  // namespace mneme::engine::rwkv5
