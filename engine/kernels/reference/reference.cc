#include "engine/kernels/reference/reference.h"

#include <algorithm>
#include <cmath>

#include "engine/kernels/dequantize.h"
#include "engine/kernels/host.h"
#include "engine/kernels/reference/recurrent.h"
#include "engine/kernels/reference/stored_element.h"

namespace mneme::engine {
namespace reference {

void EmbedRows(Exec& exec, const Weight& table, std::span<const int32_t> rows, float* y) {
  for (size_t t = 0; t < rows.size(); ++t) {
    DequantizeRow(table.dtype, table.data + rows[t] * table.row_bytes(), table.columns,
                  y + t * table.columns);
  }
}

void RmsNorm(Exec& exec, const float* x, const float* w, float eps, int64_t T, int64_t D,
             float* y) {
  for (int64_t t = 0; t < T; ++t) {
    const float* row = x + t * D;
    float sum = 0;
    for (int64_t d = 0; d < D; ++d) sum += row[d] * row[d];
    const float scale = 1.0f / std::sqrt(sum / static_cast<float>(D) + eps);
    for (int64_t d = 0; d < D; ++d) y[t * D + d] = row[d] * scale * w[d];
  }
}

void Rope(Exec& exec, const RopeArgs& args) {
  const RopeTables::Table& table =
      Host(exec).rope_tables().Get(Host(exec).pool(), args.positions, args.theta);
  const int64_t pairs = args.rotary_dim / 2;
  for (const RotatedRows& rows : args.rows) {
    for (size_t t = 0; t < args.positions.size(); ++t) {
      for (int64_t h = 0; h < rows.heads; ++h) {
        float* head = rows.x + t * rows.x_stride + h * args.head_dim;
        for (int64_t j = 0; j < pairs; ++j) {
          const bool half = args.layout == RopeLayout::kHalf;
          float& a = head[half ? j : 2 * j];
          float& b = head[half ? j + pairs : 2 * j + 1];
          const float cos = table.cos[t * pairs + j];
          const float sin = table.sin[t * pairs + j];
          const float rotated_a = a * cos - b * sin;
          b = a * sin + b * cos;
          a = rotated_a;
        }
      }
    }
  }
}

void SiluMul(Exec& exec, const float* gate, const float* up, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

void CopyRows(Exec& exec, std::span<const CopyRowsArgs> batch) {
  for (const CopyRowsArgs& args : batch) {
    for (int64_t r = 0; r < args.rows; ++r) {
      for (int64_t i = 0; i < args.width; ++i) {
        args.to[r * args.to_stride + i] = args.from[r * args.from_stride + i];
      }
    }
  }
}

void StoreRows(Exec& exec, std::span<const StoreRowsArgs> batch) {
  for (const StoreRowsArgs& args : batch) {
    for (int64_t r = 0; r < args.rows; ++r) {
      for (int64_t i = 0; i < args.width; ++i) {
        WriteElement(args.x[r * args.x_stride + i], args.dtype, r * args.width + i, args.to);
      }
    }
  }
}

void FiniteRows(Exec& exec, const float* x, int64_t T, int64_t width, uint8_t* finite) {
  for (int64_t t = 0; t < T; ++t) {
    finite[t] = std::all_of(x + t * width, x + (t + 1) * width,
                            [](float value) { return std::isfinite(value); });
  }
}

void Add(Exec& exec, const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

}  // namespace reference

const Kernels& reference_kernels() {
  static constexpr Kernels kKernels = {
      .name = "reference",
      .matmul = reference::MatMul,
      .embed_rows = reference::EmbedRows,
      .rms_norm = reference::RmsNorm,
      .rope = reference::Rope,
      .attention = reference::Attention,
      .block_attention = reference::BlockAttention,
      .copy_rows = reference::CopyRows,
      .store_rows = reference::StoreRows,
      .finite_rows = reference::FiniteRows,
      .silu_mul = reference::SiluMul,
      .add = reference::Add,
      .mul = reference::Mul,
      .activate = reference::Activate,
      .series_activate = reference::SeriesActivate,
      .layer_norm = reference::LayerNorm,
      .token_shift = reference::TokenShift,
      .lerp = reference::Lerp,
      .wkv4 = reference::Wkv4,
      .wkv6 = reference::Wkv6,
      .wkv7_prepare = reference::Wkv7Prepare,
      .wkv7 = reference::Wkv7,
      .wkv7_bonus = reference::Wkv7Bonus,
      .infini_feature_map = reference::InfiniFeatureMap,
      .infini_mix = reference::InfiniMix,
      .short_conv = reference::ShortConv,
      .titans_rates = reference::TitansRates,
      .titans_memory = reference::TitansMemory,
      .titans_attention = reference::TitansAttention,
      .simd_target = [] { return std::string("scalar"); },
  };
  return kKernels;
}

std::unique_ptr<Device> reference_device(int num_threads) {
  const Kernels& kernels = reference_kernels();
  return std::make_unique<HostDevice>(kernels.name, kernels.simd_target, kernels, num_threads);
}

}  // namespace mneme::engine
