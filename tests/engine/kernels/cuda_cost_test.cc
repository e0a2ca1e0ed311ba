// The formulas of engine/kernels/cuda/cost.cc against what the emulator sees the launchers and
// kernels of the CUDA backend do: launches and copies exactly, bytes to the pages that they lie in.
// Run with CUEMU_TOUCHED=1.
#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/kernels/cuda/cost.h"
#include "engine/kernels/cuda/launches.h"
#include "engine/kernels/exec.h"
#include "engine/kernels/kernels.h"
#include "tests/engine/kernels/random_operands.h"
#include "tests/support/emulated_cuda.h"

namespace mneme::engine::cuda {
namespace {

class CudaCostTest : public testing::Test {
 protected:
  CudaCostTest() {
    under_ = test::EmulatedCudaDevice();
    device_ = std::make_unique<CostDevice>(
        CostDevice::Observer{
            .after = [this](std::string_view op, const Cost& cost) { After(op, cost); },
            .before = [this] { before_ = test::EmulatedCudaCounts(); }},
        *under_);
  }

  // ---- operands, of random numbers; freed with the test

  std::byte* Bytes(size_t size) {
    Block& block = blocks_.emplace_back(device_->memory().Allocate(size));
    return block.address();
  }
  float* Floats(int64_t n) {
    const std::vector<float> values = random_.Floats(n);
    Bytes(n * sizeof(float));
    device_->memory().Write(blocks_.back(), 0, std::as_bytes(std::span(values)));
    EXPECT_TRUE(device_->Wait().ok());
    return reinterpret_cast<float*>(blocks_.back().address());
  }
  Weight WeightOf(DType dtype, int64_t rows, int64_t columns) {
    const TestWeight weight(dtype, rows, columns, 7, /*misalign=*/0);
    Weight there = weight.view();
    Bytes(there.size_bytes());
    device_->memory().Write(blocks_.back(), 0, {there.data, there.size_bytes()});
    EXPECT_TRUE(device_->Wait().ok());
    there.data = blocks_.back().address();
    return there;
  }
  Exec ExecOf(Contract contract = Contract::kF32) { return Exec(*device_, contract); }
  const Kernels& kernels() const { return device_->kernels(); }

  std::byte* Zeros(size_t size) { return Bytes(size); }
  // The operands so far.
  void Forget() { blocks_.clear(); }

 public:
  // Ops that some test has called.
  static std::set<std::string>& Seen() {
    static auto* const seen = new std::set<std::string>;
    return *seen;
  }

 private:
  void After(std::string_view op, const Cost& cost) {
    EXPECT_TRUE(device_->Wait().ok());
    const CuemuCounts& now = test::EmulatedCudaCounts();
    SCOPED_TRACE(std::string(op));
    Seen().insert(std::string(op));
    EXPECT_EQ(now.launches - before_.launches, cost.launches);
    EXPECT_EQ(now.copies - before_.copies, cost.copies);
    ExpectPages(now.pages_read - before_.pages_read, cost.bytes_read, "read");
    ExpectPages(now.pages_written - before_.pages_written, cost.bytes_written, "written");
    EXPECT_GT(cost.bytes(), 4 * Slack()) << "too little to be compared";
    EXPECT_GT(cost.blocks, 0);
    EXPECT_GT(cost.steps, 0);
    EXPECT_GT(cost.f32_flops + cost.int8_ops + cost.bytes_written, 0);
  }
  // Operands begin somewhere in a page; lists and scratch have a page of their own.
  int64_t Slack() const { return (static_cast<int64_t>(blocks_.size()) + 2) * kCuemuPage; }
  void ExpectPages(int64_t pages, int64_t bytes, const char* what) const {
    EXPECT_GE(pages * kCuemuPage, bytes - bytes / 20) << what;
    EXPECT_LE(pages * kCuemuPage, bytes + bytes / 20 + 2 * Slack()) << what;
  }

  Random random_{1};
  std::unique_ptr<Device> under_;
  std::unique_ptr<CostDevice> device_;
  std::vector<Block> blocks_;
  CuemuCounts before_;
};

constexpr float kEps = 1e-5f;

class Products : public CudaCostTest, public testing::WithParamInterface<DType> {};

TEST_P(Products, Cost) {
  constexpr int64_t N = 256, K = 1024, kMost = 40;
  const float* x = Floats(kMost * K);
  float* y = Floats(kMost * N);
  float* z = Floats(kMost * N);
  const float* bias = Floats(N);
  const Weight weight = WeightOf(GetParam(), N, K), other = WeightOf(GetParam(), N, K);
  for (const Contract contract : {Contract::kF32, Contract::kInt8}) {
    Exec exec = ExecOf(contract);
    for (const int64_t T : {int64_t{1}, int64_t{2}, int64_t{4}, kMost}) {
      SCOPED_TRACE(testing::Message() << "T " << T);
      const std::array<MatMulTask, 2> tasks = {
          {{.weight = weight, .y = y, .y_stride = N},
           {.weight = other, .y = z, .y_stride = N, .accumulate = true, .bias = bias}}};
      kernels().matmul(exec, tasks, x, K, T);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Products,
                         testing::Values(DType::kF32, DType::kF16, DType::kQ8_0, DType::kQ4_K),
                         [](const auto& test) { return std::string(Traits(test.param).name); });

// More than one launch takes.
TEST_F(CudaCostTest, ManyProducts) {
  constexpr int64_t N = 64, K = 1024;
  const float* x = Floats(K);
  std::vector<MatMulTask> tasks;
  for (int i = 0; i < 9; ++i) {
    tasks.push_back({.weight = WeightOf(DType::kF32, N, K), .y = Floats(N), .y_stride = N});
  }
  Exec exec = ExecOf();
  kernels().matmul(exec, tasks, x, K, 1);
}

TEST_F(CudaCostTest, Embedding) {
  constexpr int64_t V = 1100, D = 256;
  const Weight table = WeightOf(DType::kF16, V, D);
  float* y = Floats(V * D);
  Exec exec = ExecOf();
  // The first are few enough for a launch's arguments.
  for (const size_t count : {FewOf<int32_t>(), FewOf<int32_t>() + 1, size_t{V}}) {
    std::vector<int32_t> rows(count);
    for (size_t i = 0; i < count; ++i) rows[i] = static_cast<int32_t>(i);
    kernels().embed_rows(exec, table, rows, y);
  }
}

TEST_F(CudaCostTest, RowByRow) {
  constexpr int64_t T = 64, D = 512, n = T * D;
  float* x = Floats(n);
  float* y = Floats(n);
  const float* z = Floats(n);
  const float* w = Floats(3 * D);
  const float* b = Floats(3 * D);
  Exec exec = ExecOf();
  kernels().rms_norm(exec, x, w, kEps, T, D, y);
  kernels().rms_norm(exec, x, w, kEps, T, D, x);
  kernels().layer_norm(exec, {x, w, b, kEps, T, D, 4, y});
  kernels().silu_mul(exec, x, z, n, y);
  kernels().add(exec, x, n, y);
  kernels().mul(exec, x, n, y);
  kernels().activate(exec, Activation::kTanh, x, n, y);
  const Activation series[] = {Activation::kRelu, Activation::kSilu, Activation::kTanh};
  kernels().series_activate(exec, {x, w, b, series, T, D, y});
  kernels().infini_feature_map(exec, x, n, y);
  const float* dynamic = Floats(n);
  float* other = Floats(n);
  const std::vector<LerpArgs> blends = {{.x = x, .delta = z, .mu = w, .T = T, .C = D, .y = y},
                                        {x, z, b, dynamic, D, T, D, other}};
  kernels().lerp(exec, std::span(blends).first(1));
  kernels().lerp(exec, blends);
  kernels().titans_rates(exec, {.heads = D / 4, .theta_max = 1}, T * 4 / 3, y);
}

TEST_F(CudaCostTest, Rotation) {
  constexpr int64_t T = 48, kHeads = 8, kDim = 64;
  float* x = Floats(T * kHeads * kDim);
  float* k = Floats(T * kHeads / 2 * kDim);
  std::vector<double> theta(kDim / 2);
  for (size_t j = 0; j < theta.size(); ++j) theta[j] = 1.0 / static_cast<double>(1 + j);
  Exec exec = ExecOf();
  // Angles stay on the device while four lists of positions take turns; a fifth drives one out.
  for (const int64_t first : {0, 0, 9, 0, 1, 2, 3, 0, 9}) {
    std::vector<int64_t> positions(T);
    for (int64_t t = 0; t < T; ++t) positions[t] = first + t;
    const std::array<RotatedRows, 2> rows = {
        {{x, kHeads * kDim, kHeads}, {k, kHeads / 2 * kDim, kHeads / 2}}};
    kernels().rope(exec, {.rows = rows,
                          .head_dim = kDim,
                          .rotary_dim = kDim,
                          .positions = positions,
                          .theta = theta});
  }
}

TEST_F(CudaCostTest, Copies) {
  constexpr int64_t kRows = 8, kWidth = 512;
  const size_t many = FewOf<CopyRowsArgs>() + 1;
  const float* from = Floats(static_cast<int64_t>(many) * kRows * kWidth);
  float* to = Floats(static_cast<int64_t>(many) * kRows * kWidth);
  Exec exec = ExecOf();
  for (const size_t count : {size_t{4}, many - 1, many}) {
    std::vector<CopyRowsArgs> copies;
    std::vector<StoreRowsArgs> stores;
    for (size_t i = 0; i < count; ++i) {
      const size_t at = i * kRows * kWidth;
      copies.push_back({from + at, kWidth, to + at, kWidth, kRows, kWidth});
      stores.push_back({from + at, kWidth, kRows, kWidth, DType::kF16,
                        reinterpret_cast<std::byte*>(to) + at * sizeof(uint16_t)});
    }
    kernels().copy_rows(exec, copies);
    kernels().store_rows(exec, stores);
  }
  const CopyRowsArgs repeated{from, 0, to, kWidth, 128, kWidth};
  kernels().copy_rows(exec, {&repeated, 1});
  std::vector<uint8_t> finite(128);
  kernels().finite_rows(exec, from, 128, kWidth, finite.data());
}

struct AttentionCase {
  int64_t heads, kv_heads, sinks, window, position, T;
};

TEST_F(CudaCostTest, Attention) {
  constexpr int64_t kDim = 64;
  Exec exec = ExecOf();
  for (const DType dtype : {DType::kF16, DType::kF32}) {
    // Rows of a block: 4, 8, 32. Partials: one and several. Beyond the window, and from nothing.
    for (const AttentionCase& c : {AttentionCase{4, 4, 4, 300, 200, 1},
                                   {8, 2, 4, 1500, 1400, 1},
                                   {16, 2, 0, 300, 700, 1},
                                   {4, 2, 8, 700, 600, 40},
                                   {4, 4, 4, 64, 0, 100},
                                   {4, 4, 4, 90, 2, 60}}) {
      SCOPED_TRACE(testing::Message() << c.heads << " heads, window " << c.window << ", position "
                                      << c.position << ", T " << c.T);
      const int64_t width = c.heads * kDim, kv_width = c.kv_heads * kDim;
      const size_t ring = (c.sinks + c.window) * kv_width * Traits(dtype).block_bytes;
      const AttentionArgs args{.k_ring = Zeros(ring),
                               .v_ring = Zeros(ring),
                               .ring_dtype = dtype,
                               .sinks = c.sinks,
                               .window = c.window,
                               .position = c.position,
                               .T = c.T,
                               .query_heads = c.heads,
                               .kv_heads = c.kv_heads,
                               .head_dim = kDim,
                               .scale = 0.1f,
                               .q = Floats(c.T * width),
                               .q_sink = Floats(c.T * width),
                               .q_stride = width,
                               .k = Floats(c.T * kv_width),
                               .v = Floats(c.T * kv_width),
                               .kv_stride = kv_width,
                               .out = Floats(c.T * width),
                               .out_stride = width};
      kernels().attention(exec, {&args, 1});
      Forget();
    }
  }
}

TEST_F(CudaCostTest, AttentionOfSequencesOfSeveralKinds) {
  constexpr int64_t kDim = 64, kHeads = 4, kWidth = kHeads * kDim, kWindow = 600;
  Exec exec = ExecOf();
  std::vector<AttentionArgs> batch;
  for (const int64_t T : {1, 2, 30, 1}) {
    const size_t ring = kWindow * kWidth * sizeof(float);
    batch.push_back({.k_ring = Zeros(ring),
                     .v_ring = Zeros(ring),
                     .ring_dtype = DType::kF32,
                     .window = kWindow,
                     .position = 520,
                     .T = T,
                     .query_heads = kHeads,
                     .kv_heads = kHeads,
                     .head_dim = kDim,
                     .scale = 0.1f,
                     .q = Floats(T * kWidth),
                     .q_sink = Floats(T * kWidth),
                     .q_stride = kWidth,
                     .k = Floats(T * kWidth),
                     .v = Floats(T * kWidth),
                     .kv_stride = kWidth,
                     .out = Floats(T * kWidth),
                     .out_stride = kWidth});
  }
  kernels().attention(exec, batch);
}

TEST_F(CudaCostTest, BlockAttention) {
  constexpr int64_t kDim = 64, kHeads = 4, kWidth = kHeads * kDim;
  Exec exec = ExecOf();
  for (const auto& [T, first, second, causal] :
       {std::tuple<int64_t, int64_t, int64_t, bool>{1, 200, 60, true},
        {2, 300, 260, true},
        {40, 100, 48, true},
        {12, 500, 64, false}}) {
    SCOPED_TRACE(testing::Message() << "T " << T);
    BlockAttentionArgs args{.dtype = DType::kF32,
                            .causal = causal,
                            .T = T,
                            .query_heads = kHeads,
                            .kv_heads = kHeads,
                            .key_dim = kDim,
                            .value_dim = kDim,
                            .scale = 0.1f,
                            .q = Floats(T * kWidth),
                            .q_stride = kWidth,
                            .out = Floats(T * kWidth),
                            .out_stride = kWidth};
    const size_t row = kWidth * sizeof(float);
    args.runs[0] = {Zeros(first * row), Zeros(first * row), first};
    args.runs[1] = {Zeros(second * row), Zeros(second * row), second};
    kernels().block_attention(exec, {&args, 1});
    Forget();
  }
}

TEST_F(CudaCostTest, TitansAttention) {
  constexpr int64_t kDim = 64, kHeads = 8, kWidth = kHeads * kDim, kPersistent = 4;
  Exec exec = ExecOf();
  for (const DType dtype : {DType::kF16, DType::kF32}) {
    for (const bool segments : {false, true}) {
      for (const auto& [position, T] :
           {std::pair<int64_t, int64_t>{300, 1}, {160, 60}, {0, 100}, {900, 100}}) {
        constexpr int64_t kWindow = 320;
        if (segments && position % kWindow + T > kWindow) continue;
        SCOPED_TRACE(testing::Message() << "position " << position << ", T " << T);
        const TitansAttentionLayer layer{.heads = kHeads,
                                         .head_dim = kDim,
                                         .scale = 0.1f,
                                         .persistent_tokens = kPersistent,
                                         .persistent_k = Floats(kPersistent * kWidth),
                                         .persistent_v = Floats(kPersistent * kWidth),
                                         .window = kWindow,
                                         .segments = segments,
                                         .dtype = dtype};
        TitansAttentionArgs args{.position = position,
                                 .rows = T,
                                 .num_streams = segments ? 2 : 1,
                                 .q = Floats(T * kWidth),
                                 .q_rotated = Floats(T * kWidth),
                                 .out = Floats(T * kWidth)};
        const size_t ring = (kWindow - 1) * kWidth * Traits(dtype).block_bytes;
        for (int i = 0; i < args.num_streams; ++i) {
          args.streams[i] = {Zeros(ring), Zeros(ring), Floats(T * kWidth), Floats(T * kWidth)};
        }
        kernels().titans_attention(exec, layer, {&args, 1});
        Forget();
      }
    }
  }
}

TEST_F(CudaCostTest, TokenShift) {
  constexpr int64_t C = 4096;
  Exec exec = ExecOf();
  for (const size_t count : {size_t{1}, FewOf<TokenShiftArgs>(), FewOf<TokenShiftArgs>() + 1}) {
    std::vector<TokenShiftArgs> batch;
    const int64_t T = count == 1 ? 9 : 1;
    for (size_t i = 0; i < count; ++i) {
      batch.push_back({Floats(T * C), Floats(C), Floats(T * C), T, C});
    }
    kernels().token_shift(exec, batch);
    Forget();
  }
}

TEST_F(CudaCostTest, ScansOfVectors) {
  constexpr int64_t C = 8192;
  Exec exec = ExecOf();
  for (const int64_t T : {1, 11}) {
    std::vector<Wkv4Args> batch;
    const float* decay = Floats(C);
    const float* bonus = Floats(C);
    for (int i = 0; i < 2; ++i) {
      batch.push_back({Floats(C), Floats(C), Floats(C), decay, bonus, Floats(T * C), Floats(T * C),
                       Floats(T * C), T, C});
    }
    kernels().wkv4(exec, batch);
    Forget();
  }
}

class MatrixScans : public CudaCostTest, public testing::WithParamInterface<int64_t> {};

TEST_P(MatrixScans, Cost) {
  const int64_t N = GetParam(), heads = 2048 / N, C = heads * N;
  Exec exec = ExecOf();
  for (const int64_t T : {1, 9}) {
    SCOPED_TRACE(testing::Message() << "T " << T);
    const float* bonus = Floats(C);
    float* state = Floats(C * N);
    std::vector<float*> rows;
    for (int i = 0; i < 8; ++i) rows.push_back(Floats(T * C));
    const Wkv6Args fixed{state, rows[0], rows[1], rows[2], bonus, 0, bonus, rows[7], T, heads, N};
    kernels().wkv6(exec, {&fixed, 1});
    const Wkv6Args free{state, rows[0], rows[1], rows[2], rows[3], C, bonus, rows[7], T, heads, N};
    kernels().wkv6(exec, {&free, 1});
    const Wkv7Args args{state,   rows[0], rows[1], rows[2], rows[3], rows[4],
                        rows[5], rows[7], T,       heads,   N};
    kernels().wkv7(exec, {&args, 1});
    Forget();
  }
}

INSTANTIATE_TEST_SUITE_P(HeadSizes, MatrixScans, testing::Values(16, 64, 128, 256, 512));

TEST_F(CudaCostTest, ScansOfMoreThanTheArgumentsHold) {
  constexpr int64_t N = 32, kHeads = 2, C = kHeads * N;
  Exec exec = ExecOf();
  const size_t count = FewOf<Wkv7Args>() + 1;
  const auto total = static_cast<int64_t>(count);
  std::vector<float*> rows;
  float* state = Floats(total * C * N);
  for (int i = 0; i < 7; ++i) rows.push_back(Floats(total * C));
  std::vector<Wkv7Args> batch;
  for (int64_t i = 0; i < total; ++i) {
    const int64_t at = i * C;
    batch.push_back({state + at * N, rows[0] + at, rows[1] + at, rows[2] + at, rows[3] + at,
                     rows[4] + at, rows[5] + at, rows[6] + at, 1, kHeads, N});
  }
  kernels().wkv7(exec, batch);
}

TEST_F(CudaCostTest, AroundTheScan) {
  constexpr int64_t T = 24, N = 64, kHeads = 16, C = kHeads * N;
  std::vector<float*> rows;
  for (int i = 0; i < 7; ++i) rows.push_back(Floats(T * C));
  const float* k_k = Floats(C);
  const float* k_a = Floats(C);
  Exec exec = ExecOf();
  kernels().wkv7_prepare(exec, {rows[0], rows[1], rows[2], rows[3], rows[4], nullptr, nullptr, k_k,
                                k_a, T, kHeads, N});
  kernels().wkv7_prepare(exec, {rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6], k_k,
                                k_a, T, kHeads, N});
  kernels().wkv7_bonus(exec, {rows[0], rows[1], rows[2], rows[3], k_k, rows[4], T, kHeads, N});
}

TEST_F(CudaCostTest, InfiniMemory) {
  constexpr int64_t H = 8, kHeads = 4, dk = 64, dv = 128;
  Exec exec = ExecOf();
  for (const bool delta : {false, true}) {
    for (const bool completes : {false, true}) {
      for (const int64_t T : {1, 37}) {
        SCOPED_TRACE(testing::Message()
                     << "delta " << delta << ", completes " << completes << ", T " << T);
        const InfiniMixShape shape{H, kHeads, dk, dv, kEps, delta, Floats(H), Floats(H)};
        const InfiniMixArgs args{.memory = Floats(kHeads * dk * dv),
                                 .normalizer = Floats(kHeads * dk),
                                 .pending_memory = Floats(kHeads * dk * dv),
                                 .pending_normalizer = Floats(kHeads * dk),
                                 .rows = T,
                                 .completes = completes,
                                 .sq = Floats(T * H * dk),
                                 .sk = Floats(T * kHeads * dk),
                                 .v = Floats(T * kHeads * dv),
                                 .local = Floats(T * H * dv),
                                 .mixed = Floats(T * H * dv)};
        kernels().infini_mix(exec, shape, {&args, 1});
        Forget();
      }
    }
  }
}

TEST_F(CudaCostTest, ShortConvolution) {
  constexpr int64_t kTaps = 4, kWidth = 4096;
  Exec exec = ExecOf();
  for (const int64_t norm_heads : {0, 16}) {
    for (const int64_t T : {1, 10}) {
      std::vector<ShortConvArgs> batch;
      const float* taps = Floats(kTaps * kWidth);
      for (int i = 0; i < 2; ++i) {
        batch.push_back({taps, kTaps, kWidth, norm_heads, Floats((kTaps - 1) * kWidth), 7, T,
                         Floats(T * kWidth), Floats(T * kWidth)});
      }
      kernels().short_conv(exec, batch);
      Forget();
    }
  }
}

struct MemoryCase {
  bool token_mode;
  bool writes;
  int64_t position, T;
};

TEST_F(CudaCostTest, TitansMemory) {
  constexpr int64_t H = 2, e = 96, h = 192, b = 16, row = H * e;
  Exec exec = ExecOf();
  // Of a chunk: its middle, its end, all of it and some more; read alone; token by token.
  for (const MemoryCase& c : {MemoryCase{false, true, 3, 1},
                              {false, true, 15, 1},
                              {false, true, 4, 9},
                              {false, true, 0, 40},
                              {false, true, 9, 7},
                              {false, false, 3, 1},
                              {false, false, 0, 33},
                              {true, true, 3, 1},
                              {true, true, 15, 1},
                              {true, true, 5, 30},
                              {true, false, 0, 8}}) {
    SCOPED_TRACE(testing::Message() << "token mode " << c.token_mode << ", writes " << c.writes
                                    << ", position " << c.position << ", T " << c.T);
    TitansMemoryLayer layer{.memory = {.depth = 2, .width = e, .hidden = h},
                            .heads = H,
                            .chunk_tokens = b,
                            .token_mode = c.token_mode,
                            .gradient_clip = 1};
    TitansMemoryArgs args{.position = c.position, .rows = c.T};
    for (int64_t l = 0; l < layer.memory.depth; ++l) {
      const int64_t n = H * layer.memory.Elements(l);
      layer.target.push_back(Floats(n));
      args.committed.push_back(Floats(n));
      args.momentum.push_back(Floats(n));
      if (c.token_mode) args.running.push_back(Floats(n));
    }
    args.pending_k = Floats((b - 1) * row);
    args.pending_v = Floats((b - 1) * row);
    args.pending_rates = Floats((b - 1) * 3 * H);
    args.q = Floats(c.T * row);
    if (c.writes) {
      args.k = Floats(c.T * row);
      args.v = Floats(c.T * row);
      args.rates = Floats(c.T * 3 * H);
    }
    args.y = Floats(c.T * row);
    kernels().titans_memory(exec, layer, {&args, 1});
    Forget();
  }
}

// At the end of a whole run: no op is without a test.
class EveryOp : public testing::Environment {
 public:
  void TearDown() override {
    if (GTEST_FLAG_GET(filter) != "*") return;
    const std::set<std::string> all = {"matmul",
                                       "embed_rows",
                                       "rms_norm",
                                       "rope",
                                       "attention",
                                       "block_attention",
                                       "copy_rows",
                                       "store_rows",
                                       "finite_rows",
                                       "silu_mul",
                                       "add",
                                       "mul",
                                       "activate",
                                       "series_activate",
                                       "layer_norm",
                                       "token_shift",
                                       "lerp",
                                       "wkv4",
                                       "wkv6",
                                       "wkv7_prepare",
                                       "wkv7",
                                       "wkv7_bonus",
                                       "infini_feature_map",
                                       "infini_mix",
                                       "short_conv",
                                       "titans_rates",
                                       "titans_memory",
                                       "titans_attention"};
    EXPECT_EQ(CudaCostTest::Seen(), all);
  }
};
[[maybe_unused]] const auto* const kEveryOp = testing::AddGlobalTestEnvironment(new EveryOp);

}  // namespace
}  // namespace mneme::engine::cuda
