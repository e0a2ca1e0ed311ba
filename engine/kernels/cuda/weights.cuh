// Stored weights in registers: readers of every type, the same numbers as dequantize.h.
//
// Quantised types are read in pieces of 32 elements, by a lane each. Tensors lie where their file
// had them, so a reader knows an alignment: blocks of a row that begins at a multiple of the type's
// natural alignment all do, and are read by the widest loads which that allows; all other rows are
// read byte by byte. Nothing beyond a piece's own block is touched.
#pragma once

#include "engine/core/dtype.h"
#include "engine/kernels/cuda/device.cuh"

namespace mneme::engine::cuda {

inline constexpr int kPieceElements = 32;
inline constexpr int kPieceWords = kPieceElements / 4;

// Element e = scale[e / 16] * code[e] (+ min), each rounded; code[e] is the signed byte e % 4 of
// word[e / 4], with the type's offset taken off.
struct Piece {
  uint32_t word[kPieceWords];
  float scale[2];  // equal but for types that have two
  float min;       // of types that have one
};

constexpr bool HasTwoScales(DType type) { return type == DType::kQ6_K; }
constexpr bool HasMinimum(DType type) {
  return type == DType::kQ4_1 || type == DType::kQ5_1 || type == DType::kQ4_K ||
         type == DType::kQ5_K;
}
constexpr bool IsBlockType(DType type) {
  return type != DType::kF32 && type != DType::kF16 && type != DType::kBF16;
}

constexpr int BlockBytes(DType type) {
  switch (type) {
    case DType::kF32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kQ8_0:
      return 34;
    case DType::kQ4_0:
      return 18;
    case DType::kQ4_1:
      return 20;
    case DType::kQ5_0:
      return 22;
    case DType::kQ5_1:
      return 24;
    case DType::kQ4_K:
      return 144;
    case DType::kQ5_K:
      return 176;
    case DType::kQ6_K:
      return 210;
  }
  return 0;
}

// That all blocks of a row have if the row has it, at most the widest load.
constexpr int NaturalAlignment(DType type) {
  const int bytes = BlockBytes(type);
  return bytes % 16 == 0 ? 16 : bytes % 8 == 0 ? 8 : bytes % 4 == 0 ? 4 : 2;
}

// ---- loads

template <int kAlign>
__device__ __forceinline__ uint32_t Load16(const uint8_t* at) {
  if constexpr (kAlign >= 2) {
    return __ldg(reinterpret_cast<const uint16_t*>(at));
  } else {
    return __ldg(at) | static_cast<uint32_t>(__ldg(at + 1)) << 8;
  }
}

// `kWords` little-endian words from `at`, a multiple of kAlign.
template <int kAlign, int kWords>
__device__ __forceinline__ void LoadWords(const uint8_t* at, uint32_t* out) {
  if constexpr (kAlign >= 16 && kWords % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      const uint4 four = __ldg(reinterpret_cast<const uint4*>(at + 4 * i));
      out[i] = four.x;
      out[i + 1] = four.y;
      out[i + 2] = four.z;
      out[i + 3] = four.w;
    }
  } else if constexpr (kAlign >= 8 && kWords % 2 == 0) {
#pragma unroll
    for (int i = 0; i < kWords; i += 2) {
      const uint2 two = __ldg(reinterpret_cast<const uint2*>(at + 4 * i));
      out[i] = two.x;
      out[i + 1] = two.y;
    }
  } else if constexpr (kAlign >= 4) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) out[i] = __ldg(reinterpret_cast<const uint32_t*>(at + 4 * i));
  } else if constexpr (kAlign == 2 && kWords > 1) {
    // Lanes' pieces begin on words and between words by turns. Both read the whole words that are
    // inside, and two halves: a branch would send the warp both ways.
    constexpr int kInside = kWords - 1;
    const bool between = (reinterpret_cast<uintptr_t>(at) & 2) != 0;
    const auto* inside = reinterpret_cast<const uint32_t*>(at + (between ? 2 : 0));
    uint32_t word[kInside];
#pragma unroll
    for (int i = 0; i < kInside; ++i) word[i] = __ldg(inside + i);
    const uint32_t half = Load16<2>(between ? at : at + 4 * kInside);
    const uint32_t last = Load16<2>(at + 4 * kInside + 2) << 16;
    out[0] = between ? half | word[0] << 16 : word[0];
#pragma unroll
    for (int i = 1; i < kInside; ++i) {
      out[i] = between ? word[i - 1] >> 16 | word[i] << 16 : word[i];
    }
    out[kInside] = (between ? word[kInside - 1] >> 16 : half) | last;
  } else {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      out[i] = Load16<kAlign>(at + 4 * i) | Load16<kAlign>(at + 4 * i + 2) << 16;
    }
  }
}

// ---- pieces

// Four codes below 64 in bytes, each less `offset`, as signed bytes: no byte borrows of its
// neighbour.
template <uint32_t kOffset>
__device__ __forceinline__ uint32_t Less(uint32_t codes) {
  return ((codes | 0x80808080u) - kOffset * 0x01010101u) ^ 0x80808080u;
}

// Bits 0-3 to bit 4 of the four bytes.
__device__ __forceinline__ uint32_t FifthBits(uint32_t four) {
  return ((four & 15) * 0x00204081u & 0x01010101u) << 4;
}

__device__ __forceinline__ uint32_t ByteOf(uint32_t word, int i) { return word >> 8 * i & 0xff; }

__device__ __forceinline__ void SetScale(uint32_t half_bits, Piece& piece) {
  piece.scale[0] = piece.scale[1] = HalfBitsToFloat(static_cast<uint16_t>(half_bits));
}

// Low nibbles are elements 0-15, high nibbles elements 16-31.
template <int kAlign>
__device__ __forceinline__ void LoadNibbles(const uint8_t* at, Piece& piece) {
  uint32_t qs[4];
  LoadWords<kAlign, 4>(at, qs);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    piece.word[i] = qs[i] & 0x0f0f0f0fu;
    piece.word[i + 4] = qs[i] >> 4 & 0x0f0f0f0fu;
  }
}

template <int kAlign, bool kFifthBit>
__device__ __forceinline__ void LoadK4or5(const uint8_t* block, int s, Piece& piece) {
  uint32_t head[4];  // d and dmin; eight pairs of six bits
  LoadWords<kAlign, 4>(block, head);
  const int i = s % 4;
  uint32_t scale = ByteOf(head[1], i), min = ByteOf(head[2], i);
  if (s < 4) {
    scale &= 63;
    min &= 63;
  } else {
    const uint32_t low = ByteOf(head[3], i);
    scale = (low & 15) | scale >> 6 << 4;
    min = low >> 4 | min >> 6 << 4;
  }
  piece.scale[0] = piece.scale[1] =
      HalfBitsToFloat(static_cast<uint16_t>(head[0])) * static_cast<float>(scale);
  piece.min = -(HalfBitsToFloat(static_cast<uint16_t>(head[0] >> 16)) * static_cast<float>(min));
  LoadWords<kAlign, kPieceWords>(block + (kFifthBit ? 48 : 16) + 32 * (s / 2), piece.word);
  const int shift = s % 2 * 4;
#pragma unroll
  for (int j = 0; j < kPieceWords; ++j) piece.word[j] = piece.word[j] >> shift & 0x0f0f0f0fu;
  if constexpr (kFifthBit) {
    uint32_t high[kPieceWords];
    LoadWords<kAlign, kPieceWords>(block + 16, high);
#pragma unroll
    for (int j = 0; j < kPieceWords; ++j) piece.word[j] |= (high[j] >> s & 0x01010101u) << 4;
  }
}

template <int kAlign>
__device__ __forceinline__ void LoadQ6K(const uint8_t* block, int s, Piece& piece) {
  const int half = s / 4, k = s % 4;
  uint32_t high[kPieceWords];
  LoadWords<kAlign, kPieceWords>(block + 64 * half + 32 * (k % 2), piece.word);
  LoadWords<kAlign, kPieceWords>(block + 128 + 32 * half, high);
  const uint32_t scales = Load16<kAlign>(block + 192 + 2 * s);
  const float d = HalfBitsToFloat(static_cast<uint16_t>(Load16<kAlign>(block + 208)));
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    piece.scale[i] = d * static_cast<float>(static_cast<int8_t>(ByteOf(scales, i)));
  }
#pragma unroll
  for (int j = 0; j < kPieceWords; ++j) {
    piece.word[j] = Less<32>((piece.word[j] >> k / 2 * 4 & 0x0f0f0f0fu) |
                             (high[j] >> 2 * k & 0x03030303u) << 4);
  }
}

// Piece `index` of a row that is aligned to kAlign: NaturalAlignment(kType), or 1.
template <DType kType, int kAlign>
__device__ __forceinline__ Piece LoadPiece(const uint8_t* row, int64_t index) {
  constexpr int kBytes = BlockBytes(kType);
  Piece piece;
  piece.min = 0;
  if constexpr (kType == DType::kQ8_0) {
    const uint8_t* block = row + index * kBytes;
    SetScale(Load16<kAlign>(block), piece);
    LoadWords<kAlign, kPieceWords>(block + 2, piece.word);
  } else if constexpr (kType == DType::kQ4_0) {
    const uint8_t* block = row + index * kBytes;
    SetScale(Load16<kAlign>(block), piece);
    LoadNibbles<kAlign>(block + 2, piece);
#pragma unroll
    for (int j = 0; j < kPieceWords; ++j) piece.word[j] = Less<8>(piece.word[j]);
  } else if constexpr (kType == DType::kQ4_1) {
    const uint8_t* block = row + index * kBytes;
    uint32_t head[1];  // d and min
    LoadWords<kAlign, 1>(block, head);
    SetScale(head[0], piece);
    piece.min = HalfBitsToFloat(static_cast<uint16_t>(head[0] >> 16));
    LoadNibbles<kAlign>(block + 4, piece);
  } else if constexpr (kType == DType::kQ5_0) {
    const uint8_t* block = row + index * kBytes;
    SetScale(Load16<kAlign>(block), piece);
    uint32_t fifth[1];
    LoadWords<kAlign, 1>(block + 2, fifth);
    LoadNibbles<kAlign>(block + 6, piece);
#pragma unroll
    for (int j = 0; j < kPieceWords; ++j) {
      piece.word[j] = Less<16>(piece.word[j] | FifthBits(fifth[0] >> 4 * j));
    }
  } else if constexpr (kType == DType::kQ5_1) {
    const uint8_t* block = row + index * kBytes;
    uint32_t head[2];  // d and min; fifth bits
    LoadWords<kAlign, 2>(block, head);
    SetScale(head[0], piece);
    piece.min = HalfBitsToFloat(static_cast<uint16_t>(head[0] >> 16));
    LoadNibbles<kAlign>(block + 8, piece);
#pragma unroll
    for (int j = 0; j < kPieceWords; ++j) piece.word[j] |= FifthBits(head[1] >> 4 * j);
  } else {
    const uint8_t* block = row + index / 8 * kBytes;
    const int s = static_cast<int>(index % 8);
    if constexpr (kType == DType::kQ6_K) {
      LoadQ6K<kAlign>(block, s, piece);
    } else {
      LoadK4or5<kAlign, kType == DType::kQ5_K>(block, s, piece);
    }
  }
  return piece;
}

// Rows of one type at its natural alignment.
template <DType kType>
struct AlignedReader {
  static constexpr bool two_scales() { return HasTwoScales(kType); }
  static constexpr bool has_min() { return HasMinimum(kType); }
  __device__ __forceinline__ Piece Load(const uint8_t* row, int64_t index) const {
    return LoadPiece<kType, NaturalAlignment(kType)>(row, index);
  }
};

// Rows of any quantised type anywhere.
struct ByteReader {
  DType type;

  __device__ __forceinline__ bool two_scales() const { return HasTwoScales(type); }
  __device__ __forceinline__ bool has_min() const { return HasMinimum(type); }
  __device__ __forceinline__ Piece Load(const uint8_t* row, int64_t index) const {
    switch (type) {
      case DType::kQ8_0:
        return LoadPiece<DType::kQ8_0, 1>(row, index);
      case DType::kQ4_0:
        return LoadPiece<DType::kQ4_0, 1>(row, index);
      case DType::kQ4_1:
        return LoadPiece<DType::kQ4_1, 1>(row, index);
      case DType::kQ5_0:
        return LoadPiece<DType::kQ5_0, 1>(row, index);
      case DType::kQ5_1:
        return LoadPiece<DType::kQ5_1, 1>(row, index);
      case DType::kQ4_K:
        return LoadPiece<DType::kQ4_K, 1>(row, index);
      case DType::kQ5_K:
        return LoadPiece<DType::kQ5_K, 1>(row, index);
      default:
        return LoadPiece<DType::kQ6_K, 1>(row, index);
    }
  }
};

// Four elements of a piece of the reader's type, dequantised.
template <typename Reader>
__device__ __forceinline__ void Dequantize(const Reader& reader, uint32_t codes, float scale,
                                           float min, float (&out)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[i] = scale * static_cast<float>(static_cast<int8_t>(ByteOf(codes, i)));
    // Only where the type has one: adding zero would turn -0 into +0.
    if (reader.has_min()) out[i] += min;
  }
}

// ---- float types

// Element k of a row of a float type anywhere.
__device__ __forceinline__ float LoadFloat(DType type, const uint8_t* row, int64_t k) {
  if (type == DType::kF32) {
    uint32_t bits[1];
    LoadWords<1, 1>(row + 4 * k, bits);
    return __uint_as_float(bits[0]);
  }
  const auto bits = static_cast<uint16_t>(Load16<1>(row + 2 * k));
  return type == DType::kF16 ? HalfBitsToFloat(bits) : BFloat16BitsToFloat(bits);
}

// Eight elements at a multiple of 16 bytes.
template <DType kType>
__device__ __forceinline__ void LoadEight(const uint8_t* at, float (&out)[8]) {
  if constexpr (kType == DType::kF32) {
    uint32_t bits[8];
    LoadWords<16, 8>(at, bits);
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = __uint_as_float(bits[i]);
  } else {
    uint32_t pair[4];
    LoadWords<16, 4>(at, pair);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const auto bits = static_cast<uint16_t>(pair[i / 2] >> 16 * (i % 2));
      out[i] = kType == DType::kF16 ? HalfBitsToFloat(bits) : BFloat16BitsToFloat(bits);
    }
  }
}

}  // namespace mneme::engine::cuda
