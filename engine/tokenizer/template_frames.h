// Whether a template's outline is the way of writing of a known family, and which details it has.
//
// All of these are UNIMPLEMENTED with the first thing that is otherwise.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/tokenizer/template_outline.h"

namespace mneme::engine {

// A family's way of writing a message: open ROLE middle TEXT close.
struct Frame {
  std::string_view family;  // its name for people
  std::string_view open, middle, close;
};

// What a template of such frames decides.
struct FrameStyle {
  bool begins_with_bos = false;
  bool trims = false;                         // contents
  std::optional<std::string> default_system;  // inserted where a conversation starts without one
};

// Checks that the program writes such frames for every role and nothing else, and that it can end
// where the assistant is to speak. `bos` is the spelling of BOS, "" if there is none.
absl::StatusOr<FrameStyle> ReadFrames(TemplateOutline outline, const Frame& frame,
                                      std::string_view bos);

// Checks that the program writes each of `texts` and nothing else, in any order; of two that begin
// alike the first wins. An entry lists texts that are equally good.
absl::Status CheckTexts(const TemplateOutline& outline, std::string_view family,
                        const std::vector<std::vector<std::string>>& texts);

// Takes BOS off the beginnings of what is written, and says whether there was one.
absl::StatusOr<bool> RemoveBos(std::string_view family, std::string_view bos,
                               TemplateOutline* outline);

}  // namespace mneme::engine
