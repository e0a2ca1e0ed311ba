// Build tool: copies a shared library so that only one namespace of it can be seen from outside.
//
//   make_private_library IN OUT SONAME NAMESPACE
//
// Every symbol that IN defines outside of the C++ namespace NAMESPACE gets visibility "hidden" in
// OUT's dynamic symbol table, as though IN had been compiled that way. The loader then binds OUT's
// own references to OUT's own definitions and offers these to nobody else, so a private copy of
// some third library inside of IN can live in a process beside a newer one. (RTLD_DEEPBIND would
// also do that, for dlopen() and in one direction only, and the sanitizers refuse it; it also
// leaves STB_GNU_UNIQUE objects shared.) OUT's SONAME is SONAME, which must not be longer than
// IN's, so that the loader takes it for no other library. ELF64 of this machine's byte order.
//
// The rules relied on are those of the ELF gABI (st_other) and, for STB_GNU_UNIQUE, of glibc.
#include <elf.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace {

class Image {
 public:
  explicit Image(std::string bytes) : bytes_(std::move(bytes)) {}

  // The `index`th T of the table at `offset`; nullptr outside of the file.
  template <typename T>
  T* At(uint64_t offset, uint64_t index = 0) {
    if (offset > bytes_.size() || index >= (bytes_.size() - offset) / sizeof(T)) return nullptr;
    return reinterpret_cast<T*>(bytes_.data() + offset) + index;
  }

  const Elf64_Shdr* Section(uint64_t index) {
    const auto* header = At<Elf64_Ehdr>(0);
    return index < header->e_shnum ? At<Elf64_Shdr>(header->e_shoff, index) : nullptr;
  }

  const Elf64_Shdr* SectionOfType(uint32_t type) {
    for (uint64_t i = 0; const Elf64_Shdr* section = Section(i); ++i) {
      if (section->sh_type == type) return section;
    }
    return nullptr;
  }

  // The string at `offset` of string table `strings`; empty outside of it.
  std::string_view String(const Elf64_Shdr& strings, uint64_t offset) {
    if (offset >= strings.sh_size) return {};
    const char* begin = At<char>(strings.sh_offset, offset);
    const char* last = At<char>(strings.sh_offset, strings.sh_size - 1);
    if (begin == nullptr || last == nullptr || *last != '\0') return {};
    return begin;
  }

  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

// Whether a mangled name is a member of the namespace (or a vtable, VTT or type info of one).
bool IsMember(std::string_view name, const std::string& name_space) {
  if (name.substr(0, 2) != "_Z") return false;
  name.remove_prefix(2);
  if (name.size() > 2 && name[0] == 'T' && std::string_view("VTIS").find(name[1]) != name.npos) {
    name.remove_prefix(2);
  }
  if (name.substr(0, 1) != "N") return false;
  name.remove_prefix(1);
  if (name.substr(0, 1) == "K") name.remove_prefix(1);
  const std::string prefix = std::to_string(name_space.size()) + name_space;
  return name.substr(0, prefix.size()) == prefix;
}

// The error, or nothing.
std::optional<std::string> MakePrivate(Image& image, const std::string& soname,
                                       const std::string& name_space) {
  const auto* header = image.At<Elf64_Ehdr>(0);
  if (header == nullptr || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 ||
      header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_type != ET_DYN ||
      header->e_shentsize != sizeof(Elf64_Shdr)) {
    return "not a 64 bit ELF shared library";
  }
  const Elf64_Shdr* symbols = image.SectionOfType(SHT_DYNSYM);
  const Elf64_Shdr* dynamic = image.SectionOfType(SHT_DYNAMIC);
  const Elf64_Shdr* strings = symbols == nullptr ? nullptr : image.Section(symbols->sh_link);
  if (dynamic == nullptr || strings == nullptr) return "no dynamic symbols";

  uint64_t kept = 0, hidden = 0;
  for (uint64_t i = 0; i < symbols->sh_size / sizeof(Elf64_Sym); ++i) {
    auto* symbol = image.At<Elf64_Sym>(symbols->sh_offset, i);
    if (symbol == nullptr) return "the symbol table lies outside of the file";
    if (symbol->st_shndx == SHN_UNDEF) continue;
    if (IsMember(image.String(*strings, symbol->st_name), name_space)) {
      ++kept;
    } else {
      symbol->st_other = (symbol->st_other & ~3) | STV_HIDDEN;
      ++hidden;
    }
  }
  if (kept == 0 || hidden == 0) return "nothing to keep, or nothing to hide";

  for (uint64_t i = 0; i < dynamic->sh_size / sizeof(Elf64_Dyn); ++i) {
    const auto* entry = image.At<Elf64_Dyn>(dynamic->sh_offset, i);
    if (entry == nullptr || entry->d_tag == DT_NULL) break;
    if (entry->d_tag != DT_SONAME) continue;
    const uint64_t offset = entry->d_un.d_val;
    const size_t room = image.String(*strings, offset).size();
    if (room < soname.size()) return "the new SONAME is longer than the old one";
    std::memset(image.At<char>(strings->sh_offset, offset), 0, room);
    std::memcpy(image.At<char>(strings->sh_offset, offset), soname.data(), soname.size());
    return std::nullopt;
  }
  return "no SONAME";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::cerr << "usage: " << argv[0] << " IN OUT SONAME NAMESPACE\n";
    return 2;
  }
  std::ifstream in(argv[1], std::ios::binary);
  Image image(std::string(std::istreambuf_iterator<char>(in), {}));
  if (const auto error = MakePrivate(image, argv[3], argv[4])) {
    std::cerr << argv[1] << ": " << *error << "\n";
    return 1;
  }
  std::ofstream out(argv[2], std::ios::binary);
  out << image.bytes() << std::flush;
  if (!out) {
    std::cerr << argv[2] << ": cannot be written\n";
    return 1;
  }
  return 0;
}
