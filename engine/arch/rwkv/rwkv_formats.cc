#include "engine/arch/rwkv/rwkv_formats.h"

#include <utility>
#include <vector>

#include "engine/arch/rwkv/rwkv_name_rules.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::rwkv {

absl::Status ApplyRules(std::span<const NameRule> rules, const std::string& from_prefix,
                        const std::string& to_prefix, const Sizes& sizes,
                        TranslatedCheckpoint* out) {
  for (const NameRule& rule : rules) {
    for (const char* end : {".weight", ".bias"}) {
      if (!rule.ends && end[1] == 'b') continue;
      const std::string suffix = rule.ends ? end : "";
      const std::string from = from_prefix + rule.from + suffix;
      const std::string to = to_prefix + rule.to + suffix;
      MNEME_ASSIGN_OR_RETURN(const Tensor* tensor, out->SourceTensor(from));
      std::vector<int64_t> shape = tensor->shape;
      switch (rule.form) {
        case Form::kSame:
          break;
        case Form::kVector: {
          int64_t n = 1;
          for (const int64_t dimension : shape) n *= dimension;
          shape = {n};
          break;
        }
        case Form::kHeads:
          shape = {sizes.heads, sizes.width / sizes.heads};
          break;
        case Form::kSix:
          shape = {6, sizes.width};
          break;
      }
      MNEME_RETURN_IF_ERROR(out->AddReshaped(from, to, std::move(shape)));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const Checkpoint>> InHfLayout(
    std::shared_ptr<const Checkpoint> checkpoint) {
  if (checkpoint->format() == Checkpoint::Format::kRwkvCpp) {
    return FromRwkvCpp(std::move(checkpoint));
  }
  if (IsRwkvGguf(*checkpoint)) return FromGguf(std::move(checkpoint));
  return checkpoint;
}

}  // namespace mneme::engine::rwkv
