#include "engine/kernels/plugin.h"

#include "engine/kernels/cuda/cuda.h"
#include "engine/kernels/cuda/runtime.h"
#include "numerics_hash.h"

namespace mneme::engine::cuda {
namespace {

constexpr Kernels kKernels = {
    .name = MNEME_BACKEND_NAME,
    .matmul = MatMul,
    .embed_rows = EmbedRows,
    .rms_norm = RmsNorm,
    .rope = Rope,
    .attention = Attention,
    .block_attention = BlockAttention,
    .copy_rows = CopyRows,
    .store_rows = StoreRows,
    .finite_rows = FiniteRows,
    .silu_mul = SiluMul,
    .add = Add,
    .mul = Mul,
    .activate = Activate,
    .series_activate = SeriesActivate,
    .layer_norm = LayerNorm,
    .token_shift = TokenShift,
    .lerp = Lerp,
    .wkv4 = Wkv4,
    .wkv6 = Wkv6,
    .wkv7_prepare = Wkv7Prepare,
    .wkv7 = Wkv7,
    .wkv7_bonus = Wkv7Bonus,
    .infini_feature_map = InfiniFeatureMap,
    .infini_mix = InfiniMix,
    .short_conv = ShortConv,
    .titans_rates = TitansRates,
    .titans_memory = TitansMemory,
    .titans_attention = TitansAttention,
    .simd_target = [] { return std::string("cuda"); },
};

absl::StatusOr<std::unique_ptr<Device>> MakeDevice(int num_threads, int ordinal) {
  return CudaDevice::Create(kKernels.name, kKernels, num_threads, ordinal);
}

}  // namespace
}  // namespace mneme::engine::cuda

extern "C" __attribute__((visibility("default"))) const mneme::engine::BackendPlugin*
mneme_backend() {
  static constexpr mneme::engine::BackendPlugin kPlugin = {
      .build_id = MNEME_NUMERICS_HASH,
      .kernels = &mneme::engine::cuda::kKernels,
      .device = &mneme::engine::cuda::MakeDevice,
  };
  return &kPlugin;
}
