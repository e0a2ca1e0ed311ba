// The table of architectures, expanded from arch_list.inc. A constant table, not static
// initialisers: a linker drops those from static libraries.
#include <array>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/arch/arch.h"
#include "engine/arch/rwkv/rwkv_formats.h"
#include "engine/arch/translated_checkpoint.h"
#include "engine/core/status_macros.h"

namespace mneme::engine {

#define ENGINE_ARCH(name)                                                                    \
  namespace name {                                                                           \
  absl::StatusOr<std::unique_ptr<Arch>> Create(std::shared_ptr<const Checkpoint> checkpoint, \
                                               const ArchOptions& options);                  \
  bool Matches(const Checkpoint& checkpoint);                                                \
  }
#include "engine/arch/arch_list.inc"
#undef ENGINE_ARCH

namespace {

constexpr ArchEntry kArchs[] = {
#define ENGINE_ARCH(name) {#name, &name::Create, &name::Matches},
#include "engine/arch/arch_list.inc"
#undef ENGINE_ARCH
};

// What the checkpoint calls itself, for the message that refuses it.
std::string OwnName(const Checkpoint& checkpoint) {
  const bool gguf = checkpoint.format() == Checkpoint::Format::kGguf;
  const std::string_view key = gguf ? "general.architecture" : "architectures";
  auto it = checkpoint.metadata().find(key);
  if (it != checkpoint.metadata().end()) {
    if (const auto* name = std::get_if<std::string>(&it->second)) return *name;
    const auto* names = std::get_if<std::vector<std::string>>(&it->second);
    if (names != nullptr && !names->empty()) return names->front();
  }
  // Our own formats have no "architectures".
  it = checkpoint.metadata().find("model_type");
  if (!gguf && it != checkpoint.metadata().end()) {
    if (const auto* name = std::get_if<std::string>(&it->second)) return *name;
  }
  return absl::StrCat("unknown (no key '", absl::string_view(key.data(), key.size()), "')");
}

}  // namespace

std::span<const ArchEntry> AllArchs() { return kArchs; }

absl::StatusOr<std::unique_ptr<Arch>> CreateArch(std::shared_ptr<const Checkpoint> checkpoint,
                                                 const ArchOptions& options) {
  MNEME_ASSIGN_OR_RETURN(checkpoint, rwkv::InHfLayout(std::move(checkpoint)));
  for (const ArchEntry& entry : kArchs) {
    if (!entry.matches(*checkpoint)) continue;
    auto arch = entry.create(checkpoint, options);
    const auto* translated = dynamic_cast<const TranslatedCheckpoint*>(checkpoint.get());
    if (arch.ok() || translated == nullptr) return arch;
    return translated->WithSourceNames(arch.status());
  }
  return absl::UnimplementedError(absl::StrCat(checkpoint->path(), ": architecture '",
                                               OwnName(*checkpoint), "' is not supported"));
}

}  // namespace mneme::engine
