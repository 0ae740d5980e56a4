// A matrix product of 256-bit registers, for the kernel files of AVX2 and AVX-VNNI; in an unnamed
// namespace: each file that includes this has its own copy, compiled with its own flags.
//
// A piece of a panel is unpacked to one byte per code in the first-level cache, and every tile of
// rows uses it. A register holds 8 columns by 4 channels, or 8 sums.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernel.h"

namespace fptq {

namespace {

// k-blocks unpacked at once: 8 KiB (16 of 8-bit codes in two planes) of the first-level cache.
constexpr int64_t kPieceKBlocks = 16;
constexpr int64_t kUnpackedBlockBytes = kPackedBlockBytesW8;
// Rows that share an unpacked piece; their sums take 33 KiB, twice where groups are long.
constexpr int64_t kSharedRows = 132;
constexpr int64_t kPrefetchDistance = 4096;
constexpr int kVectors = 2;  // registers of 8 columns that a tile has
constexpr int64_t kTileColumns = 8 * kVectors;

inline __m256i broadcast_quad(const int8_t* x) {
  int32_t quad;
  std::memcpy(&quad, x, sizeof(quad));
  return _mm256_set1_epi32(quad);
}

inline __m256i load(const void* bytes) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(bytes));
}

inline void store(void* bytes, __m256i value) {
  _mm256_storeu_si256(static_cast<__m256i*>(bytes), value);
}

// One byte per code: a block of 4 bits becomes the low nibbles (4 channels), then the high ones.
void unpack_nibbles(const uint8_t* block, int64_t k_blocks, uint8_t* out) {
  const __m256i low_nibble = _mm256_set1_epi8(15);
  for (int64_t s = 0; s < k_blocks; ++s, block += kPackedBlockBytesW4, out += kUnpackedBlockBytes) {
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) {
      if (v % 2 == 0) {
        _mm_prefetch(reinterpret_cast<const char*>(block) + kPrefetchDistance + 32 * v,
                     _MM_HINT_T0);
      }
      const __m256i raw = load(block + 32 * v);
      store(out + 32 * v, _mm256_and_si256(raw, low_nibble));
      store(out + kHalfBlockBytes + 32 * v,
            _mm256_and_si256(_mm256_srli_epi16(raw, 4), low_nibble));
    }
  }
}

// sums [R, 64] at a tile's columns = -zero * row_sum: nothing is left to subtract afterwards.
template <int R>
inline __attribute__((always_inline)) void start_group(const PackedWeights& w,
                                                       const int32_t* row_sums, int64_t panel,
                                                       int64_t g, int64_t column, int32_t* sums) {
  if (w.zero_points == nullptr) {
    const int32_t middle = w.bits == 4 ? 8 : 128;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m256i start = _mm256_set1_epi32(-middle * row_sums[r * w.groups + g]);
      for (int v = 0; v < kVectors; ++v) store(sums + r * kNr + 8 * v, start);
    }
    return;
  }
  const uint8_t* zero_points = w.zero_points + (panel * w.groups + g) * kNr + column;
  for (int v = 0; v < kVectors; ++v) {
    const __m256i zero = _mm256_cvtepu8_epi32(
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(zero_points + 8 * v)));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      store(sums + r * kNr + 8 * v,
            _mm256_mullo_epi32(zero, _mm256_set1_epi32(-row_sums[r * w.groups + g])));
    }
  }
}

// Scales of a tile's columns, the first of them number `first`; float32 holds those of float16
// exactly.
inline __attribute__((always_inline)) void load_scales(const PackedWeights& w, int64_t first,
                                                       __m256 (&scales)[kVectors]) {
  const uint8_t* at = w.scales + first * w.scale_bytes;
  for (int v = 0; v < kVectors; ++v) {
    if (w.scale_bytes == 2) {
      scales[v] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 16 * v)));
    } else {
      scales[v] = _mm256_loadu_ps(reinterpret_cast<const float*>(at + 32 * v));
    }
  }
}

// y [R, 64] = sums * scale + y, or without y for the first group.
template <int R>
inline __attribute__((always_inline)) void finish_group(const PackedWeights& w, int64_t panel,
                                                        int64_t g, int64_t column,
                                                        const int32_t* sums, float* y) {
  __m256 scales[kVectors];
  load_scales(w, (panel * w.groups + g) * kNr + column, scales);
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      float* sum = y + r * kNr + 8 * v;
      const __m256 before = g == 0 ? _mm256_setzero_ps() : _mm256_load_ps(sum);
      const __m256 value = _mm256_cvtepi32_ps(load(sums + r * kNr + 8 * v));
      _mm256_store_ps(sum, _mm256_fmadd_ps(value, scales[v], before));
    }
  }
}

void store_output(const MatMulArgs& args, int64_t row, int64_t column, __m256 y) {
  const PackedWeights& w = args.weights;
  const int64_t left = w.n - column < 8 ? w.n - column : 8;
  const __m256 row_scale = _mm256_set1_ps(args.rows.scales[row]);
  const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(left)),
                                          _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  const __m256 out = w.bias != nullptr
                         ? _mm256_fmadd_ps(y, row_scale, _mm256_maskload_ps(w.bias + column, mask))
                         : _mm256_mul_ps(y, row_scale);
  const int64_t index = row * args.output_stride + column;
  if (args.element == Element::kFloat16) {
    const __m128i half = _mm256_cvtps_ph(out, _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(static_cast<uint16_t*>(args.output) + index, &half, static_cast<size_t>(2 * left));
  } else {
    _mm256_maskstore_ps(static_cast<float*>(args.output) + index, mask, out);
  }
}

void store_panel(const MatMulArgs& args, Range rows, int64_t panel, const float* y) {
  for (int64_t row = rows.begin; row < rows.end; ++row, y += kNr) {
    for (int64_t c = 0; c < kNr; c += 8) {
      const int64_t column = panel * kNr + c;
      if (column < args.weights.n) store_output(args, row, column, _mm256_load_ps(y + c));
    }
  }
}

// k-blocks of one panel, unpacked: whole groups, or a part of one longer group.
struct Piece {
  const uint8_t* codes;
  int64_t panel, group;  // group of the first k-block
  Range k_blocks;
};

// Adds a piece to the sums of R rows: complete groups to y, a part of a longer one to `partial`.
template <class Isa, int R>
void add_piece(const MatMulArgs& args, const Piece& piece, int64_t row, float* y,
               int32_t* partial) {
  const PackedWeights& w = args.weights;
  const int8_t* x = args.rows.codes + row * args.rows.stride;
  const int32_t* row_sums = args.rows.group_sums + row * w.groups;
  int64_t g = piece.group;
  for (int64_t s = piece.k_blocks.begin; s < piece.k_blocks.end; ++g) {
    const int64_t begin = g * w.group_k_blocks;
    const int64_t left = w.k_blocks - begin;
    const int64_t group_end = begin + (left < w.group_k_blocks ? left : w.group_k_blocks);
    const int64_t end = group_end < piece.k_blocks.end ? group_end : piece.k_blocks.end;
    for (int64_t c = 0; c < kNr; c += kTileColumns) {
      if (s == begin) start_group<R>(w, row_sums, piece.panel, g, c, partial + c);
      Isa::template add_k_blocks<R>(piece.codes, s - piece.k_blocks.begin, end - s, 4 * c, w.bits,
                                    x + s * kKr, args.rows.stride, partial + c);
      if (end == group_end) finish_group<R>(w, piece.panel, g, c, partial + c, y + c);
    }
    s = end;
  }
}

template <class Isa>
void one_panel(const MatMulArgs& args, Range rows, int64_t panel) {
  const PackedWeights& w = args.weights;
  const int64_t block_bytes = kNr * w.bits;
  const uint8_t* blocks = w.blocks + panel * w.k_blocks * block_bytes;
  alignas(64) uint8_t codes[Isa::kPlanes * kPieceKBlocks * kUnpackedBlockBytes];
  alignas(64) float y[kSharedRows * kNr];
  alignas(64) int32_t partial[kSharedRows * kNr];

  const int64_t count = rows.end - rows.begin;
  const int64_t tiles = (count + Isa::kRows - 1) / Isa::kRows;  // of equal height, more or less
  // Divided here, once: between tiles the multipliers would wait for a division.
  int64_t bounds[(kSharedRows + Isa::kRows - 1) / Isa::kRows + 1];
  for (int64_t t = 0; t <= tiles; ++t) bounds[t] = t * count / tiles;
  const int64_t whole_groups = kPieceKBlocks / w.group_k_blocks * w.group_k_blocks;
  for (int64_t begin = 0; begin < w.k_blocks;) {
    int64_t length = whole_groups;
    if (whole_groups == 0) {  // a longer group: stop at its end
      const int64_t group_left = w.group_k_blocks - begin % w.group_k_blocks;
      length = group_left < kPieceKBlocks ? group_left : kPieceKBlocks;
    }
    const int64_t end = begin + length < w.k_blocks ? begin + length : w.k_blocks;
    const Piece piece = {Isa::unpack(blocks + begin * block_bytes, w.bits, end - begin, codes),
                         panel,
                         begin / w.group_k_blocks,
                         {begin, end}};
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = bounds[t];
      const int64_t row = rows.begin + first;
      float* sums = y + first * kNr;
      // Whole groups leave nothing behind: their tiles share the same memory.
      int32_t* rest = whole_groups == 0 ? partial + first * kNr : partial;
      switch (bounds[t + 1] - first) {
        case 1: add_piece<Isa, 1>(args, piece, row, sums, rest); break;
        case 2: add_piece<Isa, 2>(args, piece, row, sums, rest); break;
        case 3: add_piece<Isa, 3>(args, piece, row, sums, rest); break;
        case 4: add_piece<Isa, 4>(args, piece, row, sums, rest); break;
        case 5: add_piece<Isa, 5>(args, piece, row, sums, rest); break;
        case 6: add_piece<Isa, 6>(args, piece, row, sums, rest); break;
        default: break;  // kRows is at most 6
      }
    }
    begin = end;
  }
  store_panel(args, rows, panel, y);
}

template <class Isa>
void all_panels(const MatMulArgs& args, Range rows, Range panels) {
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    for (int64_t row = rows.begin; row < rows.end; row += kSharedRows) {
      const int64_t end = row + kSharedRows < rows.end ? row + kSharedRows : rows.end;
      one_panel<Isa>(args, {row, end}, panel);
    }
  }
}

}  // namespace

}  // namespace fptq
