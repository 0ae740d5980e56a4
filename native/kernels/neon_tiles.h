// A matrix product with 128-bit registers, for the kernel files of Arm; in an unnamed namespace:
// each file that includes this has its own copy, compiled with its own flags.
//
// A piece of a panel is unpacked in the first-level cache, in the form the file's instruction
// wants, and every tile of up to 4 rows by 16 columns uses it.
#pragma once

#include <arm_neon.h>

#include <cstring>

#include "kernel.h"

namespace fptq {

namespace {

constexpr int kMaxRows = 4;
constexpr int kVectors = 4;  // registers of 4 columns that a tile has
constexpr int64_t kTileColumns = 4 * kVectors;
// k-blocks unpacked at once: 16 KiB of the first-level cache.
constexpr int64_t kPieceKBlocks = 32;
constexpr int64_t kUnpackedBlockBytes = kPackedBlockBytesW8;
// Rows that share an unpacked piece; their sums take 24 KiB, twice where groups are long.
constexpr int64_t kSharedRows = 96;
constexpr int64_t kPrefetchDistance = 2048;

// One k-block of a tile's columns: the first 4 channels of columns 4 v .. 4 v + 3, and the next 4.
struct Halves {
  uint8x16_t low, high;
};

Halves load_halves(const uint8_t* block, int64_t bits, int64_t v) {
  const uint8x16_t first = vld1q_u8(block + 16 * v);
  if (bits == 8) return {first, vld1q_u8(block + kHalfBlockBytes + 16 * v)};
  return {vandq_u8(first, vdupq_n_u8(15)), vshrq_n_u8(first, 4)};
}

// What is left to add to the sums of a group: `middle` is what the unpacked codes are less by.
int32x4_t group_start(const PackedWeights& w, int64_t at, int32_t middle, int32_t row_sum) {
  int32x4_t zero = vdupq_n_s32(w.bits == 4 ? 8 : 128);
  if (w.zero_points != nullptr) {
    uint32_t bytes;
    std::memcpy(&bytes, w.zero_points + at, sizeof(bytes));
    const uint16x8_t words = vmovl_u8(vcreate_u8(bytes));
    zero = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(words)));
  }
  return vmulq_s32(vsubq_s32(vdupq_n_s32(middle), zero), vdupq_n_s32(row_sum));
}

// Four scales from number `first` on; float32 holds those of float16 exactly.
float32x4_t load_scales(const PackedWeights& w, int64_t first) {
  const uint8_t* at = w.scales + first * w.scale_bytes;
  if (w.scale_bytes == 2) return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(at)));
  return vreinterpretq_f32_u8(vld1q_u8(at));
}

void store_output(const MatMulArgs& args, int64_t row, int64_t column, float32x4_t y) {
  const PackedWeights& w = args.weights;
  const auto count = static_cast<size_t>(w.n - column < 4 ? w.n - column : 4);
  const float32x4_t row_scale = vdupq_n_f32(args.rows.scales[row]);
  float32x4_t out = vmulq_f32(y, row_scale);
  if (w.bias != nullptr) {
    float bias[4] = {};
    std::memcpy(bias, reinterpret_cast<const uint8_t*>(w.bias) + 4 * column, 4 * count);
    out = vfmaq_f32(vld1q_f32(bias), y, row_scale);
  }
  const int64_t index = row * args.output_stride + column;
  if (args.element == Element::kFloat16) {
    const float16x4_t half = vcvt_f16_f32(out);
    std::memcpy(static_cast<uint16_t*>(args.output) + index, &half, 2 * count);
  } else {
    std::memcpy(static_cast<float*>(args.output) + index, &out, 4 * count);
  }
}

// k-blocks of one panel, unpacked: whole groups, or a part of one longer group.
struct Piece {
  const uint8_t* codes;
  int64_t panel;
  Range k_blocks;
};

// Adds a piece to the sums of R rows: complete groups to y, a part of a longer one to `partial`.
template <class Isa, int R>
void add_piece(const MatMulArgs& args, const Piece& piece, int64_t row, float* y,
               int32_t* partial) {
  const PackedWeights& w = args.weights;
  const int8_t* x = args.rows.codes + row * args.rows.stride;
  const int32_t* row_sums = args.rows.group_sums + row * w.groups;
  const int32_t middle = Isa::middle(w.bits);
  int64_t g = piece.k_blocks.begin / w.group_k_blocks;
  for (int64_t s = piece.k_blocks.begin; s < piece.k_blocks.end; ++g) {
    const int64_t begin = g * w.group_k_blocks;
    const int64_t left = w.k_blocks - begin;
    const int64_t group_end = begin + (left < w.group_k_blocks ? left : w.group_k_blocks);
    const int64_t end = group_end < piece.k_blocks.end ? group_end : piece.k_blocks.end;
    for (int64_t c = 0; c < kNr; c += kTileColumns) {
      const int64_t at = (piece.panel * w.groups + g) * kNr + c;
      int32x4_t sums[R][kVectors];
      for (int r = 0; r < R; ++r) {
        for (int v = 0; v < kVectors; ++v) {
          sums[r][v] = s == begin ? group_start(w, at + 4 * v, middle, row_sums[r * w.groups + g])
                                  : vld1q_s32(partial + r * kNr + c + 4 * v);
        }
      }
      Isa::template add_k_blocks<R>(piece.codes + (s - piece.k_blocks.begin) * kUnpackedBlockBytes,
                                    c, end - s, x + s * kKr, args.rows.stride, sums);
      for (int v = 0; v < kVectors; ++v) {
        const float32x4_t scale = load_scales(w, at + 4 * v);
        for (int r = 0; r < R; ++r) {
          const int64_t index = r * kNr + c + 4 * v;
          if (end != group_end) {
            vst1q_s32(partial + index, sums[r][v]);
          } else {
            const float32x4_t before = g == 0 ? vdupq_n_f32(0.0f) : vld1q_f32(y + index);
            vst1q_f32(y + index, vfmaq_f32(before, vcvtq_f32_s32(sums[r][v]), scale));
          }
        }
      }
    }
    s = end;
  }
}

template <class Isa>
void one_panel(const MatMulArgs& args, Range rows, int64_t panel) {
  const PackedWeights& w = args.weights;
  const int64_t block_bytes = kNr * w.bits;
  const uint8_t* blocks = w.blocks + panel * w.k_blocks * block_bytes;
  alignas(64) uint8_t codes[kPieceKBlocks * kUnpackedBlockBytes];
  alignas(64) float y[kSharedRows * kNr];
  alignas(64) int32_t partial[kSharedRows * kNr];

  const int64_t count = rows.end - rows.begin;
  const int64_t tiles = (count + kMaxRows - 1) / kMaxRows;  // of equal height, more or less
  const int64_t whole_groups = kPieceKBlocks / w.group_k_blocks * w.group_k_blocks;
  for (int64_t begin = 0; begin < w.k_blocks;) {
    int64_t length = whole_groups;
    if (whole_groups == 0) {  // a longer group: stop at its end
      const int64_t group_left = w.group_k_blocks - begin % w.group_k_blocks;
      length = group_left < kPieceKBlocks ? group_left : kPieceKBlocks;
    }
    const int64_t end = begin + length < w.k_blocks ? begin + length : w.k_blocks;
    for (int64_t s = begin; s < end; ++s) {
      const uint8_t* block = blocks + s * block_bytes;
      for (int64_t i = 0; i < block_bytes; i += 64)
        __builtin_prefetch(block + kPrefetchDistance + i);
      Isa::unpack(block, w.bits, codes + (s - begin) * kUnpackedBlockBytes);
    }
    const Piece piece = {codes, panel, {begin, end}};
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = t * count / tiles;
      const int64_t row = rows.begin + first;
      float* sums = y + first * kNr;
      int32_t* rest = partial + first * kNr;
      switch ((t + 1) * count / tiles - first) {
        case 1: add_piece<Isa, 1>(args, piece, row, sums, rest); break;
        case 2: add_piece<Isa, 2>(args, piece, row, sums, rest); break;
        case 3: add_piece<Isa, 3>(args, piece, row, sums, rest); break;
        case 4: add_piece<Isa, 4>(args, piece, row, sums, rest); break;
        default: break;  // kMaxRows rows make no larger tile
      }
    }
    begin = end;
  }
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t c = 0; c < kNr; c += 4) {
      const int64_t column = panel * kNr + c;
      if (column < w.n) {
        store_output(args, rows.begin + r, column, vld1q_f32(y + r * kNr + c));
      }
    }
  }
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
