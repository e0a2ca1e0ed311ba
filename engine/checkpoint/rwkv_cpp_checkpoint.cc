#include "engine/checkpoint/rwkv_cpp_checkpoint.h"

#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/checkpoint/file_set_checkpoint.h"
#include "engine/checkpoint/mapped_file.h"
#include "engine/checkpoint/safetensors_checkpoint.h"
#include "engine/checkpoint/side_files.h"
#include "engine/core/status_macros.h"

namespace mneme::engine {
namespace {

static_assert(std::endian::native == std::endian::little, "the file's byte order is used as it is");

constexpr uint32_t kMagic = 0x67676d66;
constexpr uint32_t kOldVersion = 100;  // F32 and F16 alone
constexpr uint32_t kVersion = 101;
constexpr size_t kHeaderBytes = 24;
constexpr uint32_t kMaxDimensions = 3;
constexpr uint32_t kMaxNameBytes = 255;  // real names have at most 40
constexpr size_t kMaxTensors = size_t{1} << 20;
constexpr uint32_t kMaxHeaderNumber = uint32_t{1} << 30;

struct TensorType {
  std::string_view name;
  std::optional<DType> dtype;  // empty: known, but not accepted
};

// Index = the number in the file.
constexpr TensorType kTypes[] = {
    {"FP32", DType::kF32},
    {"FP16", DType::kF16},
    {"Q4_0", DType::kQ4_0},
    {"Q4_1", DType::kQ4_1},
    {"Q4_1_O (removed from rwkv.cpp)", {}},
    {"Q4_2 (removed from rwkv.cpp)", {}},
    {"Q4_3 (removed from rwkv.cpp)", {}},
    {"Q5_0", DType::kQ5_0},
    {"Q5_1", DType::kQ5_1},
    {"Q8_0", DType::kQ8_0},
    {"Q8_1", {}},
    {"Q2_K", {}},
    {"Q3_K", {}},
    {"Q4_K", DType::kQ4_K},
    {"Q5_K", DType::kQ5_K},
    {"Q6_K", DType::kQ6_K},
    {"Q8_K", {}},
};

class Parser {
 public:
  Parser(std::span<const std::byte> file, std::string_view what) : file_(file), what_(what) {}

  absl::StatusOr<RwkvCppContent> Parse() {
    MNEME_RETURN_IF_ERROR(ParseHeader());
    while (position_ < file_.size()) MNEME_RETURN_IF_ERROR(ParseRecord());
    return std::move(content_);
  }

 private:
  size_t remaining() const { return file_.size() - position_; }

  absl::Status Refuse(std::string_view field, std::string_view message) const {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(what_), ": ", std::string(field), ": ", std::string(message)));
  }

  absl::StatusOr<uint32_t> ReadNumber(std::string_view field) {
    uint32_t number = 0;
    if (remaining() < sizeof(number)) {
      return Refuse(field,
                    absl::StrCat("the file ends here: 4 bytes expected, ", remaining(), " left"));
    }
    std::memcpy(&number, file_.data() + position_, sizeof(number));
    position_ += sizeof(number);
    return number;
  }

  absl::StatusOr<DType> ToDType(uint32_t type, std::string_view field) const {
    const bool known = type < std::size(kTypes);
    if (!known || !kTypes[type].dtype) {
      return Refuse(field, absl::StrCat("type ", type, " (",
                                        known ? std::string(kTypes[type].name) : "unknown",
                                        "), expected FP32, FP16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, "
                                        "Q4_K, Q5_K or Q6_K"));
    }
    if (content_.version == kOldVersion && IsQuantized(*kTypes[type].dtype)) {
      return Refuse(field, absl::StrCat("type ", std::string(kTypes[type].name),
                                        " in a file of version 100, whose blocks have another "
                                        "form; convert and quantise it again"));
    }
    return *kTypes[type].dtype;
  }

  absl::Status ParseHeader() {
    if (file_.size() < kHeaderBytes) {
      return Refuse("header", absl::StrCat("the file has ", file_.size(), " bytes, at least ",
                                           kHeaderBytes, " expected"));
    }
    MNEME_ASSIGN_OR_RETURN(const uint32_t magic, ReadNumber("header"));
    MNEME_ASSIGN_OR_RETURN(const uint32_t version, ReadNumber("header"));
    if (magic != kMagic) {
      return Refuse("magic", absl::StrCat("0x", absl::Hex(magic), ", expected 0x67676d66"));
    }
    if (version != kOldVersion && version != kVersion) {
      return Refuse("version", absl::StrCat(version, ", expected 100 or 101"));
    }
    content_.version = version;
    const std::pair<std::string_view, int64_t*> numbers[] = {
        {"vocabulary size", &content_.vocab_size},
        {"width", &content_.width},
        {"layer count", &content_.num_layers}};
    for (const auto& [field, value] : numbers) {
      MNEME_ASSIGN_OR_RETURN(const uint32_t stored, ReadNumber(field));
      if (stored < 1 || stored > kMaxHeaderNumber) {
        return Refuse(field, absl::StrCat(stored, ", expected 1 to 2^30"));
      }
      *value = stored;
    }
    MNEME_ASSIGN_OR_RETURN(const uint32_t type, ReadNumber("data type"));
    return ToDType(type, "data type").status();
  }

  absl::Status ParseRecord() {
    std::string field = absl::StrCat("tensor ", content_.tensors.size());
    MNEME_ASSIGN_OR_RETURN(const uint32_t num_dimensions, ReadNumber(field));
    MNEME_ASSIGN_OR_RETURN(const uint32_t name_bytes, ReadNumber(field));
    MNEME_ASSIGN_OR_RETURN(const uint32_t type, ReadNumber(field));
    if (num_dimensions < 1 || num_dimensions > kMaxDimensions) {
      return Refuse(field, absl::StrCat(num_dimensions, " dimensions, expected 1 to 3"));
    }
    if (name_bytes < 1 || name_bytes > kMaxNameBytes) {
      return Refuse(
          field, absl::StrCat("a name of ", name_bytes, " bytes, expected 1 to ", kMaxNameBytes));
    }
    Tensor tensor;
    tensor.shape.resize(num_dimensions);
    for (uint32_t i = 0; i < num_dimensions; ++i) {
      MNEME_ASSIGN_OR_RETURN(const uint32_t dimension, ReadNumber(field));
      if (dimension < 1) return Refuse(field, absl::StrCat("dimension ", i, " is 0"));
      tensor.shape[num_dimensions - 1 - i] = dimension;
    }
    if (name_bytes > remaining()) {
      return Refuse(field, absl::StrCat("a name of ", name_bytes, " bytes exceeds the ",
                                        remaining(), " bytes left in the file"));
    }
    const std::string_view name(reinterpret_cast<const char*>(file_.data()) + position_,
                                name_bytes);
    position_ += name_bytes;
    for (const unsigned char c : name) {
      if (c < 0x21 || c > 0x7E) {
        return Refuse(field, absl::StrCat("name \"", absl::CHexEscape({name.data(), name.size()}),
                                          "\", expected printable ASCII"));
      }
    }
    tensor.name = std::string(name);
    field = absl::StrCat("tensor \"", tensor.name, "\"");
    MNEME_ASSIGN_OR_RETURN(tensor.dtype, ToDType(type, field));
    const DTypeTraits& traits = Traits(tensor.dtype);
    if (tensor.shape.back() % traits.block_elements != 0) {
      return Refuse(
          field, absl::StrCat("rows of ", tensor.shape.back(), " elements, expected a multiple of ",
                              traits.block_elements, " for type ", std::string(traits.name)));
    }
    size_t size = RowBytes(tensor.dtype, tensor.shape.back());
    for (uint32_t i = 0; i + 1 < num_dimensions; ++i) {
      if (__builtin_mul_overflow(size, static_cast<size_t>(tensor.shape[i]), &size)) {
        return Refuse(field, "its size overflows 64 bits");
      }
    }
    if (size > remaining()) {
      return Refuse(field, absl::StrCat("its ", size, " bytes exceed the ", remaining(),
                                        " bytes left in the file"));
    }
    tensor.size_bytes = size;
    tensor.data = file_.data() + position_;
    position_ += size;
    if (content_.tensors.size() == kMaxTensors) {
      return Refuse(field, absl::StrCat("more than ", kMaxTensors, " tensors"));
    }
    std::string key = tensor.name;
    if (!content_.tensors.try_emplace(std::move(key), std::move(tensor)).second) {
      return Refuse(field, "the name occurs twice");
    }
    return absl::OkStatus();
  }

  const std::span<const std::byte> file_;
  const std::string_view what_;
  size_t position_ = 0;
  RwkvCppContent content_;
};

}  // namespace

absl::StatusOr<RwkvCppContent> ParseRwkvCpp(std::span<const std::byte> file,
                                            std::string_view what) {
  return Parser(file, what).Parse();
}

absl::StatusOr<std::shared_ptr<const Checkpoint>> OpenRwkvCpp(const std::string& path) {
  MNEME_ASSIGN_OR_RETURN(auto weights, MappedFile::Open(path));
  MNEME_ASSIGN_OR_RETURN(RwkvCppContent content, ParseRwkvCpp(weights->bytes(), path));
  MNEME_ASSIGN_OR_RETURN(const auto folder, MappedFile::Folder::Open(FolderOf(path)));
  FileSet files;
  MNEME_RETURN_IF_ERROR(OpenSideFiles(*folder, &files));
  FileSetCheckpoint::Metadata metadata;
  MNEME_ASSIGN_OR_RETURN(auto config, OpenOptional(*folder, kConfigFile));
  if (config != nullptr) {
    MNEME_ASSIGN_OR_RETURN(metadata, ParseModelConfig(Text(*config), config->path()));
    files.emplace(kConfigFile, std::move(config));
  }
  metadata.insert_or_assign("file_version", content.version);
  metadata.insert_or_assign("vocab_size", content.vocab_size);
  metadata.insert_or_assign("hidden_size", content.width);
  metadata.insert_or_assign("num_hidden_layers", content.num_layers);
  files.emplace("model.bin", std::move(weights));
  return std::make_shared<const FileSetCheckpoint>(Checkpoint::Format::kRwkvCpp, path,
                                                   std::move(files), std::move(metadata),
                                                   std::move(content.tensors));
}

}  // namespace mneme::engine
