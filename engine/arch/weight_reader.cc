#include "engine/arch/weight_reader.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/checkpoint/finite.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/dequantize.h"

namespace mneme::engine {
namespace {

// All elements of a tensor, as f32.
std::vector<float> ValuesOf(const Tensor& tensor) {
  int64_t size = 1;
  for (const int64_t n : tensor.shape) size *= n;
  std::vector<float> values(size);
  DequantizeRow(tensor.dtype, tensor.data, size, values.data());
  return values;
}

}  // namespace

absl::StatusOr<std::vector<int64_t>> WeightReader::Shape(const std::string& name,
                                                         std::string_view expected) {
  const auto it = checkpoint_.tensors().find(name);
  if (it != checkpoint_.tensors().end()) return it->second.shape;
  return absl::NotFoundError(absl::StrCat(checkpoint_.path(), ": tensor \"", name,
                                          "\" is missing, expected shape ", std::string(expected)));
}

absl::StatusOr<Matrix> WeightReader::Matrix(const std::string& name, int64_t rows,
                                            int64_t columns) {
  MNEME_ASSIGN_OR_RETURN(const Weight weight, checkpoint_.GetWeight(name, rows, columns));
  used_.insert(name);
  return Counted(store_.Map(weight));
}

absl::StatusOr<Matrix> WeightReader::Transposed(const std::string& name, int64_t rows,
                                                int64_t columns) {
  MNEME_ASSIGN_OR_RETURN(const std::vector<float> stored, Floats(name, {{columns, rows}}));
  return Transpose(stored.data(), rows, columns);
}

absl::StatusOr<std::vector<Matrix>> WeightReader::TransposedStack(const std::string& name,
                                                                  int64_t count, int64_t rows,
                                                                  int64_t columns) {
  MNEME_ASSIGN_OR_RETURN(const std::vector<float> stored, Floats(name, {{count, columns, rows}}));
  std::vector<engine::Matrix> matrices;
  for (int64_t i = 0; i < count; ++i) {
    matrices.push_back(Transpose(stored.data() + i * columns * rows, rows, columns));
  }
  return matrices;
}

absl::StatusOr<std::vector<Matrix>> WeightReader::MatrixStack(const std::string& name,
                                                              int64_t count, int64_t rows,
                                                              int64_t columns) {
  const int64_t shape[] = {count, rows, columns};
  MNEME_ASSIGN_OR_RETURN(const Tensor* tensor, checkpoint_.GetTensor(name, shape));
  MNEME_RETURN_IF_ERROR(RequireFinite(name, *tensor));
  used_.insert(name);
  std::vector<engine::Matrix> matrices;
  for (int64_t i = 0; i < count; ++i) {
    Weight weight{tensor->dtype, rows, columns, nullptr};
    weight.data = tensor->data + i * weight.size_bytes();
    matrices.push_back(Counted(store_.Map(weight)));
  }
  return matrices;
}

Matrix WeightReader::Transpose(const float* stored, int64_t rows, int64_t columns) {
  // Counted as a matrix, which is how it is used.
  bytes_ -= rows * columns * static_cast<int64_t>(sizeof(float));
  parameters_ -= rows * columns;
  std::vector<float> values(rows * columns);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) values[r * columns + c] = stored[c * rows + r];
  }
  return Counted(store_.PlaceMatrix(values, rows, columns));
}

absl::StatusOr<Vector> WeightReader::Vector(const std::string& name, const Shapes& shapes) {
  MNEME_ASSIGN_OR_RETURN(const std::vector<float> values, Floats(name, shapes));
  return Place(values);
}

absl::StatusOr<std::vector<float>> WeightReader::Dequantized(const std::string& name) const {
  const auto it = checkpoint_.tensors().find(name);
  if (it == checkpoint_.tensors().end()) {
    return absl::NotFoundError(
        absl::StrCat(checkpoint_.path(), ": tensor \"", name, "\" is missing"));
  }
  return ValuesOf(it->second);
}

absl::StatusOr<std::vector<float>> WeightReader::Floats(const std::string& name,
                                                        const Shapes& shapes) {
  const std::vector<int64_t>* shape = &shapes.front();
  const auto it = checkpoint_.tensors().find(name);
  if (it != checkpoint_.tensors().end()) {
    for (const std::vector<int64_t>& accepted : shapes) {
      if (accepted == it->second.shape) shape = &accepted;
    }
  }
  MNEME_ASSIGN_OR_RETURN(const Tensor* tensor, checkpoint_.GetTensor(name, *shape));
  if (IsQuantized(tensor->dtype)) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint_.path(), ": tensor \"", name, "\" has type ",
                     std::string(Traits(tensor->dtype).name), ", expected F32, F16 or BF16"));
  }
  MNEME_RETURN_IF_ERROR(RequireFinite(name, *tensor));
  std::vector<float> values = ValuesOf(*tensor);
  const auto size = static_cast<int64_t>(values.size());
  used_.insert(name);
  bytes_ += size * static_cast<int64_t>(sizeof(float));
  parameters_ += size;
  return values;
}

absl::Status WeightReader::RefuseUnused() const {
  for (const auto& [name, tensor] : checkpoint_.tensors()) {
    if (used_.contains(name)) continue;
    const bool ignored = std::any_of(
        ignored_.begin(), ignored_.end(),
        [&name = name](const std::string& prefix) { return absl::StartsWith(name, prefix); });
    if (ignored) continue;
    return absl::InvalidArgumentError(absl::StrCat(checkpoint_.path(), ": tensor \"", name,
                                                   "\" is not part of the ", architecture_,
                                                   " architecture"));
  }
  return absl::OkStatus();
}

void WeightReader::FillInfo(ArchInfo* info) const {
  info->parameters = parameters_;
  info->weight_bytes = bytes_;
  int64_t most = -1;
  for (int i = 0; i < kNumDTypes; ++i) {
    if (bytes_by_dtype_[i] > most) {
      most = bytes_by_dtype_[i];
      info->weight_dtype = static_cast<DType>(i);
    }
    if (bytes_by_dtype_[i] > 0 && IsQuantized(static_cast<DType>(i))) {
      info->has_quantized_weights = true;
    }
  }
}

Matrix WeightReader::Counted(const engine::Matrix& matrix) {
  const auto bytes = static_cast<int64_t>(matrix.size_bytes());
  bytes_ += bytes;
  bytes_by_dtype_[static_cast<size_t>(matrix.dtype())] += bytes;
  parameters_ += matrix.rows() * matrix.columns();
  matrix_parameters_ += matrix.rows() * matrix.columns();
  return matrix;
}

absl::Status WeightReader::RequireFinite(const std::string& name, const Tensor& tensor) const {
  if (AllFinite(tensor.dtype, {tensor.data, tensor.size_bytes})) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(checkpoint_.path(), ": tensor \"", name,
                                                 "\" holds a NaN or infinity, expected finite"));
}

}  // namespace mneme::engine
