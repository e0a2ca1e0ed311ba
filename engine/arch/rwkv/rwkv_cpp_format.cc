// RWKV-4 to 7 as rwkv.cpp's converter writes them: the names of the original checkpoints, decays
// and bonuses of versions 4 and 5 already exponentiated, low-rank factors transposed.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/arch/config_reader.h"
#include "engine/arch/rwkv/rwkv_formats.h"
#include "engine/arch/rwkv/rwkv_hf_layout.h"
#include "engine/arch/rwkv/rwkv_name_rules.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::rwkv {
namespace {

constexpr NameRule kEnds7[] = {
    {"emb.weight", "model.embeddings.weight"},
    {"head.weight", "lm_head.weight"},
    {"blocks.0.ln0", "model.layers.0.pre_norm", Form::kVector, true},
    {"ln_out", "model.norm", Form::kVector, true},
};

constexpr NameRule kLayer7[] = {
    {"ln1", "attn_norm", Form::kVector, true},
    {"ln2", "ffn_norm", Form::kVector, true},
    {"att.ln_x", "attn.g_norm", Form::kVector, true},
    {"att.x_rwkvag", "attn.x_x", Form::kSix},
    {"att.receptance.weight", "attn.r_proj.weight"},
    {"att.key.weight", "attn.k_proj.weight"},
    {"att.value.weight", "attn.v_proj.weight"},
    {"att.output.weight", "attn.o_proj.weight"},
    {"att.w0", "attn.w_lora.lora.2.bias", Form::kVector},
    {"att.w1", "attn.w_lora.lora.0.weight"},
    {"att.w2", "attn.w_lora.lora.2.weight"},
    {"att.a0", "attn.a_lora.lora.2.bias", Form::kVector},
    {"att.a1", "attn.a_lora.lora.0.weight"},
    {"att.a2", "attn.a_lora.lora.2.weight"},
    {"att.g1", "attn.g_lora.lora.0.weight"},
    {"att.g2", "attn.g_lora.lora.2.weight"},
    {"att.k_k", "attn.k_k", Form::kVector},
    {"att.k_a", "attn.k_a", Form::kVector},
    {"att.r_k", "attn.r_k"},
    {"ffn.x_k", "ffn.x_k", Form::kVector},
    {"ffn.key.weight", "ffn.key.weight"},
    {"ffn.value.weight", "ffn.value.weight"},
};

// Of the layers above 0.
constexpr NameRule kValueMix7[] = {
    {"att.v0", "attn.v_lora.lora.2.bias", Form::kVector},
    {"att.v1", "attn.v_lora.lora.0.weight"},
    {"att.v2", "attn.v_lora.lora.2.weight"},
};

constexpr NameRule kEnds[] = {
    {"emb.weight", "rwkv.embeddings.weight"},
    {"head.weight", "head.weight"},
    {"blocks.0.ln0", "rwkv.blocks.0.pre_ln", Form::kVector, true},
    {"ln_out", "rwkv.ln_out", Form::kVector, true},
};

constexpr NameRule kLayer[] = {
    {"ln1", "ln1", Form::kVector, true},
    {"ln2", "ln2", Form::kVector, true},
    {"att.receptance.weight", "attention.receptance.weight"},
    {"att.key.weight", "attention.key.weight"},
    {"att.value.weight", "attention.value.weight"},
    {"att.output.weight", "attention.output.weight"},
    {"ffn.key.weight", "feed_forward.key.weight"},
    {"ffn.value.weight", "feed_forward.value.weight"},
    {"ffn.receptance.weight", "feed_forward.receptance.weight"},
};

// Versions 4 and 5.
constexpr NameRule kShares[] = {
    {"att.time_mix_k", "attention.time_mix_key", Form::kVector},
    {"att.time_mix_v", "attention.time_mix_value", Form::kVector},
    {"att.time_mix_r", "attention.time_mix_receptance", Form::kVector},
    {"ffn.time_mix_k", "feed_forward.time_mix_key", Form::kVector},
    {"ffn.time_mix_r", "feed_forward.time_mix_receptance", Form::kVector},
};

// From version 5.
constexpr NameRule kGroupNorm[] = {{"att.ln_x", "attention.ln_x", Form::kVector, true}};

constexpr NameRule kGate5[] = {
    {"att.gate.weight", "attention.gate.weight"},
    {"att.time_mix_g", "attention.time_mix_gate", Form::kVector},
};

constexpr NameRule kLayer6[] = {
    {"att.gate.weight", "attention.gate.weight"},
    {"att.time_maa_x", "attention.time_maa_x", Form::kVector},
    {"att.time_maa_w", "attention.time_maa_w", Form::kVector},
    {"att.time_maa_k", "attention.time_maa_k", Form::kVector},
    {"att.time_maa_v", "attention.time_maa_v", Form::kVector},
    {"att.time_maa_r", "attention.time_maa_r", Form::kVector},
    {"att.time_maa_g", "attention.time_maa_g", Form::kVector},
    {"att.time_maa_w1", "attention.time_maa_w1"},
    {"att.time_maa_w2", "attention.time_maa_w2"},
    {"att.time_decay", "attention.time_decay", Form::kVector},
    {"att.time_decay_w1", "attention.time_decay_w1"},
    {"att.time_decay_w2", "attention.time_decay_w2"},
    {"att.time_faaaa", "attention.time_faaaa", Form::kHeads},
    {"ffn.time_maa_k", "feed_forward.time_maa_k", Form::kVector},
    {"ffn.time_maa_r", "feed_forward.time_maa_r", Form::kVector},
};

// Tensors of the published extensions, which the plain equations would ignore silently. Other
// unknown tensors are passed over, as rwkv.cpp does.
absl::Status RefuseExtensions(const Checkpoint& source) {
  for (const auto& [name, tensor] : source.tensors()) {
    for (const char* part : {".ffn.s_emb", ".ffn.s0", ".ffn.s1", ".ffn.s2", "qkv."}) {
      if (!absl::StrContains(name, part)) continue;
      return absl::UnimplementedError(
          absl::StrCat(source.path(), ": tensor \"", name, "\" belongs to RWKV-7",
                       part[0] == 'q' ? "b" : "a (DeepEmbed)", ", which is not supported"));
    }
  }
  return absl::OkStatus();
}

// Undoes a function of the converter on every element. `inverse` gives NaN for a value that no
// original has.
template <typename Inverse>
absl::Status AddInverse(const std::string& from, const std::string& to, std::vector<int64_t> shape,
                        TranslatedCheckpoint* out, const char* expected, Inverse inverse) {
  MNEME_ASSIGN_OR_RETURN(std::vector<float> values, out->Floats(from));
  int64_t n = 1;
  for (const int64_t dimension : shape) n *= dimension;
  if (n != static_cast<int64_t>(values.size())) {
    return absl::InvalidArgumentError(absl::StrCat(out->path(), ": tensor \"", from, "\" has ",
                                                   values.size(), " elements, expected ", n));
  }
  for (float& value : values) {
    const double original = inverse(static_cast<double>(value));
    if (std::isnan(original)) {
      return absl::InvalidArgumentError(absl::StrCat(
          out->path(), ": tensor \"", from, "\" has the value ", value, ", expected ", expected));
    }
    value = static_cast<float>(original);
  }
  out->AddValues(from, to, std::move(shape), std::move(values));
  return absl::OkStatus();
}

// log(x), kept finite: exp() of the result is 0 in f32 where x is.
double BoundedLog(double x) { return x < 0 ? std::nan("") : std::log(std::max(x, 1e-45)); }

// The w of x = exp(-exp(w)). Beyond the bounds every w gives 1 or 0 in f32.
double RawDecay(double x) {
  if (!(x >= 0 && x <= 1)) return std::nan("");
  return std::clamp(std::log(-std::log(x)), -30.0, 10.0);
}

// The decay (and in 5.1 the bonus) of a layer of version 4 or 5.
absl::Status AddDecay(const std::string& from, const std::string& to, int version, bool per_channel,
                      const Sizes& sizes, TranslatedCheckpoint* out) {
  const std::string decay = from + "att.time_decay", decay_to = to + "attention.time_decay";
  const int64_t C = sizes.width, H = sizes.heads;
  if (version == 4) {
    MNEME_RETURN_IF_ERROR(AddInverse(decay, decay_to, {C}, out, "0 or less",
                                     [](double x) { return BoundedLog(-x); }));
    return out->AddReshaped(from + "att.time_first", to + "attention.time_first", {C});
  }
  if (per_channel) {
    MNEME_RETURN_IF_ERROR(AddInverse(decay, decay_to, {H, C / H}, out, "0 to 1", RawDecay));
    return out->AddReshaped(from + "att.time_faaaa", to + "attention.time_faaaa", {H, C / H});
  }
  MNEME_RETURN_IF_ERROR(AddInverse(decay, decay_to, {H}, out, "0 to 1", RawDecay));
  return AddInverse(from + "att.time_first", to + "attention.time_first", {H}, out, "0 or more",
                    BoundedLog);
}

// The number of heads of versions 5 and 6: the first of three dimensions (a converter drops it
// where there is one head only).
absl::StatusOr<int64_t> CountHeads(const TranslatedCheckpoint& out, int64_t C) {
  const std::string name = "blocks.0.att.time_decay";
  MNEME_ASSIGN_OR_RETURN(const Tensor* decay, out.SourceTensor(name));
  const int64_t heads = decay->shape.size() == 3 ? decay->shape[0] : 1;
  if (heads <= C && C % heads == 0) return heads;
  return absl::InvalidArgumentError(absl::StrCat(out.path(), ": tensor \"", name, "\" has ", heads,
                                                 " heads, which do not divide the width ", C));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Checkpoint>> FromRwkvCpp(
    std::shared_ptr<const Checkpoint> checkpoint) {
  const Checkpoint& source = *checkpoint;
  MNEME_RETURN_IF_ERROR(RefuseExtensions(source));
  auto out = std::make_shared<TranslatedCheckpoint>(checkpoint);
  // The last that matches, as rwkv.cpp has it.
  int version = 4;
  if (out->SourceHas("blocks.0.att.ln_x.weight")) version = 5;
  if (out->SourceHas("blocks.0.att.time_maa_x")) version = 6;
  if (out->SourceHas("blocks.0.att.r_k")) version = 7;
  const bool per_channel = out->SourceHas("blocks.0.att.time_faaaa");  // 5.2, not 5.1

  MNEME_ASSIGN_OR_RETURN(const int64_t C, source.GetInt("hidden_size"));
  MNEME_ASSIGN_OR_RETURN(const int64_t V, source.GetInt("vocab_size"));
  MNEME_ASSIGN_OR_RETURN(const int64_t layers, source.GetInt("num_hidden_layers"));
  if (layers > kMaxLayers) {
    return absl::InvalidArgumentError(
        absl::StrCat(source.path(), ": ", layers, " layers, expected 1 to ", kMaxLayers));
  }
  const char* const types[] = {"rwkv", "rwkv5", "rwkv6", "rwkv7"};
  out->SetKey("model_type", std::string(types[version - 4]));
  out->SetKey("hidden_size", C);
  out->SetKey("vocab_size", V);
  out->SetKey("num_hidden_layers", layers);
  const char* const eps = version == 7 ? "norm_eps" : "layer_norm_epsilon";
  MNEME_ASSIGN_OR_RETURN(const double norm_eps, source.GetFloat(eps, 1e-5));
  out->SetKey(eps, norm_eps);

  Sizes sizes = {.width = C};
  if (version == 5 || version == 6) {
    MNEME_ASSIGN_OR_RETURN(sizes.heads, CountHeads(*out, C));
    // rwkv.cpp normalises version 5 without the division that training had.
    MNEME_ASSIGN_OR_RETURN(const double divisor,
                           source.GetFloat("head_size_divisor", version == 5 ? 1 : 8));
    out->SetKey("head_size_divisor", divisor);
    out->SetKey(kFactorLayoutKey, std::string("out_in"));
  }
  if (version == 7) {
    MNEME_ASSIGN_OR_RETURN(const Tensor* key, out->SourceTensor("blocks.0.ffn.key.weight"));
    out->SetKey("intermediate_size", key->shape.front());
  }
  for (int64_t i = 0; i < layers; ++i) {
    const std::string from = absl::StrCat("blocks.", i, ".");
    const auto apply = [&](std::span<const NameRule> rules, const std::string& to) {
      return ApplyRules(rules, from, to, sizes, out.get());
    };
    if (version == 7) {
      const std::string to = absl::StrCat("model.layers.", i, ".");
      MNEME_RETURN_IF_ERROR(apply(kLayer7, to));
      if (i > 0) MNEME_RETURN_IF_ERROR(apply(kValueMix7, to));
      continue;
    }
    const std::string to = absl::StrCat("rwkv.blocks.", i, ".");
    MNEME_RETURN_IF_ERROR(apply(kLayer, to));
    if (version >= 5) MNEME_RETURN_IF_ERROR(apply(kGroupNorm, to));
    if (version == 6) {
      MNEME_RETURN_IF_ERROR(apply(kLayer6, to));
      continue;
    }
    MNEME_RETURN_IF_ERROR(apply(kShares, to));
    if (version == 5 && (per_channel || out->SourceHas("blocks.0.att.gate.weight"))) {
      MNEME_RETURN_IF_ERROR(apply(kGate5, to));
    }
    MNEME_RETURN_IF_ERROR(AddDecay(from, to, version, per_channel, sizes, out.get()));
  }
  if (version == 7) {
    MNEME_RETURN_IF_ERROR(ApplyRules(kEnds7, "", "", sizes, out.get()));
  } else {
    MNEME_RETURN_IF_ERROR(ApplyRules(kEnds, "", "", sizes, out.get()));
  }
  return out;
}

}  // namespace mneme::engine::rwkv
