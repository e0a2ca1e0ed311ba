#include "engine/arch/translated_checkpoint.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/checkpoint/finite.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/dequantize.h"

namespace mneme::engine {
namespace {

// Shapes come from tensors that fit into a file: products do not overflow.
int64_t Elements(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (const int64_t dimension : shape) n *= dimension;
  return n;
}

absl::Status Bad(const Checkpoint& checkpoint, const Tensor& tensor, const std::string& what) {
  return absl::InvalidArgumentError(
      absl::StrCat(checkpoint.path(), ": tensor \"", tensor.name, "\" ", what));
}

}  // namespace

absl::StatusOr<const Tensor*> TranslatedCheckpoint::SourceTensor(std::string_view name) const {
  const auto it = source_->tensors().find(name);
  if (it != source_->tensors().end()) return &it->second;
  return absl::NotFoundError(
      absl::StrCat(path(), ": tensor \"", std::string(name), "\" is missing"));
}

absl::Status TranslatedCheckpoint::Add(std::string_view from, std::string_view to) {
  MNEME_ASSIGN_OR_RETURN(const Tensor* tensor, SourceTensor(from));
  return AddReshaped(from, to, tensor->shape);
}

absl::Status TranslatedCheckpoint::AddReshaped(std::string_view from, std::string_view to,
                                               std::vector<int64_t> shape) {
  MNEME_ASSIGN_OR_RETURN(const Tensor* tensor, SourceTensor(from));
  const bool cuts_blocks = IsQuantized(tensor->dtype) && (shape.empty() || tensor->shape.empty() ||
                                                          shape.back() != tensor->shape.back());
  if (Elements(shape) != Elements(tensor->shape) || cuts_blocks) {
    return Bad(*this, *tensor,
               absl::StrCat("has shape [", absl::StrJoin(tensor->shape, ", "), "] of type ",
                            std::string(Traits(tensor->dtype).name), ", expected ",
                            absl::StrJoin(shape, " x "), " elements"));
  }
  Tensor view = *tensor;
  view.shape = std::move(shape);
  tensors_.insert_or_assign(std::string(to), std::move(view));
  used_.emplace(from);
  return absl::OkStatus();
}

absl::Status TranslatedCheckpoint::AddParts(std::string_view from, std::span<const std::string> to,
                                            const std::vector<int64_t>& shape) {
  MNEME_ASSIGN_OR_RETURN(const Tensor* tensor, SourceTensor(from));
  const int64_t n = Elements(shape), count = static_cast<int64_t>(to.size());
  if (IsQuantized(tensor->dtype) || Elements(tensor->shape) != n * count) {
    return Bad(*this, *tensor,
               absl::StrCat("has shape [", absl::StrJoin(tensor->shape, ", "), "] of type ",
                            std::string(Traits(tensor->dtype).name), ", expected ", n * count,
                            " elements of type F32, F16 or BF16"));
  }
  for (int64_t i = 0; i < count; ++i) {
    Tensor part = *tensor;
    part.data += RowBytes(tensor->dtype, i * n);
    part.size_bytes = RowBytes(tensor->dtype, n);
    part.shape = shape;
    tensors_.insert_or_assign(to[i], std::move(part));
  }
  used_.emplace(from);
  return absl::OkStatus();
}

void TranslatedCheckpoint::AddValues(std::string_view from, std::string_view to,
                                     std::vector<int64_t> shape, std::vector<float> values) {
  values_.push_back(std::move(values));
  const std::vector<float>& held = values_.back();
  tensors_.insert_or_assign(std::string(to),
                            Tensor{.name = std::string(from),
                                   .dtype = DType::kF32,
                                   .shape = std::move(shape),
                                   .data = reinterpret_cast<const std::byte*>(held.data()),
                                   .size_bytes = held.size() * sizeof(float)});
  used_.emplace(from);
}

absl::StatusOr<std::vector<float>> TranslatedCheckpoint::Floats(std::string_view from) const {
  MNEME_ASSIGN_OR_RETURN(const Tensor* tensor, SourceTensor(from));
  if (IsQuantized(tensor->dtype)) {
    return Bad(*this, *tensor,
               absl::StrCat("has type ", std::string(Traits(tensor->dtype).name),
                            ", expected F32, F16 or BF16"));
  }
  if (!AllFinite(tensor->dtype, {tensor->data, tensor->size_bytes})) {
    return Bad(*this, *tensor, "holds a NaN or infinity, expected finite values");
  }
  std::vector<float> values(static_cast<size_t>(Elements(tensor->shape)));
  DequantizeRow(tensor->dtype, tensor->data, static_cast<int64_t>(values.size()), values.data());
  return values;
}

absl::Status TranslatedCheckpoint::RefuseUnused(std::string_view architecture) const {
  for (const auto& [name, tensor] : source_->tensors()) {
    if (used_.contains(name)) continue;
    return Bad(*this, tensor,
               absl::StrCat("is not part of the ", std::string(architecture), " architecture"));
  }
  return absl::OkStatus();
}

absl::Status TranslatedCheckpoint::WithSourceNames(const absl::Status& status) const {
  std::string message(status.message());
  for (const auto& [name, tensor] : tensors_) {
    const std::string quoted = absl::StrCat("\"", name, "\"");
    const size_t at = message.find(quoted);
    if (at != message.npos) {
      message.replace(at, quoted.size(), absl::StrCat("\"", tensor.name, "\""));
      break;  // no more than one is named
    }
  }
  return absl::Status(status.code(), message);
}

}  // namespace mneme::engine
