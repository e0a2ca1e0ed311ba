#include "engine/tokenizer/template_frames.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/tokenizer/template_expression.h"

namespace mneme::engine {
namespace {

constexpr std::string_view kAnyRole(&kRoleMark, 1);

bool Consume(std::string_view prefix, std::string_view* text) {
  if (!text->starts_with(prefix)) return false;
  text->remove_prefix(prefix.size());
  return true;
}

absl::Status NotOfFamily(std::string_view family, std::string_view text) {
  return absl::UnimplementedError(absl::StrCat("it looks like ", std::string(family),
                                               "'s, but writes \"", ShowOutlineText(text),
                                               "\", which is no part of that"));
}

absl::Status Lacks(std::string_view family, std::string_view what) {
  return absl::UnimplementedError(
      absl::StrCat("it looks like ", std::string(family), "'s, but ", std::string(what)));
}

}  // namespace

absl::StatusOr<bool> RemoveBos(std::string_view family, std::string_view bos,
                               TemplateOutline* outline) {
  bool found = false;
  if (bos.empty()) return found;
  for (TemplateOutline::Write& write : outline->writes) {
    size_t with_bos = 0;
    for (std::string& text : write.alternatives) {
      if (!text.starts_with(bos)) continue;
      text.erase(0, bos.size());
      ++with_bos;
    }
    found |= with_bos > 0;
    if (with_bos == write.alternatives.size() && write.is_in_message_loop &&
        !write.is_conditional) {
      return Lacks(family, "begins every message with BOS");
    }
  }
  return found;
}

absl::StatusOr<FrameStyle> ReadFrames(TemplateOutline outline, const Frame& frame,
                                      std::string_view bos) {
  FrameStyle style;
  if (bos != frame.open) {  // SmolLM2 has one token for both
    MNEME_ASSIGN_OR_RETURN(style.begins_with_bos, RemoveBos(frame.family, bos, &outline));
  }
  std::string all;
  std::string is_certain;  // by byte of `all`: written whatever the conversation is
  for (const TemplateOutline::Write& write : outline.writes) {
    for (const std::string& text : write.alternatives) all += text;
    is_certain.resize(all.size(), !write.is_conditional && write.alternatives.size() == 1);
  }
  constexpr std::string_view kRoles[] = {"system", "user", "assistant", kAnyRole};
  std::set<std::string_view> roles;
  std::set<bool> trims;
  bool speaks = false;
  std::string_view rest = all;
  while (!rest.empty()) {
    const std::string_view here = rest;
    std::string_view role;
    bool ok = Consume(frame.open, &rest);
    for (std::string_view name : kRoles) {
      if (ok && role.empty() && Consume(name, &rest)) role = name;
    }
    ok = ok && !role.empty() && Consume(frame.middle, &rest);
    if (ok && role == "assistant" && (rest.empty() || rest.starts_with(frame.open))) {
      speaks = true;
      continue;
    }
    const size_t end = rest.find(frame.close);
    if (!ok || end == rest.npos) return NotOfFamily(frame.family, ok ? rest : here);
    const std::string_view text = rest.substr(0, end);
    if (text == kContent || text == kTrimmedContent) {
      trims.insert(text == kTrimmedContent);
      roles.insert(role);
    } else if (role == "system" && !text.empty() &&
               std::ranges::none_of(text, [](char c) { return c >= 0 && c <= kTrimClose; })) {
      if (is_certain[rest.data() - all.data()] != 0) {
        return Lacks(frame.family, "has a system message of its own in every conversation");
      }
      if (style.default_system.value_or(std::string(text)) != text) {
        return Lacks(frame.family, "has more than one system message of its own");
      }
      style.default_system = std::string(text);
    } else {
      return NotOfFamily(frame.family, rest);
    }
    rest.remove_prefix(end + frame.close.size());
  }
  if (!speaks) return Lacks(frame.family, "does not end where the assistant is to speak");
  if (trims.size() > 1) return Lacks(frame.family, "strips white space from some messages only");
  for (std::string_view name : {"system", "user", "assistant"}) {
    const bool has = roles.contains(name) ||
                     (roles.contains(kAnyRole) && !(outline.skips_messages && name == "system"));
    if (!has) {
      return Lacks(frame.family,
                   absl::StrCat("has no frame for messages of the role ", std::string(name)));
    }
  }
  style.trims = trims.contains(true);
  return style;
}

absl::Status CheckTexts(const TemplateOutline& outline, std::string_view family,
                        const std::vector<std::vector<std::string>>& texts) {
  std::string all;
  for (const TemplateOutline::Write& write : outline.writes) {
    for (const std::string& text : write.alternatives) all += text;
  }
  std::vector<bool> found(texts.size());
  for (std::string_view rest = all; !rest.empty();) {
    const size_t size = rest.size();
    for (size_t i = 0; i < texts.size() && rest.size() == size; ++i) {
      for (const std::string& text : texts[i]) {
        if (rest.size() < size || !Consume(text, &rest)) continue;
        found[i] = true;
      }
    }
    if (rest.size() == size) return NotOfFamily(family, rest);
  }
  for (size_t i = 0; i < texts.size(); ++i) {
    if (!found[i]) {
      return Lacks(family, absl::StrCat("does not write \"", ShowOutlineText(texts[i][0]), "\""));
    }
  }
  return absl::OkStatus();
}

}  // namespace mneme::engine
