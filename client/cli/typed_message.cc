#include "client/cli/typed_message.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"

namespace mneme::cli {
namespace {

constexpr absl::string_view kBlock = "\"\"\"";

}  // namespace

void TypedMessageReader::Clear() {
  in_block_ = false;
  joined_.clear();
}

std::optional<TypedMessage> TypedMessageReader::Add(const std::string& line) {
  if (in_block_) return AddToBlock(line);
  if (joined_.empty() && absl::StartsWith(line, kBlock)) {
    in_block_ = true;
    const std::string rest = line.substr(kBlock.size());
    return rest.empty() ? std::nullopt : AddToBlock(rest);
  }
  const bool pasted = absl::StrContains(line, '\n');
  if (!pasted && absl::EndsWith(line, "\\")) {
    joined_ += line.substr(0, line.size() - 1) + "\n";
    return std::nullopt;
  }
  const bool slash = joined_.empty() && !pasted && absl::StartsWith(line, "/");
  if (slash && absl::StartsWith(line, "//")) return TypedMessage{.text = line.substr(1)};
  return TypedMessage{.text = std::exchange(joined_, "") + line, .command = slash};
}

std::optional<TypedMessage> TypedMessageReader::AddToBlock(const std::string& line) {
  absl::string_view text = line;
  if (!absl::ConsumeSuffix(&text, kBlock)) {
    joined_ += line + "\n";
    return std::nullopt;
  }
  joined_ += std::string(text);
  in_block_ = false;
  std::string whole = std::exchange(joined_, "");
  // The newline before the closing mark belongs to the mark.
  return TypedMessage{.text = std::string(absl::StripSuffix(whole, "\n"))};
}

}  // namespace mneme::cli
