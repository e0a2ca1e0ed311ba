#include "engine/arch/rwkv/rwkv_weights.h"

#include "absl/strings/str_cat.h"
#include "engine/arch/config_reader.h"
#include "engine/core/status_macros.h"

namespace mneme::engine::rwkv {
namespace {

using Shape = std::vector<int64_t>;

// [rows, columns] stored this way or transposed.
absl::StatusOr<Matrix> LoadFactor(WeightReader& reader, const std::string& name, int64_t rows,
                                  int64_t columns, FactorLayout layout) {
  MNEME_ASSIGN_OR_RETURN(const Shape shape,
                         reader.Shape(name, absl::StrCat("[", rows, ", ", columns, "]")));
  const bool transposed =
      rows == columns ? layout == FactorLayout::kInOut : shape == Shape{columns, rows};
  return transposed ? reader.Transposed(name, rows, columns) : reader.Matrix(name, rows, columns);
}

}  // namespace

absl::StatusOr<Vector> LoadVector(WeightReader& reader, const std::string& name, int64_t C) {
  return reader.Vector(name, {{C}, {1, 1, C}});
}

absl::StatusOr<Norm> LoadNorm(WeightReader& reader, const std::string& name, int64_t C) {
  Norm norm;
  MNEME_ASSIGN_OR_RETURN(norm.weight, LoadVector(reader, name + ".weight", C));
  MNEME_ASSIGN_OR_RETURN(norm.bias, LoadVector(reader, name + ".bias", C));
  return norm;
}

absl::StatusOr<LowRank> LoadLowRank(WeightReader& reader, const LowRankNames& names, int64_t C,
                                    FactorLayout layout) {
  LowRank map;
  MNEME_ASSIGN_OR_RETURN(const Shape shape, reader.Shape(names.a, absl::StrCat("[R, ", C, "]")));
  const bool fits = shape.size() == 2 && (shape[0] == C || shape[1] == C);
  const int64_t rank = !fits ? 0 : shape[1] == C ? shape[0] : shape[1];
  if (rank < 1 || rank > kMaxWidth) {
    return absl::InvalidArgumentError(absl::StrCat(
        reader.path(), ": tensor \"", names.a, "\": expected shape [R, ", C, "] or [", C, ", R]"));
  }
  MNEME_ASSIGN_OR_RETURN(map.a, LoadFactor(reader, names.a, rank, C, layout));
  MNEME_ASSIGN_OR_RETURN(map.b, LoadFactor(reader, names.b, C, rank, layout));
  if (!names.bias.empty()) {
    MNEME_ASSIGN_OR_RETURN(map.bias, LoadVector(reader, names.bias, C));
  }
  return map;
}

absl::Status SetHeads(WeightReader& reader, const std::string& name, Config* config) {
  MNEME_ASSIGN_OR_RETURN(const Shape shape, reader.Shape(name, "[H, S]"));
  const int64_t C = config->width;
  if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1 || shape[0] > C || shape[1] > C ||
      shape[0] * shape[1] != C) {
    return absl::InvalidArgumentError(absl::StrCat(
        reader.path(), ": tensor \"", name, "\": expected shape [H, S] with H * S = width ", C));
  }
  config->heads = shape[0];
  config->head_size = shape[1];
  return absl::OkStatus();
}

absl::Status LoadEnds(WeightReader& reader, const EndNames& names, Model* model) {
  const int64_t C = model->config.width, V = model->config.vocab_size;
  ArchInfo& info = model->info;
  info.layer_matrix_parameters = reader.matrix_parameters();
  MNEME_ASSIGN_OR_RETURN(model->embedding_norm, LoadNorm(reader, names.embedding_norm, C));
  MNEME_ASSIGN_OR_RETURN(model->final_norm, LoadNorm(reader, names.final_norm, C));
  MNEME_ASSIGN_OR_RETURN(model->head, reader.Matrix(names.head, V, C));
  info.decode_weight_bytes = reader.bytes();
  MNEME_ASSIGN_OR_RETURN(model->embedding, reader.Matrix(names.embedding, V, C));
  info.decode_weight_bytes += static_cast<int64_t>(model->embedding.row_bytes());
  MNEME_RETURN_IF_ERROR(reader.RefuseUnused());
  reader.FillInfo(&info);
  return absl::OkStatus();
}

}  // namespace mneme::engine::rwkv
