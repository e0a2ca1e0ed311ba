#include "engine/checkpoint/gguf_checkpoint.h"

#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <limits>
#include <mutex>
#include <optional>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/checkpoint/fingerprint.h"
#include "engine/checkpoint/gguf_format.h"
#include "engine/checkpoint/mapped_file.h"
#include "engine/core/status_macros.h"
#include "engine/core/utf8.h"

namespace mneme::engine {
namespace {

static_assert(std::endian::native == std::endian::little, "the file's byte order is used as it is");

using gguf::ValueType;

std::string Quoted(std::string_view name) {
  return absl::StrCat("\"", absl::CHexEscape(absl::string_view(name.data(), name.size())), "\"");
}

std::string SupportedTypes() {
  std::string names;
  for (int i = 0; i < kNumDTypes; ++i) {
    absl::StrAppend(&names, i ? ", " : "", std::string(Traits(static_cast<DType>(i)).name));
  }
  return names;
}

class GgufParser {
 public:
  GgufParser(std::span<const std::byte> file, std::string_view what) : file_(file), what_(what) {}

  absl::StatusOr<GgufContent> Parse() {
    MNEME_RETURN_IF_ERROR(ParseHeader());
    for (uint64_t i = 0; i < num_entries_; ++i) MNEME_RETURN_IF_ERROR(ParseEntry(i));
    MNEME_RETURN_IF_ERROR(CheckMetadata());
    for (uint64_t i = 0; i < num_tensors_; ++i) MNEME_RETURN_IF_ERROR(ParseTensorInfo(i));
    MNEME_RETURN_IF_ERROR(PlaceTensors());
    return std::move(content_);
  }

 private:
  struct PendingTensor {
    Tensor* tensor;
    uint64_t offset;  // in the data section
  };

  size_t remaining() const { return file_.size() - position_; }

  absl::Status Refuse(std::string_view field, std::string_view message) const {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(what_), ": ", std::string(field), ": ", std::string(message)));
  }

  // `field` is a callable that names what is read: it runs only when something is wrong.
  template <typename T, typename Field>
  absl::Status Read(T& value, const Field& field) {
    if (remaining() < sizeof(T)) {
      return Refuse(field(), absl::StrCat("the file ends here: ", sizeof(T), " bytes expected, ",
                                          remaining(), " left"));
    }
    std::memcpy(&value, file_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return absl::OkStatus();
  }

  template <typename Field>
  absl::Status ReadString(std::string_view& value, uint64_t max_bytes, const Field& field) {
    uint64_t size = 0;
    MNEME_RETURN_IF_ERROR(Read(size, field));
    if (size > remaining()) {
      return Refuse(field(), absl::StrCat("length ", size, " exceeds the ", remaining(),
                                          " bytes left in the file"));
    }
    if (size > max_bytes) {
      return Refuse(field(),
                    absl::StrCat("length ", size, " bytes, at most ", max_bytes, " are allowed"));
    }
    value = {reinterpret_cast<const char*>(file_.data()) + position_, static_cast<size_t>(size)};
    position_ += size;
    return absl::OkStatus();
  }

  absl::Status ParseHeader() {
    if (file_.size() < gguf::kHeaderBytes) {
      return Refuse("header", absl::StrCat("the file has ", file_.size(), " bytes, at least ",
                                           gguf::kHeaderBytes, " expected"));
    }
    if (std::memcmp(file_.data(), gguf::kMagic.data(), gguf::kMagic.size()) != 0) {
      return Refuse("magic", "expected \"GGUF\"");
    }
    position_ = gguf::kMagic.size();
    const auto header = [] { return "header"; };
    uint32_t version = 0;
    MNEME_RETURN_IF_ERROR(Read(version, header));
    MNEME_RETURN_IF_ERROR(Read(num_tensors_, header));
    MNEME_RETURN_IF_ERROR(Read(num_entries_, header));
    if (version < gguf::kMinVersion || version > gguf::kMaxVersion) {
      const bool big_endian = version == 0x02000000 || version == 0x03000000;
      return Refuse("version", absl::StrCat(version, big_endian ? " (a big-endian file)" : "",
                                            ", expected 2 or 3, little-endian"));
    }
    if (num_entries_ > gguf::kMaxEntries) {
      return Refuse("metadata count",
                    absl::StrCat(num_entries_, ", at most ", gguf::kMaxEntries, " are allowed"));
    }
    if (num_tensors_ > gguf::kMaxTensors) {
      return Refuse("tensor count",
                    absl::StrCat(num_tensors_, ", at most ", gguf::kMaxTensors, " are allowed"));
    }
    if (num_entries_ > remaining() / gguf::kMinEntryBytes) {
      return Refuse("metadata count", absl::StrCat(num_entries_, " entries do not fit into the ",
                                                   remaining(), " bytes left in the file"));
    }
    if (num_tensors_ > remaining() / gguf::kMinTensorBytes) {
      return Refuse("tensor count", absl::StrCat(num_tensors_, " tensors do not fit into the ",
                                                 remaining(), " bytes left in the file"));
    }
    return absl::OkStatus();
  }

  absl::Status ParseEntry(uint64_t index) {
    std::string_view key;
    MNEME_RETURN_IF_ERROR(ReadString(
        key, gguf::kMaxKeyBytes, [&] { return absl::StrCat("key of metadata entry ", index); }));
    if (key.empty()) return Refuse(absl::StrCat("key of metadata entry ", index), "is empty");
    for (const unsigned char c : key) {
      if (c < 0x21 || c > 0x7E) {
        return Refuse(absl::StrCat("key of metadata entry ", index),
                      absl::StrCat(Quoted(key.substr(0, 80)), ", expected printable ASCII"));
      }
    }
    const auto field = [&] { return absl::StrCat("metadata ", Quoted(key.substr(0, 80))); };
    uint32_t type = 0;
    MNEME_RETURN_IF_ERROR(Read(type, field));
    MetadataValue value;
    MNEME_RETURN_IF_ERROR(ReadValue(static_cast<ValueType>(type), value, field));
    if (key == "general.alignment" && static_cast<ValueType>(type) != ValueType::kU32) {
      return Refuse(field(), absl::StrCat("value type ", type, ", expected u32"));
    }
    if (!content_.metadata.try_emplace(std::string(key), std::move(value)).second) {
      return Refuse(field(), "the key occurs twice");
    }
    return absl::OkStatus();
  }

  template <typename Field>
  absl::Status ReadValue(ValueType type, MetadataValue& value, const Field& field) {
    switch (type) {
      case ValueType::kU8:
        return ReadScalar<uint8_t, int64_t>(value, field);
      case ValueType::kI8:
        return ReadScalar<int8_t, int64_t>(value, field);
      case ValueType::kU16:
        return ReadScalar<uint16_t, int64_t>(value, field);
      case ValueType::kI16:
        return ReadScalar<int16_t, int64_t>(value, field);
      case ValueType::kU32:
        return ReadScalar<uint32_t, int64_t>(value, field);
      case ValueType::kI32:
        return ReadScalar<int32_t, int64_t>(value, field);
      case ValueType::kU64:
        return ReadScalar<uint64_t, int64_t>(value, field);
      case ValueType::kI64:
        return ReadScalar<int64_t, int64_t>(value, field);
      case ValueType::kF32:
        return ReadScalar<float, double>(value, field);
      case ValueType::kF64:
        return ReadScalar<double, double>(value, field);
      case ValueType::kBool: {
        bool element = false;
        MNEME_RETURN_IF_ERROR(ReadBool(element, field));
        value = element;
        return absl::OkStatus();
      }
      case ValueType::kString: {
        std::string element;
        MNEME_RETURN_IF_ERROR(ReadText(element, field));
        value = std::move(element);
        return absl::OkStatus();
      }
      case ValueType::kArray:
        return ReadArray(value, field);
    }
    return Refuse(field(), absl::StrCat("unknown value type ", static_cast<uint32_t>(type),
                                        ", expected 0 to 12"));
  }

  template <typename Stored, typename Held, typename Field>
  absl::Status ReadNumber(Held& value, const Field& field) {
    Stored stored{};
    MNEME_RETURN_IF_ERROR(Read(stored, field));
    if constexpr (std::is_same_v<Stored, uint64_t>) {
      if (stored > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        return Refuse(field(), absl::StrCat(stored, " exceeds 2^63-1"));
      }
    }
    value = static_cast<Held>(stored);  // NOLINT(bugprone-signed-char-misuse): i8 is a number
    return absl::OkStatus();
  }

  template <typename Stored, typename Held, typename Field>
  absl::Status ReadScalar(MetadataValue& value, const Field& field) {
    Held held{};
    MNEME_RETURN_IF_ERROR((ReadNumber<Stored>(held, field)));
    value = held;
    return absl::OkStatus();
  }

  template <typename Field>
  absl::Status ReadBool(bool& value, const Field& field) {
    uint8_t byte = 0;
    MNEME_RETURN_IF_ERROR(Read(byte, field));
    if (byte > 1) {
      return Refuse(field(),
                    absl::StrCat("bool byte ", static_cast<int>(byte), ", expected 0 or 1"));
    }
    value = byte != 0;
    return absl::OkStatus();
  }

  template <typename Field>
  absl::Status ReadText(std::string& value, const Field& field) {
    std::string_view text;
    MNEME_RETURN_IF_ERROR(ReadString(text, gguf::kMaxStringBytes, field));
    if (!IsValidUtf8(text)) return Refuse(field(), "is not valid UTF-8");
    value.assign(text);
    return absl::OkStatus();
  }

  template <typename Field>
  absl::Status ReadArray(MetadataValue& value, const Field& field) {
    uint32_t type = 0;
    uint64_t count = 0;
    MNEME_RETURN_IF_ERROR(Read(type, field));
    MNEME_RETURN_IF_ERROR(Read(count, field));
    size_t min_bytes = 0;
    switch (static_cast<ValueType>(type)) {
      case ValueType::kU8:
      case ValueType::kI8:
      case ValueType::kBool:
        min_bytes = 1;
        break;
      case ValueType::kU16:
      case ValueType::kI16:
        min_bytes = 2;
        break;
      case ValueType::kU32:
      case ValueType::kI32:
      case ValueType::kF32:
        min_bytes = 4;
        break;
      case ValueType::kU64:
      case ValueType::kI64:
      case ValueType::kF64:
      case ValueType::kString:  // its length alone
        min_bytes = 8;
        break;
      case ValueType::kArray:
        return Refuse(field(), "an array of arrays, expected an array of scalars or strings");
    }
    if (min_bytes == 0) {
      return Refuse(field(), absl::StrCat("unknown array element type ", type));
    }
    if (count > remaining() / min_bytes) {
      return Refuse(field(), absl::StrCat("array of ", count, " elements exceeds the ", remaining(),
                                          " bytes left in the file"));
    }
    if (count > gguf::kMaxArrayElements - num_array_elements_) {
      return Refuse(field(),
                    absl::StrCat("array of ", count, " elements, at most ", gguf::kMaxArrayElements,
                                 " are allowed in all arrays together"));
    }
    num_array_elements_ += count;
    const size_t n = static_cast<size_t>(count);
    switch (static_cast<ValueType>(type)) {
      case ValueType::kU8:
        return ReadNumbers<uint8_t, int64_t>(value, n, field);
      case ValueType::kI8:
        return ReadNumbers<int8_t, int64_t>(value, n, field);
      case ValueType::kU16:
        return ReadNumbers<uint16_t, int64_t>(value, n, field);
      case ValueType::kI16:
        return ReadNumbers<int16_t, int64_t>(value, n, field);
      case ValueType::kU32:
        return ReadNumbers<uint32_t, int64_t>(value, n, field);
      case ValueType::kI32:
        return ReadNumbers<int32_t, int64_t>(value, n, field);
      case ValueType::kU64:
        return ReadNumbers<uint64_t, int64_t>(value, n, field);
      case ValueType::kI64:
        return ReadNumbers<int64_t, int64_t>(value, n, field);
      case ValueType::kF32:
        return ReadNumbers<float, double>(value, n, field);
      case ValueType::kF64:
        return ReadNumbers<double, double>(value, n, field);
      case ValueType::kBool: {
        std::vector<bool> elements(n);
        for (size_t i = 0; i < n; ++i) {
          bool element = false;
          MNEME_RETURN_IF_ERROR(ReadBool(element, [&] { return Element(field, i); }));
          elements[i] = element;
        }
        value = std::move(elements);
        return absl::OkStatus();
      }
      default: {
        std::vector<std::string> elements(n);
        for (size_t i = 0; i < n; ++i) {
          MNEME_RETURN_IF_ERROR(ReadText(elements[i], [&] { return Element(field, i); }));
        }
        value = std::move(elements);
        return absl::OkStatus();
      }
    }
  }

  template <typename Stored, typename Held, typename Field>
  absl::Status ReadNumbers(MetadataValue& value, size_t count, const Field& field) {
    std::vector<Held> elements(count);
    for (size_t i = 0; i < count; ++i) {
      MNEME_RETURN_IF_ERROR((ReadNumber<Stored>(elements[i], [&] { return Element(field, i); })));
    }
    value = std::move(elements);
    return absl::OkStatus();
  }

  template <typename Field>
  static std::string Element(const Field& field, size_t index) {
    return absl::StrCat(field(), " element ", index);
  }

  template <typename T>
  const T* Find(std::string_view key) const {
    const auto it = content_.metadata.find(key);
    return it == content_.metadata.end() ? nullptr : std::get_if<T>(&it->second);
  }

  absl::Status CheckMetadata() {
    if (const auto* alignment = Find<int64_t>("general.alignment")) {
      if (*alignment < 8 || *alignment > gguf::kMaxAlignment ||
          !std::has_single_bit(static_cast<uint64_t>(*alignment))) {
        return Refuse(
            "metadata \"general.alignment\"",
            absl::StrCat(*alignment, ", expected a power of two from 8 to ", gguf::kMaxAlignment));
      }
      alignment_ = static_cast<uint32_t>(*alignment);
    }
    if (const auto* shards = Find<int64_t>("split.count"); shards != nullptr && *shards > 1) {
      return Refuse("metadata \"split.count\"",
                    absl::StrCat(*shards, " shards, expected a single file (merge them first)"));
    }
    return CheckVocabulary();
  }

  absl::Status CheckVocabulary() {
    const auto* tokens = Find<std::vector<std::string>>("tokenizer.ggml.tokens");
    if (tokens == nullptr) return absl::OkStatus();
    const auto check_size = [&](std::string_view key, const auto* values) -> absl::Status {
      if (values == nullptr || values->size() == tokens->size()) return absl::OkStatus();
      return Refuse(absl::StrCat("metadata \"", std::string(key), "\""),
                    absl::StrCat(values->size(), " elements, expected ", tokens->size(),
                                 " as in tokenizer.ggml.tokens"));
    };
    MNEME_RETURN_IF_ERROR(
        check_size("tokenizer.ggml.scores", Find<std::vector<double>>("tokenizer.ggml.scores")));
    MNEME_RETURN_IF_ERROR(check_size("tokenizer.ggml.token_type",
                                     Find<std::vector<int64_t>>("tokenizer.ggml.token_type")));
    const std::string_view prefix = "tokenizer.ggml.", suffix = "_token_id";
    for (auto it = content_.metadata.lower_bound(prefix);
         it != content_.metadata.end() && it->first.starts_with(prefix); ++it) {
      if (!it->first.ends_with(suffix)) continue;
      const auto* id = std::get_if<int64_t>(&it->second);
      if (id == nullptr || *id < 0 || static_cast<uint64_t>(*id) >= tokens->size()) {
        return Refuse(absl::StrCat("metadata ", Quoted(it->first)),
                      absl::StrCat(id ? absl::StrCat(*id) : "not an integer",
                                   ", expected a token id below ", tokens->size()));
      }
    }
    return absl::OkStatus();
  }

  absl::Status ParseTensorInfo(uint64_t index) {
    const auto unnamed = [&] { return absl::StrCat("name of tensor ", index); };
    std::string_view name;
    MNEME_RETURN_IF_ERROR(ReadString(name, gguf::kMaxNameBytes, unnamed));
    if (name.empty()) return Refuse(unnamed(), "is empty");
    for (const unsigned char c : name) {
      if (c < 0x20 || c == 0x7F) {
        return Refuse(unnamed(), absl::StrCat(Quoted(name), " contains a control character"));
      }
    }
    if (!IsValidUtf8(name)) return Refuse(unnamed(), "is not valid UTF-8");
    const auto field = [&] { return absl::StrCat("tensor ", Quoted(name)); };

    uint32_t num_dimensions = 0;
    MNEME_RETURN_IF_ERROR(Read(num_dimensions, field));
    if (num_dimensions < 1 || num_dimensions > gguf::kMaxDimensions) {
      return Refuse(field(), absl::StrCat(num_dimensions, " dimensions, expected 1 to ",
                                          gguf::kMaxDimensions));
    }
    Tensor tensor;
    tensor.name = std::string(name);
    tensor.shape.resize(num_dimensions);
    for (uint32_t i = 0; i < num_dimensions; ++i) {
      uint64_t dimension = 0;
      MNEME_RETURN_IF_ERROR(Read(dimension, field));
      if (dimension < 1 || dimension > gguf::kMaxDimension) {
        return Refuse(field(),
                      absl::StrCat("dimension ", i, " is ", dimension, ", expected 1 to 2^40"));
      }
      tensor.shape[num_dimensions - 1 - i] = static_cast<int64_t>(dimension);
    }
    uint32_t type = 0;
    MNEME_RETURN_IF_ERROR(Read(type, field));
    std::string_view type_name = "unknown";
    std::optional<DType> dtype;
    for (const gguf::TensorType& known : gguf::kTensorTypes) {
      if (known.id == type) {
        type_name = known.name;
        dtype = known.dtype;
      }
    }
    if (!dtype) {
      return Refuse(field(), absl::StrCat("type ", type, " (", std::string(type_name),
                                          "), expected one of ", SupportedTypes()));
    }
    tensor.dtype = *dtype;
    const DTypeTraits& traits = Traits(*dtype);
    if (tensor.shape.back() % traits.block_elements != 0) {
      return Refuse(
          field(),
          absl::StrCat("rows of ", tensor.shape.back(), " elements, expected a multiple of ",
                       traits.block_elements, " for type ", std::string(traits.name)));
    }
    size_t size = RowBytes(*dtype, tensor.shape.back());
    for (uint32_t i = 0; i + 1 < num_dimensions; ++i) {
      if (__builtin_mul_overflow(size, static_cast<size_t>(tensor.shape[i]), &size)) {
        return Refuse(field(), "its size overflows 64 bits");
      }
    }
    tensor.size_bytes = size;
    uint64_t offset = 0;
    MNEME_RETURN_IF_ERROR(Read(offset, field));

    const auto [it, inserted] = content_.tensors.try_emplace(tensor.name, std::move(tensor));
    if (!inserted) return Refuse(field(), "the name occurs twice");
    pending_.push_back({&it->second, offset});
    return absl::OkStatus();
  }

  // Tensors must follow each other in the order of their infos, each padded to the alignment: then
  // they can neither overlap nor hide bytes.
  absl::Status PlaceTensors() {
    const auto align_up = [&](uint64_t x) {
      return (x + alignment_ - 1) & ~uint64_t{alignment_ - 1};
    };
    const uint64_t data_start = align_up(position_);
    uint64_t end = position_;  // of what has been placed, unpadded
    uint64_t expected = 0;     // offset in the data section
    for (const PendingTensor& pending : pending_) {
      const auto field = [&] { return absl::StrCat("tensor ", Quoted(pending.tensor->name)); };
      if (pending.offset % alignment_ != 0) {
        return Refuse(field(), absl::StrCat("offset ", pending.offset,
                                            " is not a multiple of the alignment ", alignment_));
      }
      if (pending.offset != expected) {
        return Refuse(field(), absl::StrCat("offset ", pending.offset, " ",
                                            pending.offset < expected ? "overlaps the tensor before"
                                                                      : "leaves a gap",
                                            ", expected ", expected));
      }
      // Both bounded by the file's size up to here, so the sums cannot overflow.
      const uint64_t begin = data_start + expected;
      if (begin > file_.size() || pending.tensor->size_bytes > file_.size() - begin) {
        return Refuse(field(), absl::StrCat("its ", pending.tensor->size_bytes, " bytes at ", begin,
                                            " exceed the file's ", file_.size(), " bytes"));
      }
      pending.tensor->data = file_.data() + begin;
      end = begin + pending.tensor->size_bytes;
      expected = align_up(expected + pending.tensor->size_bytes);
    }
    if (file_.size() - end > alignment_) {
      return Refuse("end of file", absl::StrCat(file_.size() - end,
                                                " bytes after the last tensor, expected at most ",
                                                alignment_, " of padding"));
    }
    return absl::OkStatus();
  }

  const std::span<const std::byte> file_;
  const std::string_view what_;
  size_t position_ = 0;
  uint64_t num_entries_ = 0;
  uint64_t num_tensors_ = 0;
  uint64_t num_array_elements_ = 0;
  uint32_t alignment_ = gguf::kDefaultAlignment;
  GgufContent content_;
  std::vector<PendingTensor> pending_;  // in file order; map nodes do not move
};

class GgufCheckpoint final : public Checkpoint {
 public:
  GgufCheckpoint(std::unique_ptr<MappedFile> file, GgufContent content)
      : file_(std::move(file)), content_(std::move(content)) {}

  Format format() const override { return Format::kGguf; }
  const std::map<std::string, MetadataValue, std::less<>>& metadata() const override {
    return content_.metadata;
  }
  const std::map<std::string, Tensor, std::less<>>& tensors() const override {
    return content_.tensors;
  }
  const std::string& path() const override { return file_->path(); }

  std::string Fingerprint() const override {
    std::call_once(fingerprint_once_, [this] {
      Sha256 hash;
      hash.Add(file_->bytes());
      fingerprint_ = hash.Finish();
    });
    return fingerprint_;
  }

  absl::StatusOr<std::string> ReadSideFile(std::string_view name, size_t max_bytes) const override {
    return absl::NotFoundError(
        absl::StrCat(path(), ": a GGUF file has no ", std::string(name), " beside it"));
  }

 private:
  const std::unique_ptr<MappedFile> file_;
  const GgufContent content_;
  mutable std::once_flag fingerprint_once_;
  mutable std::string fingerprint_;
};

}  // namespace

absl::StatusOr<GgufContent> ParseGguf(std::span<const std::byte> file, std::string_view what) {
  return GgufParser(file, what).Parse();
}

absl::StatusOr<std::shared_ptr<const Checkpoint>> OpenGguf(const std::string& path) {
  MNEME_ASSIGN_OR_RETURN(auto file, MappedFile::Open(path));
  MNEME_ASSIGN_OR_RETURN(auto content, ParseGguf(file->bytes(), path));
  return std::make_shared<const GgufCheckpoint>(std::move(file), std::move(content));
}

}  // namespace mneme::engine
