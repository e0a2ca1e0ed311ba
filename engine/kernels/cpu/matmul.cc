// Cuts a call into pieces of rows and tokens and hands them to threads.
#include "engine/kernels/matmul.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <new>

#include "engine/kernels/cpu/cpu.h"
#include "engine/kernels/cpu/matmul_micro.h"
#include "engine/kernels/cpu/simd_target.h"
#include "engine/kernels/dequantize.h"
#include "engine/kernels/host.h"

namespace mneme::engine::cpu {
namespace {

constexpr size_t kMaxTasks = 16;
constexpr int64_t kRowStep = 8;  // rows a micro-kernel works on at once

// Token tiles whose activations stay in L2 while the weights' rows pass by: 128 rows of 1536 bytes,
// or 48 of 6 KiB, are 200-300 KiB.
constexpr int64_t kTokenTileInt8 = 128;
constexpr int64_t kTokenTileF32 = 48;

// Pieces one thread takes first; at the head of its scratch.
struct alignas(64) Range {
  std::atomic<int64_t> next;
  int64_t end;
};

const MatMulMicro& CurrentMicro() {
#if defined(__x86_64__)
  if (HasVnni()) return VnniMatMulMicro();
  if (CurrentSimdTarget() >= SimdTarget::kAvx2) return Avx2MatMulMicro();
#endif
  return PortableMatMulMicro();
}

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

QuantizedRows LayOut(std::byte* scratch, int64_t T, int64_t K) {
  QuantizedRows rows;
  rows.K = K;
  rows.blocks = K / kCodeBlock;
  rows.q = reinterpret_cast<int8_t*>(scratch);
  rows.d = reinterpret_cast<float*>(scratch + RoundUp(T * K, 64));
  rows.s = rows.d + T * rows.blocks;
  rows.sum = reinterpret_cast<int32_t*>(rows.s + T * rows.blocks);
  return rows;
}

size_t QuantizedBytes(int64_t T, int64_t K) {
  return RoundUp(T * K, 64) + T * (K / kCodeBlock) * 12;
}

// Rows of `task` that one piece of work covers. Large enough to hide the hand-out, small enough
// that threads finish together: about 5 microseconds at least, and six pieces per thread.
int64_t RowsPerPiece(const MatMulTask& task, int64_t tokens, int64_t total_bytes, int threads) {
  const int64_t row_bytes = static_cast<int64_t>(task.weight.row_bytes());
  int64_t rows;
  if (tokens == 1) {
    const int64_t bytes = std::clamp<int64_t>(total_bytes / (threads * 6), 16 << 10, 256 << 10);
    rows = bytes / row_bytes;
  } else {
    constexpr int64_t kProducts = 2 << 20;
    rows = kProducts / (tokens * task.weight.columns);
  }
  return std::max(kRowStep, rows / kRowStep * kRowStep);
}

void MatMulSome(Exec& exec, std::span<const MatMulTask> tasks, const float* x, int64_t x_stride,
                int64_t T) {
  const MatMulMicro& micro = CurrentMicro();
  ThreadPool& pool = Host(exec).pool();
  const int64_t K = tasks[0].weight.columns;
  const auto is_int8 = [&](const MatMulTask& task) {
    return exec.contract() == Contract::kInt8 && IsQuantized(task.weight.dtype);
  };

  QuantizedRows quantized;
  if (std::ranges::any_of(tasks, is_int8)) {
    quantized =
        LayOut(Host(exec).Scratch(HostDevice::kMatMulActivations, QuantizedBytes(T, K)), T, K);
    constexpr int64_t kTokensPerPiece = 16;
    pool.Run((T + kTokensPerPiece - 1) / kTokensPerPiece, [&](int64_t piece, int) {
      const int64_t end = std::min(T, (piece + 1) * kTokensPerPiece);
      for (int64_t t = piece * kTokensPerPiece; t < end; ++t) {
        micro.quantize_row(x + t * x_stride, quantized.From(t));
      }
    });
  }

  int64_t total_bytes = 0;
  for (const MatMulTask& task : tasks) total_bytes += task.weight.size_bytes();

  // Pieces are numbered task by task, within a task by token tile, then by rows: a tile's
  // activations stay in the cache while the rows pass.
  struct Plan {
    int64_t tile;    // tokens
    int64_t rows;    // rows per piece
    int64_t across;  // pieces per tile
    int64_t begin;   // number of the task's first piece
  };
  std::array<Plan, kMaxTasks> plans;
  int64_t pieces = 0;
  for (size_t i = 0; i < tasks.size(); ++i) {
    Plan& plan = plans[i];
    plan.tile = std::min(T, is_int8(tasks[i]) ? kTokenTileInt8 : kTokenTileF32);
    plan.rows = RowsPerPiece(tasks[i], plan.tile, total_bytes, pool.num_threads());
    plan.across = (tasks[i].weight.rows + plan.rows - 1) / plan.rows;
    plan.begin = pieces;
    pieces += plan.across * ((T + plan.tile - 1) / plan.tile);
  }

  // Every thread has a range of pieces of its own and takes from the others' when it is done: it
  // reads one stretch of each weight from end to end, and none waits for a slow one.
  const int threads = pool.num_threads();
  const size_t scratch_bytes = RoundUp(MicroScratchBytes(K), 64) + sizeof(Range);
  std::byte* scratch = Host(exec).Scratch(HostDevice::kMatMulWorkers, scratch_bytes * threads);
  const auto range_of = [&](int i) {
    return reinterpret_cast<Range*>(scratch + i * scratch_bytes);
  };
  for (int i = 0; i < threads; ++i) {
    new (range_of(i)) Range{{pieces * i / threads}, pieces * (i + 1) / threads};
  }
  const auto task_of = [&](int64_t piece) {
    size_t i = 0;
    while (i + 1 < tasks.size() && piece >= plans[i + 1].begin) ++i;
    return i;
  };
  const auto first_row = [&](size_t i, int64_t piece) {
    return (piece - plans[i].begin) % plans[i].across * plans[i].rows;
  };
  const auto run_piece = [&](int64_t piece, int64_t range_end, std::byte* mine) {
    const size_t i = task_of(piece);
    const Plan& plan = plans[i];
    const MatMulTask& task = tasks[i];
    const int64_t t = (piece - plan.begin) / plan.across * plan.tile;
    const int64_t row = first_row(i, piece);
    const int64_t tokens = std::min(plan.tile, T - t);
    RowSpan span = {&task.weight,
                    row,
                    std::min(plan.rows, task.weight.rows - row),
                    task.y + t * task.y_stride + row,
                    task.y_stride,
                    task.accumulate,
                    task.bias == nullptr && task.scale == 1,
                    task.bias == nullptr ? nullptr : task.bias + row,
                    task.scale,
                    task.weight.rows,
                    nullptr};
    const int64_t pieces_left = plan.across - (piece - plan.begin) % plan.across;
    if (piece + pieces_left >= range_end) {
      span.stream_end = std::min(task.weight.rows, row + (range_end - piece) * plan.rows);
    } else {
      const size_t after = task_of(piece + pieces_left);
      span.next = tasks[after].weight.data;
    }
    if (is_int8(task)) {
      micro.rows_int8(span, quantized.From(t), tokens, mine);
    } else {
      micro.rows_f32(span, x + t * x_stride, x_stride, tokens, mine);
    }
  };
  pool.Run(threads, [&](int64_t own, int worker) {
    std::byte* mine = scratch + worker * scratch_bytes + sizeof(Range);
    for (int i = 0; i < threads; ++i) {
      Range& range = *range_of((own + i) % threads);
      for (;;) {
        const int64_t piece = range.next.fetch_add(1, std::memory_order_relaxed);
        if (piece >= range.end) break;
        run_piece(piece, range.end, mine);
      }
    }
  });
}

}  // namespace

void MatMul(Exec& exec, std::span<const MatMulTask> tasks, const float* x, int64_t x_stride,
            int64_t T) {
  for (size_t i = 0; i < tasks.size(); i += kMaxTasks) {
    MatMulSome(exec, tasks.subspan(i, std::min(kMaxTasks, tasks.size() - i)), x, x_stride, T);
  }
}

void EmbedRows(Exec& exec, const Weight& table, std::span<const int32_t> rows, float* y) {
  const auto embed = [&](size_t t) {
    DequantizeRow(table.dtype, table.data + rows[t] * table.row_bytes(), table.columns,
                  y + t * table.columns);
  };
  constexpr size_t kRowsPerPiece = 16;
  Host(exec).pool().Run((rows.size() + kRowsPerPiece - 1) / kRowsPerPiece, [&](int64_t piece, int) {
    const size_t end = std::min(rows.size(), (piece + 1) * kRowsPerPiece);
    for (size_t t = piece * kRowsPerPiece; t < end; ++t) embed(t);
  });
}

}  // namespace mneme::engine::cpu
