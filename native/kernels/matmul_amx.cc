// AMX-INT8: one tile instruction multiplies 16 rows by 64 channels with 64 channels by 16 columns
// and adds to a 16 x 16 tile of int32, eight times what vpdpbusd does in the same time.
//
// One byte per code, the layout is what it wants: 4 channels of a column in a 32-bit lane, 16
// columns in 64 bytes, the next 4 channels 256 bytes on. Codes of 4 bits become signed when they
// are unpacked, less their zero points, so that nothing is left to subtract afterwards; codes of 8
// bits stay unsigned, and zero point times row sum is subtracted.
//
// Scales differ by group and column, so the sums of a group leave the tiles through memory. That is
// nearly as much work as a group's tile instructions, so it is done for one group while the tiles
// work on the next.
//
// Tile registers: 0-3 sums (2 x 16 rows by 2 x 16 columns), 4-5 rows, 6-7 columns.
#include "amx_pieces.h"
#include "avx512_tiles.h"

namespace fptq {

namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kBlockRows = 2 * kTileRows;
constexpr int64_t kBlockColumns = 32;
// So few rows leave the tiles mostly empty, and memory is the limit.
constexpr int64_t kFewRows = 6;
// Rows that share an unpacked piece; their sums take 64 KiB, twice where groups are long.
constexpr int64_t kSharedRows = 256;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles for a block of `rows` (1 to 32) rows.
void configure(int64_t rows, int64_t tile_k_blocks) {
  TileConfig config;
  const auto upper = static_cast<uint8_t>(rows < kTileRows ? rows : kTileRows);
  const auto lower = static_cast<uint8_t>(rows > kTileRows ? rows - kTileRows : 1);
  for (int t = 0; t < 8; ++t) config.row_bytes[t] = 64;
  config.rows[0] = config.rows[1] = config.rows[4] = upper;
  config.rows[2] = config.rows[3] = config.rows[5] = lower;
  config.row_bytes[4] = config.row_bytes[5] = static_cast<uint16_t>(tile_k_blocks * kKr);
  config.rows[6] = config.rows[7] = static_cast<uint8_t>(2 * tile_k_blocks);
  _tile_loadconfig(&config);
}

// sums += `tiles` times 32 columns times up to 32 rows. `next` fetches the rows of the next
// block meanwhile: tile loads wait for the second-level cache too long to hide it themselves.
template <bool kSigned, bool kLower>
inline __attribute__((always_inline)) void multiply(const uint8_t* codes, const int8_t* x,
                                                    int64_t stride, int64_t tile_k_blocks,
                                                    int64_t tiles, bool next) {
  const auto row_stride = static_cast<size_t>(stride);
  for (int64_t t = 0; t < tiles; ++t) {
    if (next) {
#pragma GCC unroll 32
      for (int64_t r = kBlockRows; r < 2 * kBlockRows; ++r) {
        _mm_prefetch(reinterpret_cast<const char*>(x + r * stride), _MM_HINT_T0);
      }
    }
    _tile_loadd(6, codes, kHalfBlockBytes);
    _tile_loadd(4, x, row_stride);
    _tile_loadd(7, codes + 64, kHalfBlockBytes);
    if (kLower) _tile_loadd(5, x + kTileRows * stride, row_stride);
    if (kSigned) {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      if (kLower) _tile_dpbssd(2, 5, 6);
      if (kLower) _tile_dpbssd(3, 5, 7);
    } else {
      _tile_dpbsud(0, 4, 6);
      _tile_dpbsud(1, 4, 7);
      if (kLower) _tile_dpbsud(2, 5, 6);
      if (kLower) _tile_dpbsud(3, 5, 7);
    }
    codes += tile_k_blocks * kUnpackedBlockBytes;
    x += tile_k_blocks * kKr;
  }
}

// The int32 sums of a block, in memory: `stride` integers from row to row.
template <bool kLower>
inline __attribute__((always_inline)) void store_sums(int32_t* sums, int64_t stride) {
  const auto bytes = static_cast<size_t>(4 * stride);
  _tile_stored(0, sums, bytes);
  _tile_stored(1, sums + 16, bytes);
  if (kLower) _tile_stored(2, sums + kTileRows * stride, bytes);
  if (kLower) _tile_stored(3, sums + kTileRows * stride + 16, bytes);
}

template <bool kLower>
inline __attribute__((always_inline)) void load_sums(const int32_t* sums, int64_t stride) {
  const auto bytes = static_cast<size_t>(4 * stride);
  _tile_loadd(0, sums, bytes);
  _tile_loadd(1, sums + 16, bytes);
  if (kLower) _tile_loadd(2, sums + kTileRows * stride, bytes);
  if (kLower) _tile_loadd(3, sums + kTileRows * stride + 16, bytes);
}

inline __attribute__((always_inline)) void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// A block: rows of `count`, 32 columns from `column` of the panel.
struct Block {
  const MatMulArgs& args;
  int64_t panel, column;
  int64_t row, count;
  float* y;  // [count, 64], at the block's column
};

// y = sums * scale + y, or without y for the first group.
template <bool kSigned>
inline __attribute__((always_inline)) void finish(const Block& b, int64_t group,
                                                  const int32_t* sums, int64_t stride) {
  const PackedWeights& w = b.args.weights;
  const int64_t at = (b.panel * w.groups + group) * kNr + b.column;
  __m512 scales[2];
  load_scales(w, at, scales);
  __m512i zeros[2] = {_mm512_set1_epi32(128), _mm512_set1_epi32(128)};
  if (!kSigned && w.zero_points != nullptr) {
    for (int v = 0; v < 2; ++v) {
      zeros[v] = _mm512_cvtepu8_epi32(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(w.zero_points + at + 16 * v)));
    }
  }
  const int32_t* row_sums = b.args.rows.group_sums + b.row * w.groups + group;
  for (int64_t r = 0; r < b.count; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      __m512i sum = _mm512_loadu_si512(sums + r * stride + 16 * v);
      if (!kSigned) {
        sum = _mm512_sub_epi32(
            sum, _mm512_mullo_epi32(zeros[v], _mm512_set1_epi32(row_sums[r * w.groups])));
      }
      float* y = b.y + r * kNr + 16 * v;
      const __m512 before = group == 0 ? _mm512_setzero_ps() : _mm512_load_ps(y);
      _mm512_store_ps(y, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scales[v], before));
    }
  }
}

// The whole groups of a piece.
template <bool kSigned, bool kLower>
void add_groups(const Block& b, const Piece& piece, const Cut& cut) {
  alignas(64) int32_t sums[2][kBlockRows * kBlockColumns];
  const PackedWeights& w = b.args.weights;
  const int64_t stride = b.args.rows.stride;
  const int8_t* x = b.args.rows.codes + b.row * stride;
  const uint8_t* codes = piece.codes + 4 * b.column;
  const int64_t tiles = cut.padded_k_blocks / cut.tile_k_blocks;
  for (int64_t i = 0; i < piece.groups; ++i) {
    const int64_t group = piece.first_group + i;
    zero_sums();
    multiply<kSigned, kLower>(codes + i * cut.padded_k_blocks * kUnpackedBlockBytes,
                              x + group * w.group_k_blocks * kKr, stride, cut.tile_k_blocks, tiles,
                              b.column != 0);
    if (i > 0) finish<kSigned>(b, group - 1, sums[(i - 1) & 1], kBlockColumns);
    store_sums<kLower>(sums[i & 1], kBlockColumns);
  }
  finish<kSigned>(b, piece.first_group + piece.groups - 1, sums[(piece.groups - 1) & 1],
                  kBlockColumns);
}

// A part of a long group; between parts its sums wait in `partial` [count, 64].
template <bool kSigned, bool kLower>
void add_part(const Block& b, const Piece& piece, int32_t* partial) {
  const int64_t stride = b.args.rows.stride;
  if (piece.begins) {
    zero_sums();
  } else {
    load_sums<kLower>(partial, kNr);
  }
  multiply<kSigned, kLower>(
      piece.codes + 4 * b.column, b.args.rows.codes + b.row * stride + piece.first_k_block * kKr,
      stride, kTileKBlocks, (piece.k_blocks + kTileKBlocks - 1) / kTileKBlocks, b.column != 0);
  store_sums<kLower>(partial, kNr);
  if (piece.ends) finish<kSigned>(b, piece.first_group, partial, kNr);
}

template <bool kSigned, bool kLower>
void add_piece(const Block& b, const Piece& piece, const Cut& cut, int32_t* partial) {
  if (cut.groups == 0) {
    add_part<kSigned, kLower>(b, piece, partial);
  } else {
    add_groups<kSigned, kLower>(b, piece, cut);
  }
}

template <bool kSigned>
void one_panel(const MatMulArgs& args, const Cut& cut, Range rows, int64_t panel) {
  const PackedWeights& w = args.weights;
  Piece piece;
  alignas(64) float y[kSharedRows * kNr];
  alignas(64) int32_t partial[kSharedRows * kNr];
  const int64_t count = rows.end - rows.begin;
  const int64_t piece_bytes = kPieceKBlocks * kNr * w.bits;
  int64_t configured = 0;
  for (int64_t k_block = 0; k_block < w.k_blocks;) {
    piece.first_group = k_block / w.group_k_blocks;
    const int64_t groups_left = w.groups - piece.first_group;
    piece.groups = cut.groups < groups_left ? cut.groups : groups_left;
    int64_t end = (piece.first_group + piece.groups) * w.group_k_blocks;
    if (cut.groups == 0) {
      const int64_t group_end = (piece.first_group + 1) * w.group_k_blocks;
      const int64_t last = group_end < w.k_blocks ? group_end : w.k_blocks;
      piece.first_k_block = k_block;
      piece.k_blocks = last - k_block < kPieceKBlocks ? last - k_block : kPieceKBlocks;
      end = k_block + piece.k_blocks;
      piece.begins = k_block == piece.first_group * w.group_k_blocks;
      piece.ends = end == last;
    }
    unpack_piece(w, cut, panel, piece);
    const uint8_t* next_piece = w.blocks + (panel * w.k_blocks + end) * kNr * w.bits;
    for (int64_t first = 0; first < count; first += kBlockRows) {
      const int64_t height = count - first < kBlockRows ? count - first : kBlockRows;
      // The next piece (or panel) comes from memory while this one is worked on.
      prefetch(next_piece, first * piece_bytes / count, (first + height) * piece_bytes / count);
      if (height != configured) configure(configured = height, cut.tile_k_blocks);
      for (int64_t column = 0; column < kNr; column += kBlockColumns) {
        const int64_t at = first * kNr + column;
        const Block block = {args, panel, column, rows.begin + first, height, y + at};
        if (height > kTileRows) {
          add_piece<kSigned, true>(block, piece, cut, partial + at);
        } else {
          add_piece<kSigned, false>(block, piece, cut, partial + at);
        }
      }
    }
    k_block = end;
  }
  store_rows(args, rows, panel, y);
}

template <bool kSigned>
void all_panels(const MatMulArgs& args, Range rows, Range panels) {
  const Cut cut = cut_for(args.weights);
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    for (int64_t row = rows.begin; row < rows.end; row += kSharedRows) {
      const Range some = {row, row + kSharedRows < rows.end ? row + kSharedRows : rows.end};
      one_panel<kSigned>(args, cut, some, panel);
    }
  }
  _tile_release();
}

}  // namespace

void matmul_w4a8_amx(const MatMulArgs& args, Range rows, Range panels) {
  if (rows.end - rows.begin <= kFewRows) return matmul_w4a8_avx512vnni(args, rows, panels);
  all_panels<true>(args, rows, panels);
}

void matmul_w8a8_amx(const MatMulArgs& args, Range rows, Range panels) {
  if (rows.end - rows.begin <= kFewRows) return matmul_w8a8_avx512vnni(args, rows, panels);
  all_panels<false>(args, rows, panels);
}

}  // namespace fptq
