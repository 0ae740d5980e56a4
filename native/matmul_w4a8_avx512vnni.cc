// AVX512-VNNI: vpdpbusd multiplies 64 unsigned bytes (weight codes) by 64 signed ones (activations)
// and adds groups of four into 16 int32 lanes. With the layout of panels.py a register of codes is
// 16 columns by 4 channels, and the activation operand is 4 bytes broadcast to all columns.
//
// A tile is up to 6 rows by 64 columns: 24 accumulators, 4 registers of codes, one of activations:
// 29 of 32. 24 independent accumulators also hide vpdpbusd's latency of 5 cycles at two per cycle.
//
// Unpacking nibbles uses the execution ports that vpdpbusd needs (12 instructions per 48 of them),
// so for many rows a piece of a panel is unpacked once into the first-level cache and reused by
// every tile. For few rows, where memory is the limit, each tile unpacks for itself.
#include <immintrin.h>

#include <cstring>

#include "kernel.h"

namespace fptq {

namespace {

constexpr int kMaxRows = 6;
constexpr int kVectors = 4;  // registers of 16 columns in a panel

// Steps unpacked at once: 16 KiB of the first-level cache.
constexpr int64_t kPieceSteps = 32;
constexpr int64_t kUnpackedBytes = 2 * kLineBytes;  // of one step
// Rows that share an unpacked piece; their sums take 24 KiB, twice where groups are long.
constexpr int64_t kSharedRows = 96;

// Far enough to cover the latency of memory while a panel streams in, and across the 4 KiB page
// at which the hardware prefetcher stops.
constexpr int64_t kPrefetchBytes = 4096;

template <int R>
using Accumulators = __m512i[R][kVectors];

// The instruction is pinned because GCC 12 copies and spills accumulators around the intrinsic,
// which halves the speed.
inline __attribute__((always_inline)) void dot(__m512i& acc, __m512i codes, __m512i x) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(codes), "v"(x));
}

inline __attribute__((always_inline)) __m512i broadcast_quad(const int8_t* x) {
  int32_t quad;
  std::memcpy(&quad, x, sizeof(quad));
  return _mm512_set1_epi32(quad);
}

// acc += codes of 4 channels * activations of R rows.
template <int R>
inline __attribute__((always_inline)) void dot_quad(const __m512i (&codes)[kVectors],
                                                    const int8_t* x, int64_t stride,
                                                    Accumulators<R>& acc) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const __m512i quad = broadcast_quad(x + r * stride);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) dot(acc[r][v], codes[v], quad);
  }
}

template <int R>
inline __attribute__((always_inline)) void dot_packed(const uint8_t* line, const int8_t* x,
                                                      int64_t stride, int64_t steps,
                                                      Accumulators<R>& acc) {
  const __m512i low_nibble = _mm512_set1_epi8(15);
  for (int64_t s = 0; s < steps; ++s, line += kLineBytes, x += kStepChannels) {
    __m512i codes[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      _mm_prefetch(reinterpret_cast<const char*>(line) + kPrefetchBytes + 64 * v, _MM_HINT_T0);
      codes[v] = _mm512_and_si512(_mm512_loadu_si512(line + 64 * v), low_nibble);
    }
    dot_quad<R>(codes, x, stride, acc);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      // Loaded again rather than kept: there is no register to keep it in.
      const __m512i raw = _mm512_loadu_si512(line + 64 * v);
      codes[v] = _mm512_and_si512(_mm512_srli_epi16(raw, 4), low_nibble);
    }
    dot_quad<R>(codes, x + 4, stride, acc);
  }
}

template <int R>
inline __attribute__((always_inline)) void dot_unpacked(const uint8_t* bytes, const int8_t* x,
                                                        int64_t stride, int64_t steps,
                                                        Accumulators<R>& acc) {
  for (int64_t s = 0; s < steps; ++s, bytes += kUnpackedBytes, x += kStepChannels) {
#pragma GCC unroll 8
    for (int half = 0; half < 2; ++half) {
      __m512i codes[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        codes[v] = _mm512_load_si512(bytes + half * kLineBytes + 64 * v);
      }
      dot_quad<R>(codes, x + 4 * half, stride, acc);
    }
  }
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

// acc = -zero * row_sum, which leaves nothing to subtract when the group is complete.
template <int R>
inline __attribute__((always_inline)) void start_group(const PackedWeights& w, const int32_t* sums,
                                                       int64_t panel, int64_t g,
                                                       Accumulators<R>& acc) {
  if (w.zero_points == nullptr) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512i start = _mm512_set1_epi32(-8 * sums[r * w.groups + g]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) acc[r][v] = start;
    }
    return;
  }
  const uint8_t* zero_points = w.zero_points + (panel * w.groups + g) * kPanelColumns;
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    const __m512i zero = _mm512_cvtepu8_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(zero_points + 16 * v)));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      acc[r][v] = _mm512_mullo_epi32(zero, _mm512_set1_epi32(-sums[r * w.groups + g]));
    }
  }
}

// y [R, 64] = acc * scale + y, or without y for the first group.
template <int R>
inline __attribute__((always_inline)) void finish_group(const PackedWeights& w, int64_t panel,
                                                        int64_t g, const Accumulators<R>& acc,
                                                        float* y) {
  const float* scales = w.scales + (panel * w.groups + g) * kPanelColumns;
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    const __m512 scale = _mm512_loadu_ps(scales + 16 * v);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      float* sum = y + r * kPanelColumns + 16 * v;
      const __m512 before = g == 0 ? _mm512_setzero_ps() : _mm512_load_ps(sum);
      _mm512_store_ps(sum, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][v]), scale, before));
    }
  }
}

void store(const MatMulArgs& args, int64_t row, int64_t column, __m512 y) {
  const PackedWeights& w = args.weights;
  const int64_t left = w.n - column;
  const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffff : (1u << left) - 1);
  const __m512 row_scale = _mm512_set1_ps(args.rows.scales[row]);
  const __m512 out =
      w.bias != nullptr
          ? _mm512_fmadd_ps(y, row_scale, _mm512_maskz_loadu_ps(mask, w.bias + column))
          : _mm512_mul_ps(y, row_scale);
  const int64_t index = row * w.n + column;
  if (args.element == Element::kFloat16) {
    const __m256i half = _mm512_cvtps_ph(out, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(args.output) + index, mask, half);
  } else {
    _mm512_mask_storeu_ps(static_cast<float*>(args.output) + index, mask, out);
  }
}

void store_rows(const MatMulArgs& args, Range rows, int64_t panel, const float* y) {
  for (int64_t row = rows.begin; row < rows.end; ++row, y += kPanelColumns) {
    for (int64_t c = 0; c < kPanelColumns; c += 16) {
      const int64_t column = panel * kPanelColumns + c;
      if (column < args.weights.n) store(args, row, column, _mm512_load_ps(y + c));
    }
  }
}

// Few rows: one tile, straight from the packed weights.
template <int R>
void direct(const MatMulArgs& args, int64_t row, int64_t panel) {
  const PackedWeights& w = args.weights;
  const uint8_t* lines = w.lines + panel * w.steps * kLineBytes;
  const int8_t* x = args.rows.codes + row * args.rows.stride;
  const int32_t* sums = args.rows.group_sums + row * w.groups;
  alignas(64) float y[R * kPanelColumns];
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t first = g * w.group_steps;
    const int64_t left = w.steps - first;
    Accumulators<R> acc;
    start_group<R>(w, sums, panel, g, acc);
    dot_packed<R>(lines + first * kLineBytes, x + first * kStepChannels, args.rows.stride,
                  left < w.group_steps ? left : w.group_steps, acc);
    finish_group<R>(w, panel, g, acc, y);
  }
  store_rows(args, {row, row + R}, panel, y);
}

// Steps of one panel, unpacked. A piece holds whole groups, or a part of one longer group.
struct Piece {
  const uint8_t* codes;
  int64_t panel;
  Range steps;
};

// Adds a piece to the sums of R rows: complete groups to y, the beginning of one to `partial`.
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
    Accumulators<R> acc;
    if (s == group_begin) {
      start_group<R>(w, sums, piece.panel, g, acc);
    } else {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          acc[r][v] = _mm512_load_si512(partial + r * kPanelColumns + 16 * v);
        }
      }
    }
    dot_unpacked<R>(piece.codes + (s - piece.steps.begin) * kUnpackedBytes, x + s * kStepChannels,
                    args.rows.stride, end - s, acc);
    if (end == group_end) {
      finish_group<R>(w, piece.panel, g, acc, y);
    } else {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          _mm512_store_si512(partial + r * kPanelColumns + 16 * v, acc[r][v]);
        }
      }
    }
    s = end;
  }
}

void prefetch(const uint8_t* lines, int64_t begin, int64_t end) {
  const char* address = reinterpret_cast<const char*>(lines);
  for (int64_t s = begin * kLineBytes; s < end * kLineBytes; s += 64) {
    _mm_prefetch(address + s, _MM_HINT_T1);
  }
}

// Many rows (at most kSharedRows): every piece of the panel is unpacked once for all of them.
void shared(const MatMulArgs& args, Range rows, int64_t panel) {
  const PackedWeights& w = args.weights;
  const uint8_t* lines = w.lines + panel * w.steps * kLineBytes;
  alignas(64) uint8_t codes[kPieceSteps * kUnpackedBytes];
  alignas(64) float y[kSharedRows * kPanelColumns];
  alignas(64) int32_t partial[kSharedRows * kPanelColumns];

  // Tiles of equal height: 16 rows are 6 + 5 + 5, because a last tile of few rows runs slowly.
  const int64_t count = rows.end - rows.begin;
  const int64_t tiles = (count + kMaxRows - 1) / kMaxRows;
  const int64_t whole_groups = kPieceSteps / w.group_steps * w.group_steps;
  for (int64_t begin = 0; begin < w.steps;) {
    int64_t length = whole_groups;
    if (whole_groups == 0) {  // a longer group: stop at its end
      const int64_t group_left = w.group_steps - begin % w.group_steps;
      length = group_left < kPieceSteps ? group_left : kPieceSteps;
    }
    const int64_t end = begin + length < w.steps ? begin + length : w.steps;
    unpack(lines + begin * kLineBytes, end - begin, codes);
    const Piece piece = {codes, panel, {begin, end}};
    for (int64_t t = 0; t < tiles; ++t) {
      // The next piece (or panel) comes from memory while this one is worked on.
      prefetch(lines + end * kLineBytes, t * kPieceSteps / tiles, (t + 1) * kPieceSteps / tiles);
      const int64_t first = t * count / tiles;
      const int64_t row = rows.begin + first;
      float* sums = y + first * kPanelColumns;
      int32_t* rest = partial + first * kPanelColumns;
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

void one_panel(const MatMulArgs& args, Range rows, int64_t panel) {
  switch (rows.end - rows.begin) {
    case 0: break;
    case 1: direct<1>(args, rows.begin, panel); break;
    case 2: direct<2>(args, rows.begin, panel); break;
    case 3: direct<3>(args, rows.begin, panel); break;
    case 4: direct<4>(args, rows.begin, panel); break;
    case 5: direct<5>(args, rows.begin, panel); break;
    case 6: direct<6>(args, rows.begin, panel); break;
    default: shared(args, rows, panel); break;
  }
}

}  // namespace

void matmul_w4a8_avx512vnni(const MatMulArgs& args, Range rows, Range panels) {
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    for (int64_t row = rows.begin; row < rows.end; row += kSharedRows) {
      const int64_t end = row + kSharedRows < rows.end ? row + kSharedRows : rows.end;
      one_panel(args, {row, end}, panel);
    }
  }
}

}  // namespace fptq
