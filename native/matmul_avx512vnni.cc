// AVX512-VNNI: vpdpbusd multiplies 64 unsigned bytes (weight codes) by 64 signed ones (activations)
// and adds groups of four into 16 int32 lanes.
//
// A tile is up to 6 rows by 64 columns: 24 accumulators, 4 registers of codes, one of activations:
// 29 of 32. 24 independent accumulators also hide vpdpbusd's latency of 5 cycles at two per cycle.
//
// Unpacking nibbles uses the execution ports that vpdpbusd needs (12 instructions per 48 of them),
// so for many rows a piece of a panel is unpacked once into the first-level cache and reused by
// every tile. For few rows, where memory is the limit, each tile unpacks for itself.
#include "avx512_tiles.h"
#include "avx512_dot_asm.h"

namespace fptq {

namespace {

constexpr int kMaxRows = 6;

// Steps unpacked at once: 16 KiB of the first-level cache.
constexpr int64_t kPieceSteps = 32;
// Rows that share an unpacked piece; their sums take 24 KiB, twice where groups are long.
constexpr int64_t kSharedRows = 96;

// Few rows: one tile, straight from the weights.
template <int R, bool kWide>
void direct(const MatMulArgs& args, int64_t row, int64_t panel) {
  const PackedWeights& w = args.weights;
  constexpr int64_t kBytes = kWide ? kWideLineBytes : kLineBytes;
  const uint8_t* lines = w.lines + panel * w.steps * kBytes;
  const int8_t* x = args.rows.codes + row * args.rows.stride;
  const int32_t* sums = args.rows.group_sums + row * w.groups;
  alignas(64) float y[R * kPanelColumns];
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t first = g * w.group_steps;
    const int64_t left = w.steps - first;
    Accumulators<R> acc;
    prefetch_scales(w, panel, g + 1);
    start_group<R>(w, sums, panel, g, acc);
    const int64_t steps = left < w.group_steps ? left : w.group_steps;
    const uint8_t* group = lines + first * kBytes;
    if (kWide) {
      dot_unpacked<R, true>(group, x + first * kStepChannels, args.rows.stride, steps, acc);
    } else {
      dot_packed<R>(group, x + first * kStepChannels, args.rows.stride, steps, acc);
    }
    finish_group<R>(w, panel, g, acc, y);
  }
  store_rows(args, {row, row + R}, panel, y);
}

// One byte per code: a line becomes the low nibbles (4 channels), then the high ones.
void unpack(const uint8_t* line, int64_t steps, uint8_t* out) {
  const __m512i low_nibble = _mm512_set1_epi8(15);
  for (int64_t s = 0; s < steps; ++s, line += kLineBytes, out += kUnpackedBytes) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const __m512i raw = _mm512_loadu_si512(line + 64 * v);
      _mm512_store_si512(out + 64 * v, _mm512_and_si512(raw, low_nibble));
      _mm512_store_si512(out + kLineBytes + 64 * v,
                         _mm512_and_si512(_mm512_srli_epi16(raw, 4), low_nibble));
    }
  }
}

// Steps of one panel, one byte per code. A piece holds whole groups, or a part of one longer group.
struct Piece {
  const uint8_t* codes;
  int64_t panel;
  Range steps;
};

// Adds a piece to the sums of R rows: complete groups to y, a part of a longer one to `partial`.
template <int R>
void add_piece(const MatMulArgs& args, const Piece& piece, int64_t row, float* y,
               int32_t* partial) {
  const PackedWeights& w = args.weights;
  const int8_t* x = args.rows.codes + row * args.rows.stride;
  const int32_t* sums = args.rows.group_sums + row * w.groups;
  int64_t g = piece.steps.begin / w.group_steps;
  for (int64_t s = piece.steps.begin; s < piece.steps.end; ++g) {
    const int64_t group_begin = g * w.group_steps;
    const int64_t left = w.steps - group_begin;
    const int64_t group_end = group_begin + (left < w.group_steps ? left : w.group_steps);
    const int64_t end = group_end < piece.steps.end ? group_end : piece.steps.end;
    if (s == group_begin) {
      Accumulators<R> acc;
      start_group<R>(w, sums, piece.panel, g, acc);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          _mm512_store_si512(partial + r * kPanelColumns + 16 * v, acc[r][v]);
        }
      }
    }
    const uint8_t* codes = piece.codes + (s - piece.steps.begin) * kUnpackedBytes;
    const float* scales = w.scales + (piece.panel * w.groups + g) * kPanelColumns;
    if (end == group_end) {
      dot_steps<R, true>(codes, x + s * kStepChannels, args.rows.stride, end - s, partial, scales, y);
    } else {
      dot_steps<R, false>(codes, x + s * kStepChannels, args.rows.stride, end - s, partial, scales, y);
    }
    s = end;
  }
}

// Many rows (at most kSharedRows): every piece of the panel is unpacked once for all of them.
void shared(const MatMulArgs& args, Range rows, int64_t panel) {
  const PackedWeights& w = args.weights;
  const int64_t line_bytes = kPanelColumns * w.bits;
  const uint8_t* lines = w.lines + panel * w.steps * line_bytes;
  alignas(64) uint8_t codes[kPieceSteps * kUnpackedBytes];
  alignas(64) float y[kSharedRows * kPanelColumns];
  alignas(64) int32_t partial[kSharedRows * kPanelColumns];

  // Tiles of equal height: 16 rows are 6 + 5 + 5, because a last tile of few rows runs slowly.
  const int64_t count = rows.end - rows.begin;
  const int64_t tiles = (count + kMaxRows - 1) / kMaxRows;
  const int64_t whole_groups = kPieceSteps / w.group_steps * w.group_steps;
  std::memset(y, 0, static_cast<size_t>(count * kPanelColumns) * sizeof(float));
  for (int64_t begin = 0; begin < w.steps;) {
    int64_t length = whole_groups;
    if (whole_groups == 0) {  // a longer group: stop at its end
      const int64_t group_left = w.group_steps - begin % w.group_steps;
      length = group_left < kPieceSteps ? group_left : kPieceSteps;
    }
    const int64_t end = begin + length < w.steps ? begin + length : w.steps;
    const uint8_t* source = lines + begin * line_bytes;
    if (w.bits == 4) unpack(source, end - begin, codes);
    const Piece piece = {w.bits == 4 ? codes : source, panel, {begin, end}};
    const int64_t piece_bytes = kPieceSteps * line_bytes;
    for (int64_t t = 0; t < tiles; ++t) {
      // The next piece (or panel) comes from memory while this one is worked on.
      prefetch(lines + end * line_bytes, t * piece_bytes / tiles, (t + 1) * piece_bytes / tiles);
      const int64_t first = t * count / tiles;
      const int64_t row = rows.begin + first;
      float* sums = y + first * kPanelColumns;
      // Whole groups leave nothing behind: their tiles share the same memory, which stays in cache.
      int32_t* rest = whole_groups == 0 ? partial + first * kPanelColumns : partial;
      switch ((t + 1) * count / tiles - first) {
        case 6: add_piece<6>(args, piece, row, sums, rest); break;
        case 5: add_piece<5>(args, piece, row, sums, rest); break;
        case 4: add_piece<4>(args, piece, row, sums, rest); break;
        case 3: add_piece<3>(args, piece, row, sums, rest); break;
        default: break;  // more than kMaxRows rows make no smaller tile
      }
    }
    begin = end;
  }
  store_rows(args, rows, panel, y);
}

template <bool kWide>
void one_panel(const MatMulArgs& args, Range rows, int64_t panel) {
  switch (rows.end - rows.begin) {
    case 0: break;
    case 1: direct<1, kWide>(args, rows.begin, panel); break;
    case 2: direct<2, kWide>(args, rows.begin, panel); break;
    case 3: direct<3, kWide>(args, rows.begin, panel); break;
    case 4: direct<4, kWide>(args, rows.begin, panel); break;
    case 5: direct<5, kWide>(args, rows.begin, panel); break;
    case 6: direct<6, kWide>(args, rows.begin, panel); break;
    default: shared(args, rows, panel); break;
  }
}

}  // namespace

void matmul_avx512vnni(const MatMulArgs& args, Range rows, Range panels) {
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    for (int64_t row = rows.begin; row < rows.end; row += kSharedRows) {
      const int64_t end = row + kSharedRows < rows.end ? row + kSharedRows : rows.end;
      if (args.weights.bits == 4) {
        one_panel<false>(args, {row, end}, panel);
      } else {
        one_panel<true>(args, {row, end}, panel);
      }
    }
  }
}

}  // namespace fptq
