// RWKV-6 and 7 in GGUF as llama.cpp's converter writes them.
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/arch/config_reader.h"
#include "engine/arch/rwkv/rwkv_formats.h"
#include "engine/arch/rwkv/rwkv_hf_layout.h"
#include "engine/arch/rwkv/rwkv_name_rules.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::rwkv {
namespace {

constexpr NameRule kEnds7[] = {
    {"token_embd.weight", "model.embeddings.weight"},
    {"output.weight", "lm_head.weight"},
    {"token_embd_norm", "model.layers.0.pre_norm", Form::kVector, true},
    {"output_norm", "model.norm", Form::kVector, true},
};

constexpr NameRule kLayer7[] = {
    {"attn_norm", "attn_norm", Form::kVector, true},
    {"attn_norm_2", "ffn_norm", Form::kVector, true},
    {"time_mix_ln", "attn.g_norm", Form::kVector, true},
    {"time_mix_lerp_fused.weight", "attn.x_x", Form::kSix},
    {"time_mix_receptance.weight", "attn.r_proj.weight"},
    {"time_mix_key.weight", "attn.k_proj.weight"},
    {"time_mix_value.weight", "attn.v_proj.weight"},
    {"time_mix_output.weight", "attn.o_proj.weight"},
    {"time_mix_w0.weight", "attn.w_lora.lora.2.bias", Form::kVector},
    {"time_mix_w1.weight", "attn.w_lora.lora.0.weight"},
    {"time_mix_w2.weight", "attn.w_lora.lora.2.weight"},
    {"time_mix_a0.weight", "attn.a_lora.lora.2.bias", Form::kVector},
    {"time_mix_a1.weight", "attn.a_lora.lora.0.weight"},
    {"time_mix_a2.weight", "attn.a_lora.lora.2.weight"},
    {"time_mix_g1.weight", "attn.g_lora.lora.0.weight"},
    {"time_mix_g2.weight", "attn.g_lora.lora.2.weight"},
    {"time_mix_k_k.weight", "attn.k_k", Form::kVector},
    {"time_mix_k_a.weight", "attn.k_a", Form::kVector},
    {"time_mix_r_k.weight", "attn.r_k", Form::kHeads},
    {"channel_mix_lerp_k.weight", "ffn.x_k", Form::kVector},
    {"channel_mix_key.weight", "ffn.key.weight"},
    {"channel_mix_value.weight", "ffn.value.weight"},
};

// Layer 0 has none; converters put copies of other tensors there.
constexpr NameRule kValueMix7[] = {
    {"time_mix_v0.weight", "attn.v_lora.lora.2.bias", Form::kVector},
    {"time_mix_v1.weight", "attn.v_lora.lora.0.weight"},
    {"time_mix_v2.weight", "attn.v_lora.lora.2.weight"},
};

constexpr NameRule kEnds6[] = {
    {"token_embd.weight", "rwkv.embeddings.weight"},
    {"output.weight", "head.weight"},
    {"token_embd_norm", "rwkv.blocks.0.pre_ln", Form::kVector, true},
    {"output_norm", "rwkv.ln_out", Form::kVector, true},
};

constexpr NameRule kLayer6[] = {
    {"attn_norm", "ln1", Form::kVector, true},
    {"attn_norm_2", "ln2", Form::kVector, true},
    {"time_mix_ln", "attention.ln_x", Form::kVector, true},
    {"time_mix_lerp_x.weight", "attention.time_maa_x", Form::kVector},
    {"time_mix_w1.weight", "attention.time_maa_w1"},
    {"time_mix_w2.weight", "attention.time_maa_w2"},
    {"time_mix_first.weight", "attention.time_faaaa", Form::kHeads},
    {"time_mix_decay.weight", "attention.time_decay", Form::kVector},
    {"time_mix_decay_w1.weight", "attention.time_decay_w1"},
    {"time_mix_decay_w2.weight", "attention.time_decay_w2"},
    {"time_mix_receptance.weight", "attention.receptance.weight"},
    {"time_mix_key.weight", "attention.key.weight"},
    {"time_mix_value.weight", "attention.value.weight"},
    {"time_mix_gate.weight", "attention.gate.weight"},
    {"time_mix_output.weight", "attention.output.weight"},
    {"channel_mix_lerp_k.weight", "feed_forward.time_maa_k", Form::kVector},
    {"channel_mix_lerp_r.weight", "feed_forward.time_maa_r", Form::kVector},
    {"channel_mix_key.weight", "feed_forward.key.weight"},
    {"channel_mix_value.weight", "feed_forward.value.weight"},
    {"channel_mix_receptance.weight", "feed_forward.receptance.weight"},
};

std::string_view Architecture(const Checkpoint& checkpoint) {
  const auto it = checkpoint.metadata().find("general.architecture");
  if (it == checkpoint.metadata().end()) return {};
  const auto* name = std::get_if<std::string>(&it->second);
  return name == nullptr ? std::string_view() : *name;
}

// The five shares of version 6: one tensor, or (older files) one for each.
absl::Status AddShares6(const std::string& from, const std::string& to, int64_t C,
                        TranslatedCheckpoint* out) {
  constexpr const char* kNames[] = {"w", "k", "v", "r", "g"};
  std::vector<std::string> names;
  bool has_own = false;
  for (const char* name : kNames) {
    names.push_back(to + "attention.time_maa_" + name);
    has_own |= out->SourceHas(absl::StrCat(from, "time_mix_lerp_", name, ".weight"));
  }
  const std::string fused = from + "time_mix_lerp_fused.weight";
  if (!has_own) return out->AddParts(fused, names, {C});
  for (size_t i = 0; i < names.size(); ++i) {
    MNEME_RETURN_IF_ERROR(out->AddReshaped(
        absl::StrCat(from, "time_mix_lerp_", kNames[i], ".weight"), names[i], {C}));
  }
  return absl::OkStatus();
}

}  // namespace

bool IsRwkvGguf(const Checkpoint& checkpoint) {
  if (checkpoint.format() != Checkpoint::Format::kGguf) return false;
  const std::string_view name = Architecture(checkpoint);
  return name == "rwkv6" || name == "rwkv7";
}

absl::StatusOr<std::shared_ptr<const Checkpoint>> FromGguf(
    std::shared_ptr<const Checkpoint> checkpoint) {
  const Checkpoint& source = *checkpoint;
  const std::string name(Architecture(source));
  const bool is_7 = name == "rwkv7";
  auto out = std::make_shared<TranslatedCheckpoint>(checkpoint);
  MNEME_ASSIGN_OR_RETURN(const int64_t layers, GetCount(source, name + ".block_count", kMaxLayers));
  MNEME_ASSIGN_OR_RETURN(const int64_t C, GetCount(source, name + ".embedding_length", kMaxWidth));
  MNEME_ASSIGN_OR_RETURN(const int64_t F,
                         GetCount(source, name + ".feed_forward_length", kMaxWidth));
  MNEME_ASSIGN_OR_RETURN(const int64_t N, GetCount(source, name + ".wkv.head_size", C));
  MNEME_ASSIGN_OR_RETURN(const double eps, source.GetFloat(name + ".attention.layer_norm_epsilon"));
  MNEME_ASSIGN_OR_RETURN(const int64_t shifts, source.GetInt(name + ".token_shift_count", 2));
  if (shifts != 2) {
    return absl::UnimplementedError(absl::StrCat(source.path(), ": key '", name,
                                                 ".token_shift_count' is ", shifts,
                                                 ", only 2 is supported"));
  }
  if (C % N != 0) {
    return absl::InvalidArgumentError(absl::StrCat(source.path(), ": key '", name,
                                                   ".wkv.head_size' is ", N,
                                                   ", which does not divide the width ", C));
  }
  MNEME_ASSIGN_OR_RETURN(const Tensor* embedding, out->SourceTensor("token_embd.weight"));
  out->SetKey("model_type", name);
  out->SetKey("num_hidden_layers", layers);
  out->SetKey("hidden_size", C);
  out->SetKey("intermediate_size", F);
  out->SetKey("vocab_size", embedding->shape.front());
  out->SetKey(is_7 ? "head_dim" : "head_size", N);
  out->SetKey(is_7 ? "norm_eps" : "layer_norm_epsilon", eps);
  if (!is_7) {
    out->SetKey(kFactorLayoutKey, std::string("out_in"));
    MNEME_ASSIGN_OR_RETURN(const int64_t every, source.GetInt(name + ".rescale_every_n_layers", 0));
    if (every < 0 || every > kMaxLayers) {
      return absl::InvalidArgumentError(absl::StrCat(source.path(), ": key '", name,
                                                     ".rescale_every_n_layers' is ", every,
                                                     ", expected 0 to ", kMaxLayers));
    }
    out->SetKey(kRescaledEveryKey, every);
  }

  const Sizes sizes = {.width = C, .heads = C / N};
  for (int64_t i = 0; i < layers; ++i) {
    const std::string from = absl::StrCat("blk.", i, ".");
    if (is_7) {
      const std::string to = absl::StrCat("model.layers.", i, ".");
      MNEME_RETURN_IF_ERROR(ApplyRules(kLayer7, from, to, sizes, out.get()));
      if (i > 0) {
        MNEME_RETURN_IF_ERROR(ApplyRules(kValueMix7, from, to, sizes, out.get()));
      } else {
        for (const NameRule& rule : kValueMix7) out->Ignore(from + rule.from);
      }
    } else {
      const std::string to = absl::StrCat("rwkv.blocks.", i, ".");
      MNEME_RETURN_IF_ERROR(ApplyRules(kLayer6, from, to, sizes, out.get()));
      MNEME_RETURN_IF_ERROR(AddShares6(from, to, C, out.get()));
    }
  }
  if (is_7) {
    MNEME_RETURN_IF_ERROR(ApplyRules(kEnds7, "", "", sizes, out.get()));
  } else {
    MNEME_RETURN_IF_ERROR(ApplyRules(kEnds6, "", "", sizes, out.get()));
  }
  MNEME_RETURN_IF_ERROR(out->RefuseUnused(name));
  return out;
}

}  // namespace mneme::engine::rwkv
