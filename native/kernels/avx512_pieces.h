// How AVX512-VNNI cuts a panel into pieces, which are unpacked once for many rows. In an unnamed
// namespace like avx512_tiles.h.
#pragma once

#include "avx512_dot_asm.h"
#include "avx512_tiles.h"

namespace fptq {

namespace {

constexpr int kMaxRows = 6;

// Rows of a tile, k-blocks unpacked at once (of 512 bytes in the first-level cache), and whether
// float sums are kept in registers from group to group of a piece. Zen 4 stores 512 bits in two
// cycles, which 6 rows after every group do not hide: keeping is 3 % faster there in blocks of 128,
// 13 % in blocks of 32, once there are rows enough to pay for twice as many tiles.
struct TileShape {
  int64_t rows, k_blocks;
  bool keeps;
};
constexpr TileShape kTall = {kMaxRows, 32, false};
constexpr TileShape kKept = {3, 48, true};
constexpr int64_t kKeptFromRows = 32;
// The longest group that a piece has whole. The sum of its codes fits 16 bits: 256 channels of at
// least -128.
constexpr int64_t kWholeGroupKBlocks = 32;
// Minus the zero points of a group, as GroupsWork wants them.
void spread_zeros(const PackedWeights& w, int64_t panel, int64_t g, int32_t* out) {
  const uint8_t* zeros = w.zero_points + (panel * w.groups + g) * kNr;
  for (int64_t c = 0; c < kNr; c += 16) {
    const __m512i zero =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros + c)));
    const __m512i minus = _mm512_sub_epi32(_mm512_setzero_si512(), zero);
    _mm512_store_si512(out + c, _mm512_and_si512(minus, _mm512_set1_epi32(0xffff)));
  }
}

// The scales of a group, as GroupsWork wants them.
void spread_scales(const PackedWeights& w, int64_t panel, int64_t g, float* out) {
  __m512 scales[kVectors];
  load_scales(w, (panel * w.groups + g) * kNr, scales);
  for (int v = 0; v < kVectors; ++v) _mm512_store_ps(out + 16 * v, scales[v]);
}

// A part of a long group begins: its sums start in memory.
template <int R>
void start_partial(const PackedWeights& w, const int32_t* sums, int64_t panel, int64_t g,
                   int32_t* partial) {
  Accumulators<R> acc;
  start_group<R>(w, sums, panel, g, acc);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      _mm512_store_si512(partial + r * kNr + 16 * v, acc[r][v]);
    }
  }
}

// A piece of one panel: whole groups of equal length, or a part of a longer one.
struct Piece {
  Range k_blocks;
  int64_t panel, group;
  bool whole, begins;  // whether it has whole groups, and else whether its group begins here
  bool keeps;          // whether float sums stay in registers
  GroupsWork work;
};

// Whole groups: of a panel, and of a piece (0 if none fits). Divided once, because what a division
// decides between two pieces is late for vpdpbusd.
struct GroupCounts {
  GroupCounts(const PackedWeights& w, const TileShape& shape)
      : panel(w.k_blocks / w.group_k_blocks),
        piece(w.group_k_blocks > kWholeGroupKBlocks ? 0 : shape.k_blocks / w.group_k_blocks) {}
  int64_t panel, piece;
};

// What a piece needs of its groups in another form: room for as many as a piece can have.
struct GroupForms {
  alignas(64) int32_t zeros[kKept.k_blocks * kNr];
  alignas(64) float scales[kKept.k_blocks * kNr];
};

// The piece that begins at a k-block, which belongs to group g.
Piece piece_at(const PackedWeights& w, const TileShape& shape, const GroupCounts& counts,
               int64_t panel, int64_t begin, int64_t g, GroupForms& forms) {
  static constexpr int32_t kMinus8 = 0xfff8;
  static constexpr int32_t kMinus128 = 0xff80;
  const int64_t group_left = (g + 1) * w.group_k_blocks - begin;
  const int64_t left = w.k_blocks - begin;
  Piece piece{};
  piece.panel = panel;
  piece.group = g;
  piece.whole = counts.piece != 0;
  piece.begins = !piece.whole && group_left == w.group_k_blocks;
  piece.keeps = piece.whole && shape.keeps;
  GroupsWork& work = piece.work;
  work.groups = 1;
  if (!piece.whole) {
    work.k_blocks = group_left < shape.k_blocks ? group_left : shape.k_blocks;
    if (left < work.k_blocks) work.k_blocks = left;
  } else if (g == counts.panel) {
    work.k_blocks = left;
  } else {
    const int64_t groups_left = counts.panel - g;
    work.k_blocks = w.group_k_blocks;
    work.groups = groups_left < counts.piece ? groups_left : counts.piece;
  }
  piece.k_blocks = {begin, begin + work.groups * work.k_blocks};
  if (work.k_blocks >= group_left || piece.k_blocks.end == w.k_blocks) {
    const uint8_t* scales = w.scales + (panel * w.groups + g) * kNr * w.scale_bytes;
    work.scales = reinterpret_cast<const float*>(scales);
    if (w.scale_bytes == 2) {
      for (int64_t i = 0; i < work.groups; ++i) {
        spread_scales(w, panel, g + i, forms.scales + i * kNr);
      }
      work.scales = forms.scales;
    }
  }
  work.row_sum_bytes = w.groups * static_cast<int64_t>(sizeof(int32_t));
  work.same_zeros = w.zero_points == nullptr;
  work.zeros = w.bits == 4 ? &kMinus8 : &kMinus128;
  if (w.zero_points != nullptr && piece.whole) {
    for (int64_t i = 0; i < work.groups; ++i) {
      spread_zeros(w, panel, g + i, forms.zeros + i * kNr);
    }
    work.zeros = forms.zeros;
  }
  return piece;
}

}  // namespace

}  // namespace fptq
