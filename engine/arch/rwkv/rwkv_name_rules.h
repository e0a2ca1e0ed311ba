// How a file format's tensors of RWKV are called in the Hugging Face layouts: tables, applied to
// each layer.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "engine/arch/translated_checkpoint.h"

namespace mneme::engine::rwkv {

enum class Form {
  kSame,    // the shape as it is
  kVector,  // all elements in one dimension: writers differ in how many ones surround it
  kHeads,   // [H, C / H]
  kSix,     // [6, C]
};

// A name; "ln" with `ends` true stands for "ln.weight" and "ln.bias" alike.
struct NameRule {
  const char* from;
  const char* to;
  Form form = Form::kSame;
  bool ends = false;
};

struct Sizes {
  int64_t width = 0;  // C
  int64_t heads = 0;  // H, where a rule needs it
};

// Adds every tensor of `rules`, both names behind their prefix.
absl::Status ApplyRules(std::span<const NameRule> rules, const std::string& from_prefix,
                        const std::string& to_prefix, const Sizes& sizes,
                        TranslatedCheckpoint* out);

}  // namespace mneme::engine::rwkv
