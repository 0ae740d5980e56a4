// One row times 4-bit weights in 256-bit registers, straight from the packed blocks: what a decoder
// does all the time. For the kernel files of AVX2 and AVX-VNNI, like avx2_tiles.h.
#pragma once

#include "avx2_tiles.h"

namespace fptq {

namespace {

constexpr int kPanelVectors = 8;  // registers of 8 columns in a panel
// One row: not a multiple of 4 KiB, which would come into the same sets of the first-level cache as
// what is read meanwhile (5 % on Zen 5).
constexpr int64_t kPrefetchDistanceOneRow = 4864;

// Before register v of a block is read; a line of cache has two of them.
inline __attribute__((always_inline)) void prefetch_one_row(const uint8_t* block, int v) {
  if (v % 2 != 0) return;
  _mm_prefetch(reinterpret_cast<const char*>(block) + kPrefetchDistanceOneRow + 32 * v,
               _MM_HINT_T0);
}

// add(v, codes, x) for register v of codes, one byte each, of every half block, and the 4
// activations that belong to it.
template <class Add>
inline __attribute__((always_inline)) void each_register(const uint8_t* block, const int8_t* x,
                                                         int64_t k_blocks, const Add& add) {
  const __m256i low_nibble = _mm256_set1_epi8(15);
#pragma GCC unroll 1
  for (int64_t s = 0; s < k_blocks; ++s, block += kPackedBlockBytesW4, x += kKr) {
    const __m256i first = broadcast_quad(x), second = broadcast_quad(x + 4);
#pragma GCC unroll 8
    for (int v = 0; v < kPanelVectors; ++v) {
      prefetch_one_row(block, v);
      const __m256i raw = load(block + 32 * v);
      add(v, _mm256_and_si256(raw, low_nibble), first);
      add(v, _mm256_and_si256(_mm256_srli_epi16(raw, 4), low_nibble), second);
    }
  }
}

// The scales of a group, and its zero points, are streams too thin for the hardware prefetcher.
void prefetch_scales(const PackedWeights& w, int64_t panel, int64_t g) {
  const int64_t first = (panel * w.groups + g) * kNr;
  const auto* scales = reinterpret_cast<const char*>(w.scales + first * w.scale_bytes);
  for (int64_t i = 0; i < kNr * w.scale_bytes; i += 64) _mm_prefetch(scales + i, _MM_HINT_T0);
  if (w.zero_points != nullptr) {
    _mm_prefetch(reinterpret_cast<const char*>(w.zero_points + first), _MM_HINT_T0);
  }
}

// Isa::add_blocks adds the products of a row with so many blocks (Isa::kOneRowBlocks at most) to
// sums [64].
template <class Isa>
void one_panel(const MatMulArgs& args, int64_t row, int64_t panel) {
  const PackedWeights& w = args.weights;
  const uint8_t* blocks = w.blocks + panel * w.k_blocks * kPackedBlockBytesW4;
  const int8_t* x = args.rows.codes + row * args.rows.stride;
  const int32_t* row_sums = args.rows.group_sums + row * w.groups;
  alignas(64) float y[kNr];
  alignas(64) int32_t sums[kNr];
  const int64_t prefetch_distance =
      1 + kPrefetchDistance / (w.group_k_blocks * kPackedBlockBytesW4);
  for (int64_t g = 0, s = 0; g < w.groups; ++g) {
    const int64_t end = s + w.group_k_blocks < w.k_blocks ? s + w.group_k_blocks : w.k_blocks;
    prefetch_scales(w, panel, g + prefetch_distance);
    for (int64_t c = 0; c < kNr; c += kTileColumns) {
      start_group<1>(w, row_sums, panel, g, c, sums + c);
    }
    for (; s + Isa::kOneRowBlocks <= end; s += Isa::kOneRowBlocks) {
      Isa::add_blocks(blocks + s * kPackedBlockBytesW4, x + s * kKr, Isa::kOneRowBlocks, sums);
    }
    if (s < end) Isa::add_blocks(blocks + s * kPackedBlockBytesW4, x + s * kKr, end - s, sums);
    s = end;
    for (int64_t c = 0; c < kNr; c += kTileColumns) {
      finish_group<1>(w, panel, g, c, sums + c, y + c);
    }
  }
  store_panel(args, {row, row + 1}, panel, y);
}

template <class Isa>
void one_row(const MatMulArgs& args, int64_t row, Range panels) {
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) one_panel<Isa>(args, row, panel);
}

}  // namespace

}  // namespace fptq
