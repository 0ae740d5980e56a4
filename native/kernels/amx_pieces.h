// Pieces of a panel in the form that AMX tiles load: one byte per code, every group filled up with
// codes of 0 to whole tiles. In an unnamed namespace like avx512_tiles.h.
#pragma once

#include "avx512_tiles.h"

namespace fptq {

namespace {

constexpr int64_t kTileSteps = 8;  // 64 channels
// Steps unpacked at once: 16 KiB of the first-level cache.
constexpr int64_t kPieceSteps = 32;

// Bytes begin..end of an array come into the second-level cache.
void prefetch(const uint8_t* bytes, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(bytes) + i, _MM_HINT_T1);
  }
}

// How one call cuts its work; all rows and pieces share it.
struct Cut {
  int64_t tile_steps;    // steps of one tile instruction, at most kTileSteps
  int64_t padded_steps;  // of a group (or piece of one) when unpacked, a multiple of tile_steps
  int64_t groups;        // whole groups in a piece; 0 where a group is longer than a piece
};

Cut cut_for(const PackedWeights& w) {
  Cut cut{};
  cut.tile_steps = w.group_steps < kTileSteps ? w.group_steps : kTileSteps;
  cut.padded_steps = (w.group_steps + cut.tile_steps - 1) / cut.tile_steps * cut.tile_steps;
  cut.groups = kPieceSteps / cut.padded_steps;
  return cut;
}

// A piece of one panel, one byte per code: whole groups, or a part of one longer group.
struct Piece {
  alignas(64) uint8_t codes[kPieceSteps * kUnpackedBytes];
  int64_t first_group, groups;
  int64_t first_step, steps;  // of a part of a long group
  bool begins, ends;          // whether the part begins and ends its group
};

// One byte per code, of `steps` lines; signed (less the zero points) if they had 4 bits.
void unpack_group(const PackedWeights& w, int64_t panel, int64_t group, int64_t step, int64_t steps,
                  uint8_t* out) {
  const uint8_t* line = w.lines + (panel * w.steps + step) * kPanelColumns * w.bits;
  if (w.bits == 8) {
    std::memcpy(out, line, static_cast<size_t>(steps * kWideLineBytes));
    return;
  }
  __m512i zeros[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    zeros[v] = _mm512_set1_epi8(8);
    if (w.zero_points != nullptr) {
      const uint8_t* at = w.zero_points + (panel * w.groups + group) * kPanelColumns + 16 * v;
      const __m512i lanes =
          _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
      zeros[v] = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(0x01010101));
    }
  }
  const __m512i low_nibble = _mm512_set1_epi8(15);
  for (int64_t s = 0; s < steps; ++s, line += kLineBytes, out += kUnpackedBytes) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const __m512i raw = _mm512_loadu_si512(line + 64 * v);
      const __m512i low = _mm512_and_si512(raw, low_nibble);
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16(raw, 4), low_nibble);
      _mm512_store_si512(out + 64 * v, _mm512_sub_epi8(low, zeros[v]));
      _mm512_store_si512(out + kLineBytes + 64 * v, _mm512_sub_epi8(high, zeros[v]));
    }
  }
}

void unpack_piece(const PackedWeights& w, const Cut& cut, int64_t panel, Piece& piece) {
  const int64_t padded_bytes = cut.padded_steps * kUnpackedBytes;
  if (cut.groups == 0) {
    unpack_group(w, panel, piece.first_group, piece.first_step, piece.steps, piece.codes);
    const int64_t used = piece.steps * kUnpackedBytes;
    const int64_t all = (piece.steps + kTileSteps - 1) / kTileSteps * kTileSteps * kUnpackedBytes;
    std::memset(piece.codes + used, 0, static_cast<size_t>(all - used));
    return;
  }
  for (int64_t i = 0; i < piece.groups; ++i) {
    const int64_t group = piece.first_group + i;
    const int64_t step = group * w.group_steps;
    const int64_t left = w.steps - step;
    const int64_t steps = left < w.group_steps ? left : w.group_steps;
    uint8_t* out = piece.codes + i * padded_bytes;
    unpack_group(w, panel, group, step, steps, out);
    const int64_t used = steps * kUnpackedBytes;
    // Codes of 0 where a tile reaches beyond the group: what the rows have there does not count.
    std::memset(out + used, 0, static_cast<size_t>(padded_bytes - used));
  }
}

}  // namespace

}  // namespace fptq
