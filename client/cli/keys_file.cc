#include "client/cli/keys_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace mneme::cli {
namespace {

namespace fs = std::filesystem;

absl::Status Failed(const std::string& file, const char* what) {
  return absl::InternalError(absl::StrCat(file, " cannot be ", what, ": ", std::strerror(errno)));
}

absl::Status CannotEdit(const std::string& file) {
  return absl::FailedPreconditionError(absl::StrCat(
      file, " is not written as one entry below the other; edit it by hand (docs/security.md)"));
}

// The text of a field, "" if it is absent or something else.
std::string TextOf(const YAML::Node& entry, const char* field) {
  const YAML::Node value = entry.IsMap() ? entry[field] : YAML::Node();
  return value && value.IsScalar() ? value.Scalar() : "";
}

struct File {
  std::string text;
  YAML::Node root;

  // The list, empty if there is none.
  YAML::Node List(const char* name) const {
    const YAML::Node list = root.IsMap() ? root[name] : YAML::Node();
    return list && list.IsSequence() ? list : YAML::Node(YAML::NodeType::Sequence);
  }
};

absl::StatusOr<File> Parse(const std::string& file, std::string text) {
  try {
    YAML::Node root = YAML::Load(text);
    return File{std::move(text), std::move(root)};
  } catch (const YAML::Exception& e) {
    return absl::InvalidArgumentError(absl::StrCat(
        file, e.mark.is_null() ? "" : absl::StrCat(":", e.mark.line + 1), ": ", e.msg));
  }
}

absl::StatusOr<File> Read(const std::string& file) {
  std::error_code error;
  if (!fs::exists(file, error)) return absl::NotFoundError(absl::StrCat("there is no ", file));
  std::ifstream in(file, std::ios::binary);
  if (!in) return Failed(file, "read");
  return Parse(file, {std::istreambuf_iterator<char>(in), {}});
}

// Whole or not at all, as everybody else sees it.
absl::Status Replace(const std::string& file, const std::string& text) {
  std::string temporary = file + ".XXXXXX";
  const int fd = mkstemp(temporary.data());  // mode 0600
  if (fd < 0) return Failed(temporary, "made");
  struct stat old = {};
  bool good = true;
  if (stat(file.c_str(), &old) == 0) {
    // Only root can give a file away. One whose group cannot be kept is for its owner alone, and
    // one of somebody else's stays theirs.
    const bool kept = fchown(fd, old.st_uid, old.st_gid) == 0;
    good = kept ? fchmod(fd, (old.st_mode & 0640) | 0600) == 0 : old.st_uid == geteuid();
  }
  for (size_t written = 0; good && written < text.size();) {
    const ssize_t n = write(fd, text.data() + written, text.size() - written);
    good = n > 0;
    written += good ? static_cast<size_t>(n) : 0;
  }
  good = good && fsync(fd) == 0;
  good = close(fd) == 0 && good;
  if (good && rename(temporary.c_str(), file.c_str()) == 0) return absl::OkStatus();
  const absl::Status status = Failed(file, "written");
  unlink(temporary.c_str());
  return status;
}

// Reads the file, lets `edit` make another text of it, and replaces it.
absl::Status Edit(const std::string& file, bool may_be_absent,
                  const std::function<absl::StatusOr<std::string>(const File&)>& edit) {
  const fs::path folder = fs::absolute(file).parent_path();
  const int lock = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock < 0 || flock(lock, LOCK_EX) != 0) {
    const absl::Status status = Failed(folder, "locked");
    if (lock >= 0) close(lock);
    return status;
  }
  const absl::Status status = [&]() -> absl::Status {
    absl::StatusOr<File> before = Read(file);
    if (absl::IsNotFound(before.status()) && may_be_absent) before = Parse(file, "");
    if (!before.ok()) return before.status();
    absl::StatusOr<std::string> text = edit(*before);
    if (!text.ok()) return text.status();
    absl::Status replaced = Replace(file, *text);
    if (replaced.ok()) fsync(lock);
    return replaced;
  }();
  close(lock);
  return status;
}

std::vector<std::string> LinesOf(const std::string& text) {
  std::vector<std::string> lines = absl::StrSplit(text, '\n');
  if (lines.back().empty()) lines.pop_back();
  return lines;
}

std::string Joined(const std::vector<std::string>& lines) {
  return lines.empty() ? "" : absl::StrJoin(lines, "\n") + "\n";
}

// Where an entry of a list begins: its line, and the column of its dash. None if it has no line of
// its own.
struct Place {
  size_t line, dash;
};
std::optional<Place> PlaceOf(const YAML::Node& entry, const std::vector<std::string>& lines) {
  const auto line = static_cast<size_t>(entry.Mark().line);
  if (line >= lines.size()) return std::nullopt;
  const size_t dash = lines[line].find_first_not_of(' ');
  if (dash == std::string::npos || lines[line].substr(dash, 2) != "- ") return std::nullopt;
  return Place{line, dash};
}

// The entries of a list, each as YAML.
std::vector<std::string> Dumped(const YAML::Node& list) {
  std::vector<std::string> entries;
  for (const YAML::Node& entry : list) entries.push_back(YAML::Dump(entry));
  return entries;
}

// Editing lines is only right if nothing else has changed by it.
bool ChangedAsMeant(const File& before, const std::string& file, const std::string& text,
                    std::vector<std::string> keys, std::vector<std::string> certificates) {
  const auto after = Parse(file, text);
  if (!after.ok()) return false;
  auto found = Dumped(after->List("keys"));
  std::sort(found.begin(), found.end());
  std::sort(keys.begin(), keys.end());
  return found == keys && Dumped(after->List("certificates")) == certificates &&
         after->root.size() >= before.root.size();
}

std::vector<std::string> LinesOf(const KeyEntry& entry) {
  std::vector<std::string> lines = {"- id: " + entry.id, "  sha256: " + entry.sha256,
                                    "  tenant: " + entry.tenant, "  role: " + entry.role};
  if (!entry.models.empty()) {
    lines.push_back(absl::StrCat("  models: [", absl::StrJoin(entry.models, ", "), "]"));
  }
  if (!entry.not_after.empty()) lines.push_back("  not_after: " + entry.not_after);
  return lines;
}

bool HasId(const File& file, const std::string& id) {
  for (const char* list : {"keys", "certificates"}) {
    for (const YAML::Node& entry : file.List(list)) {
      if (TextOf(entry, "id") == id) return true;
    }
  }
  return false;
}

}  // namespace

absl::StatusOr<std::vector<KeyEntry>> ReadKeyEntries(const std::string& file) {
  const auto read = Read(file);
  if (!read.ok()) return read.status();
  std::vector<KeyEntry> entries;
  for (const char* list : {"keys", "certificates"}) {
    for (const YAML::Node& node : read->List(list)) {
      KeyEntry entry{.id = TextOf(node, "id"),
                     .sha256 = TextOf(node, "sha256"),
                     .identity = absl::StrCat(TextOf(node, "spiffe"), TextOf(node, "dns")),
                     .tenant = TextOf(node, "tenant"),
                     .role = TextOf(node, "role"),
                     .models = {},
                     .not_after = TextOf(node, "not_after")};
      if (node.IsMap() && node["models"] && node["models"].IsSequence()) {
        for (const YAML::Node& model : node["models"]) {
          if (model.IsScalar()) entry.models.push_back(model.Scalar());
        }
      }
      entries.push_back(std::move(entry));
    }
  }
  return entries;
}

absl::Status AddKeyEntry(const std::string& file, const KeyEntry& entry) {
  return Edit(file, /*may_be_absent=*/true, [&](const File& before) -> absl::StatusOr<std::string> {
    if (HasId(before, entry.id)) {
      return absl::AlreadyExistsError(absl::StrCat(file, " has a key ", entry.id, " already"));
    }
    std::vector<std::string> lines = LinesOf(before.text);
    const YAML::Node keys = before.List("keys");
    size_t at = lines.size();
    size_t indent = 2;
    if (keys.size() > 0) {
      const auto first = PlaceOf(keys[0], lines);
      if (!first) return CannotEdit(file);
      at = first->line;
      indent = first->dash;
    } else {
      const auto header = std::find(lines.begin(), lines.end(), "keys:");
      if (header == lines.end()) lines.push_back("keys:");
      at = static_cast<size_t>(std::find(lines.begin(), lines.end(), "keys:") - lines.begin()) + 1;
    }
    std::vector<std::string> added = LinesOf(entry);
    for (std::string& line : added) line.insert(0, indent, ' ');
    lines.insert(lines.begin() + static_cast<std::ptrdiff_t>(at), added.begin(), added.end());
    std::string text = Joined(lines);
    auto wanted = Dumped(keys);
    wanted.push_back(YAML::Dump(YAML::Load(Joined(LinesOf(entry)))[0]));
    if (!ChangedAsMeant(before, file, text, wanted, Dumped(before.List("certificates")))) {
      return CannotEdit(file);
    }
    return text;
  });
}

absl::Status RemoveKeyEntry(const std::string& file, const std::string& id) {
  return Edit(file, /*may_be_absent=*/false,
              [&](const File& before) -> absl::StatusOr<std::string> {
                if (!HasId(before, id)) {
                  return absl::NotFoundError(absl::StrCat(file, " has no key ", id));
                }
                std::vector<std::string> lines = LinesOf(before.text);
                std::vector<std::string> kept[2];
                std::optional<Place> place;
                const char* const lists[] = {"keys", "certificates"};
                for (int i = 0; i < 2; ++i) {
                  for (const YAML::Node& entry : before.List(lists[i])) {
                    if (TextOf(entry, "id") != id) {
                      kept[i].push_back(YAML::Dump(entry));
                    } else if (!(place = PlaceOf(entry, lines))) {
                      return CannotEdit(file);
                    }
                  }
                }
                // To the next line that stands as far left; comments before that are about what
                // follows.
                size_t end = place->line + 1;
                for (size_t i = end; i < lines.size(); ++i) {
                  const size_t column = lines[i].find_first_not_of(' ');
                  if (column == std::string::npos || lines[i][column] == '#') continue;
                  if (column <= place->dash) break;
                  end = i + 1;
                }
                lines.erase(lines.begin() + static_cast<std::ptrdiff_t>(place->line),
                            lines.begin() + static_cast<std::ptrdiff_t>(end));
                std::string text = Joined(lines);
                if (!ChangedAsMeant(before, file, text, kept[0], kept[1])) return CannotEdit(file);
                return text;
              });
}

}  // namespace mneme::cli
