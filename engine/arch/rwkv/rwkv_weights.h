// Configuration and weights that all versions of RWKV have, and what readers of their file layouts
// share. A layout is one reader that fills a version's struct; nothing behind it knows names.
//
// Letters: L layers, C width, N head size, H = C / N heads, F feed-forward width, V vocabulary.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/arch/arch.h"
#include "engine/arch/weight_reader.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/core/rows.h"
#include "engine/device/weight_store.h"

namespace mneme::engine::rwkv {

struct Config {
  int64_t num_layers = 0;    // L
  int64_t width = 0;         // C
  int64_t vocab_size = 0;    // V
  int64_t ffn_width = 0;     // F
  int64_t heads = 0;         // H, from version 5
  int64_t head_size = 0;     // N, from version 5
  float norm_eps = 0;        // of layer norms
  float group_norm_eps = 0;  // from version 5
};

struct Norm {
  Vector weight;  // [C]
  Vector bias;    // [C]
};

// B f(A x) + bias, f depending on what it is for.
struct LowRank {
  Matrix a;     // [R, C]
  Matrix b;     // [C, R]
  Vector bias;  // [C], or none
  int64_t rank() const { return a.rows(); }
};

// What a layer has besides its time mixing. Shares (mu) are those of the previous token.
struct Block {
  Norm attention_norm, ffn_norm;
  Vector ffn_mu_k;        // [C]
  Vector ffn_mu_r;        // [C], up to version 6
  Matrix ffn_key;         // [F, C]
  Matrix ffn_value;       // [C, F]
  Matrix ffn_receptance;  // [C, C], up to version 6
  // A power of two by which the weights of both outputs to the residual stream are stored divided.
  // Versions 5 and 6.
  float output_scale = 1;
};

// Matrices are used where they lie, in the checkpoint's mapping, which must outlive them; what is
// not is in the store.
struct Model {
  WeightStore store;
  Config config;
  ArchInfo info;  // sizes
  Matrix embedding;
  Norm embedding_norm;
  std::vector<Block> blocks;
  Norm final_norm;
  Matrix head;  // [V, C]
};

// [C] or [1, 1, C], as public files write vectors.
absl::StatusOr<Vector> LoadVector(WeightReader& reader, const std::string& name, int64_t C);
absl::StatusOr<Norm> LoadNorm(WeightReader& reader, const std::string& name, int64_t C);

// How a layout stores the factors of a low-rank map, where both readings fit a square matrix;
// others are read as their shapes say.
enum class FactorLayout {
  kOutIn,  // as other matrices: a [R, C], b [C, R]
  kInOut,  // for products from the right: a [C, R], b [R, C]
};
struct LowRankNames {
  std::string a, b, bias;  // no bias: ""
};
absl::StatusOr<LowRank> LoadLowRank(WeightReader& reader, const LowRankNames& names, int64_t C,
                                    FactorLayout layout);

// heads and head_size from a tensor [H, N]; N is what the file has, whatever the usual one is.
absl::Status SetHeads(WeightReader& reader, const std::string& name, Config* config);

// Embedding, head and the norms beside them (call last): also fills the sizes of `info` and refuses
// tensors that nobody took.
struct EndNames {
  std::string embedding, embedding_norm, final_norm, head;  // the norms without ".weight"
};
absl::Status LoadEnds(WeightReader& reader, const EndNames& names, Model* model);

}  // namespace mneme::engine::rwkv
