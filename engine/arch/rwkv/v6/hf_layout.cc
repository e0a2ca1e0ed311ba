// RWKV-6 as the Hugging Face checkpoints name and shape it.
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/arch/config_reader.h"
#include "engine/arch/rwkv/rwkv_hf_layout.h"
#include "engine/arch/rwkv/v6/weights.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::rwkv6 {
namespace {

// 2^(l div n) of the layers of a file whose outputs are divided by it; greater ones are refused.
constexpr int kMaxOutputScaleBits = 64;

// How the low-rank factors are stored: files of other formats have them as other matrices.
absl::StatusOr<rwkv::FactorLayout> GetFactorLayout(const Checkpoint& checkpoint) {
  MNEME_ASSIGN_OR_RETURN(const std::string layout,
                         checkpoint.GetString(rwkv::kFactorLayoutKey, "in_out"));
  return layout == "out_in" ? rwkv::FactorLayout::kOutIn : rwkv::FactorLayout::kInOut;
}

absl::Status LoadMixes(WeightReader& reader, const std::string& prefix, int64_t C,
                       rwkv::FactorLayout factors, TimeMix* layer) {
  const bool transposed = factors == rwkv::FactorLayout::kInOut;
  const std::string w1 = prefix + "time_maa_w1", w2 = prefix + "time_maa_w2";
  const std::string expected =
      transposed ? absl::StrCat("[", C, ", 5 R]") : absl::StrCat("[5 R, ", C, "]");
  MNEME_ASSIGN_OR_RETURN(const std::vector<int64_t> shape, reader.Shape(w1, expected));
  const int64_t rows = shape.size() == 2 ? shape[transposed ? 1 : 0] : 0;
  if (rows < kNumMixes || rows > kMaxWidth || rows % kNumMixes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(reader.path(), ": tensor \"", w1, "\": expected shape ", expected));
  }
  const int64_t R = rows / kNumMixes;
  if (transposed) {
    MNEME_ASSIGN_OR_RETURN(layer->mix_a, reader.Transposed(w1, rows, C));
    MNEME_ASSIGN_OR_RETURN(layer->mix_b, reader.TransposedStack(w2, kNumMixes, C, R));
  } else {
    MNEME_ASSIGN_OR_RETURN(layer->mix_a, reader.Matrix(w1, rows, C));
    MNEME_ASSIGN_OR_RETURN(layer->mix_b, reader.MatrixStack(w2, kNumMixes, C, R));
  }
  return absl::OkStatus();
}

absl::StatusOr<TimeMix> LoadTimeMix(WeightReader& reader, int64_t index, const rwkv::Config& config,
                                    rwkv::FactorLayout factors) {
  const int64_t C = config.width;
  const std::string prefix = rwkv::HfAttention(index);
  constexpr const char* kNames[kNumMixes] = {"w", "k", "v", "r", "g"};
  TimeMix layer;
  MNEME_ASSIGN_OR_RETURN(layer.mu_x, rwkv::LoadVector(reader, prefix + "time_maa_x", C));
  for (int i = 0; i < kNumMixes; ++i) {
    MNEME_ASSIGN_OR_RETURN(
        layer.mu[i], rwkv::LoadVector(reader, absl::StrCat(prefix, "time_maa_", kNames[i]), C));
  }
  MNEME_RETURN_IF_ERROR(LoadMixes(reader, prefix, C, factors, &layer));
  MNEME_ASSIGN_OR_RETURN(
      layer.decay,
      rwkv::LoadLowRank(reader,
                        {prefix + "time_decay_w1", prefix + "time_decay_w2", prefix + "time_decay"},
                        C, factors));
  MNEME_ASSIGN_OR_RETURN(layer.bonus,
                         reader.Vector(prefix + "time_faaaa", {{config.heads, config.head_size}}));
  MNEME_RETURN_IF_ERROR(
      rwkv::LoadHfProjections(reader, prefix, C, &layer.r, &layer.k, &layer.v, &layer.output));
  MNEME_ASSIGN_OR_RETURN(layer.gate, reader.Matrix(prefix + "gate.weight", C, C));
  MNEME_ASSIGN_OR_RETURN(layer.group_norm, rwkv::LoadNorm(reader, prefix + "ln_x", C));
  return layer;
}

}  // namespace

absl::StatusOr<Weights> LoadHf(const Checkpoint& checkpoint, Memory& memory) {
  Weights weights;
  weights.model.store = WeightStore(memory);
  WeightReader reader(checkpoint, "rwkv6", weights.model.store);
  rwkv::Config& config = weights.model.config;
  MNEME_ASSIGN_OR_RETURN(config, rwkv::ParseHfConfig(checkpoint, "rwkv6", reader));
  const std::string heads = rwkv::HfAttention(0) + "time_faaaa";
  MNEME_RETURN_IF_ERROR(rwkv::SetHeads(reader, heads, &config));
  MNEME_RETURN_IF_ERROR(rwkv::FinishHfHeads(checkpoint, heads, &config));
  MNEME_ASSIGN_OR_RETURN(const rwkv::FactorLayout factors, GetFactorLayout(checkpoint));
  MNEME_RETURN_IF_ERROR(rwkv::LoadHfTensors(
      reader, rwkv::HfShares::kTimeMaa,
      [&](int64_t i) { return LoadTimeMix(reader, i, config, factors); }, &weights.model,
      &weights.time_mix));
  MNEME_ASSIGN_OR_RETURN(const int64_t every, checkpoint.GetInt(rwkv::kRescaledEveryKey, 0));
  for (int64_t i = 0; every > 0 && i < config.num_layers; ++i) {
    if (i / every > kMaxOutputScaleBits) {
      return absl::InvalidArgumentError(
          absl::StrCat(checkpoint.path(), ": the outputs of layer ", i, " are divided by 2^",
                       i / every, ", at most 2^", kMaxOutputScaleBits, " is supported"));
    }
    weights.model.blocks[i].output_scale = std::ldexp(1.0f, static_cast<int>(i / every));
  }
  return weights;
}

}  // namespace mneme::engine::rwkv6
