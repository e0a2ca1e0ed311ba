// Takes a checkpoint's tensors by name and shape, counts them, and refuses what nobody asked for.
//
// Used while an architecture is created, by one thread. Every failure names the tensor and what was
// expected.
#pragma once

#include <array>
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/arch.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/core/dtype.h"
#include "engine/core/rows.h"
#include "engine/device/weight_store.h"

namespace mneme::engine {

class WeightReader {
 public:
  // `store` keeps what is not used where it lies; the checkpoint must outlive the rest.
  WeightReader(const Checkpoint& checkpoint, std::string_view architecture, WeightStore& store)
      : checkpoint_(checkpoint), architecture_(architecture), store_(store) {}

  // The file or folder, for messages.
  const std::string& path() const { return checkpoint_.path(); }
  bool Has(std::string_view name) const { return checkpoint_.tensors().contains(name); }
  // The tensor's shape; NOT_FOUND if it is missing, with `expected` ("[R, 36]") in the message.
  absl::StatusOr<std::vector<int64_t>> Shape(const std::string& name, std::string_view expected);

  // A matrix [rows, columns] where it lies.
  absl::StatusOr<engine::Matrix> Matrix(const std::string& name, int64_t rows, int64_t columns);
  // A matrix stored as [columns, rows], used as [rows, columns]. Float types only.
  absl::StatusOr<engine::Matrix> Transposed(const std::string& name, int64_t rows, int64_t columns);
  // `count` such matrices stored as one tensor [count, columns, rows].
  absl::StatusOr<std::vector<engine::Matrix>> TransposedStack(const std::string& name,
                                                              int64_t count, int64_t rows,
                                                              int64_t columns);
  // `count` matrices [rows, columns] where they lie, in one tensor [count, rows, columns].
  absl::StatusOr<std::vector<engine::Matrix>> MatrixStack(const std::string& name, int64_t count,
                                                          int64_t rows, int64_t columns);

  using Shapes = std::vector<std::vector<int64_t>>;
  // A float tensor of one of `shapes`; all values finite. The message names the first one.
  absl::StatusOr<engine::Vector> Vector(const std::string& name, const Shapes& shapes);
  // The same to compute with; what comes of it goes to Place.
  absl::StatusOr<std::vector<float>> Floats(const std::string& name, const Shapes& shapes);
  engine::Vector Place(std::span<const float> values) { return store_.Place(values); }
  // The values of a matrix that was taken, [rows, columns].
  absl::StatusOr<std::vector<float>> Dequantized(const std::string& name) const;

  // Every tensor below `prefix` may be there and is not used.
  void Ignore(std::string prefix) { ignored_.push_back(std::move(prefix)); }
  // The tensor of exactly this name may be there and is not used.
  void IgnoreTensor(const std::string& name) { used_.insert(name); }
  // INVALID_ARGUMENT for the first tensor that nobody took.
  absl::Status RefuseUnused() const;

  // Bytes and parameters of matrices so far, to tell the layers from embedding and head.
  int64_t bytes() const { return bytes_; }
  int64_t matrix_parameters() const { return matrix_parameters_; }
  // parameters, weight_bytes, weight_dtype and has_quantized_weights.
  void FillInfo(ArchInfo* info) const;

 private:
  engine::Matrix Counted(const engine::Matrix& matrix);
  absl::Status RequireFinite(const std::string& name, const Tensor& tensor) const;
  // From `stored` [columns, rows], which Floats has counted.
  engine::Matrix Transpose(const float* stored, int64_t rows, int64_t columns);

  const Checkpoint& checkpoint_;
  const std::string architecture_;
  WeightStore& store_;
  std::set<std::string, std::less<>> used_;
  std::vector<std::string> ignored_;
  int64_t bytes_ = 0;
  int64_t parameters_ = 0;
  int64_t matrix_parameters_ = 0;
  std::array<int64_t, kNumDTypes> bytes_by_dtype_{};
};

}  // namespace mneme::engine
