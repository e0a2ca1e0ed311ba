// Constants of the GGUF container, versions 2 and 3 (docs/checkpoint_format.md).
//
//   magic "GGUF", u32 version, u64 tensor count, u64 metadata count,
//   metadata entries  {string key, u32 type, value},
//   tensor infos      {string name, u32 dimensions, u64 x dimensions (fastest first), u32 type,
//                      u64 offset}, zero padding to the alignment, tensor data.
// Little-endian; a string is a u64 length and that many bytes. Source: ggml's GGUF document.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "engine/core/dtype.h"

namespace mneme::engine::gguf {

inline constexpr std::string_view kMagic = "GGUF";
inline constexpr uint32_t kMinVersion = 2;
inline constexpr uint32_t kMaxVersion = 3;
inline constexpr size_t kHeaderBytes = 24;
inline constexpr size_t kMinEntryBytes = 14;   // 8 + 1 key, 4 type, 1 value
inline constexpr size_t kMinTensorBytes = 24;  // lower bound of a tensor info
inline constexpr uint32_t kDefaultAlignment = 32;

// Our own bounds. They keep a hostile file from costing more than its size, and real files (the
// largest vocabularies have some 260,000 tokens, the largest models some 2,000 tensors) are far
// below them.
inline constexpr uint64_t kMaxEntries = 65'536;
inline constexpr uint64_t kMaxTensors = 1'048'576;
inline constexpr uint64_t kMaxKeyBytes = 65'535;
inline constexpr uint64_t kMaxStringBytes = uint64_t{16} << 20;
inline constexpr uint64_t kMaxArrayElements = uint64_t{16} << 20;  // of all arrays together
inline constexpr uint64_t kMaxNameBytes = 63;
inline constexpr uint32_t kMaxDimensions = 4;
inline constexpr uint64_t kMaxDimension = uint64_t{1} << 40;
inline constexpr uint32_t kMaxAlignment = uint32_t{1} << 20;

enum class ValueType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

struct TensorType {
  uint32_t id;
  std::string_view name;
  std::optional<DType> dtype;  // empty: known, but not accepted
};

// Every id ggml has used, so that refusals name the type.
inline constexpr TensorType kTensorTypes[] = {
    {0, "F32", DType::kF32},
    {1, "F16", DType::kF16},
    {2, "Q4_0", DType::kQ4_0},
    {3, "Q4_1", DType::kQ4_1},
    {4, "Q4_2 (removed from GGUF)", {}},
    {5, "Q4_3 (removed from GGUF)", {}},
    {6, "Q5_0", DType::kQ5_0},
    {7, "Q5_1", DType::kQ5_1},
    {8, "Q8_0", DType::kQ8_0},
    {9, "Q8_1", {}},
    {10, "Q2_K", {}},
    {11, "Q3_K", {}},
    {12, "Q4_K", DType::kQ4_K},
    {13, "Q5_K", DType::kQ5_K},
    {14, "Q6_K", DType::kQ6_K},
    {15, "Q8_K", {}},
    {16, "IQ2_XXS", {}},
    {17, "IQ2_XS", {}},
    {18, "IQ3_XXS", {}},
    {19, "IQ1_S", {}},
    {20, "IQ4_NL", {}},
    {21, "IQ3_S", {}},
    {22, "IQ2_S", {}},
    {23, "IQ4_XS", {}},
    {24, "I8", {}},
    {25, "I16", {}},
    {26, "I32", {}},
    {27, "I64", {}},
    {28, "F64", {}},
    {29, "IQ1_M", {}},
    {30, "BF16", DType::kBF16},
    {31, "Q4_0_4_4 (removed from GGUF)", {}},
    {32, "Q4_0_4_8 (removed from GGUF)", {}},
    {33, "Q4_0_8_8 (removed from GGUF)", {}},
    {34, "TQ1_0", {}},
    {35, "TQ2_0", {}},
    {36, "IQ4_NL_4_4 (removed from GGUF)", {}},
    {37, "IQ4_NL_4_8 (removed from GGUF)", {}},
    {38, "IQ4_NL_8_8 (removed from GGUF)", {}},
    {39, "MXFP4", {}},
};

}  // namespace mneme::engine::gguf
