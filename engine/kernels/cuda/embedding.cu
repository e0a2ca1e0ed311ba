// Rows of an embedding table (embedding.h): block (token, part of the row), a thread per four
// elements. Eight threads read a quantised piece each for itself, from the same cache lines, and
// write side by side.
#include "engine/kernels/cuda/cuda.h"
#include "engine/kernels/cuda/device.cuh"
#include "engine/kernels/cuda/launch.h"
#include "engine/kernels/cuda/weights.cuh"

namespace mneme::engine::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void EmbedRowsKernel(DType type, const uint8_t* table, int64_t row_bytes, int64_t D,
                                const __grid_constant__ List<int32_t> rows, float* y) {
  const int64_t four = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  const int64_t first = 4 * four;
  if (first >= D) return;
  const uint8_t* row = table + rows[blockIdx.x] * row_bytes;
  float* out = y + blockIdx.x * D;
  if (!IsBlockType(type)) {
    for (int64_t k = first; k < D && k < first + 4; ++k) out[k] = LoadFloat(type, row, k);
    return;
  }
  const ByteReader reader{type};
  const Piece piece = reader.Load(row, four / kPieceWords);
  const int word = static_cast<int>(four % kPieceWords);
  uint32_t codes = piece.word[0];  // chosen without an index, which would put them into memory
#pragma unroll
  for (int j = 1; j < kPieceWords; ++j) codes = word == j ? piece.word[j] : codes;
  float value[4];
  Dequantize(reader, codes, word < kPieceWords / 2 ? piece.scale[0] : piece.scale[1], piece.min,
             value);
#pragma unroll
  for (int i = 0; i < 4; ++i) out[first + i] = value[i];
}

}  // namespace

void EmbedRows(Exec& exec, const Weight& table, std::span<const int32_t> rows, float* y) {
  if (rows.empty()) return;
  CudaDevice& device = Cuda(exec);
  assert(BlockBytes(table.dtype) == Traits(table.dtype).block_bytes);
  Launch(device, EmbedRowsKernel,
         dim3(static_cast<unsigned>(rows.size()), Blocks(table.columns, 4 * kThreads)), kThreads, 0,
         table.dtype, reinterpret_cast<const uint8_t*>(table.data),
         static_cast<int64_t>(table.row_bytes()), table.columns, ListOf(device, rows), y);
}

}  // namespace mneme::engine::cuda
