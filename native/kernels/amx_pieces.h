// Pieces of a panel in the form that AMX tiles load: one byte per code, every group filled up with
// codes of 0 to whole tiles. In an unnamed namespace like avx512_tiles.h.
#pragma once

#include "avx512_tiles.h"

namespace fptq {

namespace {

constexpr int64_t kTileKBlocks = 8;  // 64 channels
// k-blocks unpacked at once: 16 KiB of the first-level cache.
constexpr int64_t kPieceKBlocks = 32;

// Bytes begin..end of an array come into the second-level cache.
void prefetch(const uint8_t* bytes, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(bytes) + i, _MM_HINT_T1);
  }
}

// How one call cuts its work; all rows and pieces share it.
struct Cut {
  int64_t tile_k_blocks;  // of one tile instruction, at most kTileKBlocks
  int64_t
      padded_k_blocks;  // of a group (or piece of one) when unpacked, a multiple of tile_k_blocks
  int64_t groups;       // whole groups in a piece; 0 where a group is longer than a piece
};

Cut cut_for(const PackedWeights& w) {
  Cut cut{};
  cut.tile_k_blocks = w.group_k_blocks < kTileKBlocks ? w.group_k_blocks : kTileKBlocks;
  cut.padded_k_blocks =
      (w.group_k_blocks + cut.tile_k_blocks - 1) / cut.tile_k_blocks * cut.tile_k_blocks;
  cut.groups = kPieceKBlocks / cut.padded_k_blocks;
  return cut;
}

// A piece of one panel, one byte per code: whole groups, or a part of one longer group.
struct Piece {
  alignas(64) uint8_t codes[kPieceKBlocks * kUnpackedBlockBytes];
  int64_t first_group, groups;
  int64_t first_k_block, k_blocks;  // of a part of a long group
  bool begins, ends;                // whether the part begins and ends its group
};

// One byte per code, of `k_blocks` packed blocks; signed (less the zero points) if they had 4 bits.
void unpack_group(const PackedWeights& w, int64_t panel, int64_t group, int64_t k_block,
                  int64_t k_blocks, uint8_t* out) {
  const uint8_t* block = w.blocks + (panel * w.k_blocks + k_block) * kNr * w.bits;
  if (w.bits == 8) {
    std::memcpy(out, block, static_cast<size_t>(k_blocks * kPackedBlockBytesW8));
    return;
  }
  __m512i zeros[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    zeros[v] = _mm512_set1_epi8(8);
    if (w.zero_points != nullptr) {
      const uint8_t* at = w.zero_points + (panel * w.groups + group) * kNr + 16 * v;
      const __m512i lanes =
          _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
      zeros[v] = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(0x01010101));
    }
  }
  const __m512i low_nibble = _mm512_set1_epi8(15);
  for (int64_t s = 0; s < k_blocks; ++s, block += kPackedBlockBytesW4, out += kUnpackedBlockBytes) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const __m512i raw = _mm512_loadu_si512(block + 64 * v);
      const __m512i low = _mm512_and_si512(raw, low_nibble);
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16(raw, 4), low_nibble);
      _mm512_store_si512(out + 64 * v, _mm512_sub_epi8(low, zeros[v]));
      _mm512_store_si512(out + kHalfBlockBytes + 64 * v, _mm512_sub_epi8(high, zeros[v]));
    }
  }
}

void unpack_piece(const PackedWeights& w, const Cut& cut, int64_t panel, Piece& piece) {
  const int64_t padded_bytes = cut.padded_k_blocks * kUnpackedBlockBytes;
  if (cut.groups == 0) {
    unpack_group(w, panel, piece.first_group, piece.first_k_block, piece.k_blocks, piece.codes);
    const int64_t used = piece.k_blocks * kUnpackedBlockBytes;
    const int64_t all =
        (piece.k_blocks + kTileKBlocks - 1) / kTileKBlocks * kTileKBlocks * kUnpackedBlockBytes;
    std::memset(piece.codes + used, 0, static_cast<size_t>(all - used));
    return;
  }
  for (int64_t i = 0; i < piece.groups; ++i) {
    const int64_t group = piece.first_group + i;
    const int64_t k_block = group * w.group_k_blocks;
    const int64_t left = w.k_blocks - k_block;
    const int64_t k_blocks = left < w.group_k_blocks ? left : w.group_k_blocks;
    uint8_t* out = piece.codes + i * padded_bytes;
    unpack_group(w, panel, group, k_block, k_blocks, out);
    const int64_t used = k_blocks * kUnpackedBlockBytes;
    // Codes of 0 where a tile reaches beyond the group: what the rows have there does not count.
    std::memset(out + used, 0, static_cast<size_t>(padded_bytes - used));
  }
}

}  // namespace

}  // namespace fptq
