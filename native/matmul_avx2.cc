// AVX2: vpmaddubsw multiplies unsigned bytes (weight codes) by signed ones (activations) and adds
// pairs into int16. A pair is at most 2 * 15 * 128 = 3840 in magnitude, so 8 of them (4 steps of the
// layout) fit int16 without saturating; then vpmaddwd with ones widens to int32.
//
// A tile is R rows by V registers of 8 columns with R * V = 8 int16 accumulators: 4 x 2 where rows
// are many, 1 x 8 (a whole panel line in order) for a single row, which memory bandwidth bounds.
#include <immintrin.h>

#include <cstring>

#include "kernel.h"

namespace fptq {

namespace {

constexpr int kMaxRows = 4;
constexpr int64_t kFlushSteps = 4;
constexpr int64_t kPrefetchBytes = 2048;

__m256i broadcast_quad(const int8_t* x) {
  int32_t quad;
  std::memcpy(&quad, x, sizeof(quad));
  return _mm256_set1_epi32(quad);
}

__m256i load(const uint8_t* bytes) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
}

// acc[r][v] += the dot products of `steps` (at most kFlushSteps) steps.
template <int R, int V>
inline __attribute__((always_inline)) void add_steps(const uint8_t* line, const int8_t* x,
                                                     int64_t stride, int64_t steps,
                                                     __m256i (&acc)[R][V]) {
  const __m256i low_nibble = _mm256_set1_epi8(15);
  __m256i pairs[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) pairs[r][v] = _mm256_setzero_si256();
  }
  for (int64_t s = 0; s < steps; ++s, line += kLineBytes, x += kStepChannels) {
    _mm_prefetch(reinterpret_cast<const char*>(line) + kPrefetchBytes, _MM_HINT_T0);
    if (V == 8) {  // the whole line is used here, so fetch its other cache lines too
      _mm_prefetch(reinterpret_cast<const char*>(line) + kPrefetchBytes + 64, _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(line) + kPrefetchBytes + 128, _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(line) + kPrefetchBytes + 192, _MM_HINT_T0);
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const __m256i raw = load(line + 32 * v);
      const __m256i low = _mm256_and_si256(raw, low_nibble);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(raw, 4), low_nibble);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const int8_t* row = x + r * stride;
        const __m256i first = _mm256_maddubs_epi16(low, broadcast_quad(row));
        const __m256i second = _mm256_maddubs_epi16(high, broadcast_quad(row + 4));
        pairs[r][v] = _mm256_add_epi16(pairs[r][v], _mm256_add_epi16(first, second));
      }
    }
  }
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(pairs[r][v], ones));
    }
  }
}

void store(const MatMulArgs& args, int64_t row, int64_t column, __m256 y) {
  const PackedWeights& w = args.weights;
  const int64_t left = w.n - column;
  const __m256 row_scale = _mm256_set1_ps(args.rows.scales[row]);
  const __m256i mask =
      _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(left < 8 ? left : 8)),
                         _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  const __m256 out = w.bias != nullptr
                         ? _mm256_fmadd_ps(y, row_scale, _mm256_maskload_ps(w.bias + column, mask))
                         : _mm256_mul_ps(y, row_scale);
  const int64_t index = row * args.output_stride + column;
  if (args.element == Element::kFloat16) {
    const __m128i half = _mm256_cvtps_ph(out, _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(static_cast<uint16_t*>(args.output) + index, &half,
                static_cast<size_t>(2 * (left < 8 ? left : 8)));
  } else {
    _mm256_maskstore_ps(static_cast<float*>(args.output) + index, mask, out);
  }
}

// R rows by the V registers of columns that start at `offset` within the panel.
template <int R, int V>
void tile(const MatMulArgs& args, int64_t row, int64_t panel, int64_t offset) {
  const PackedWeights& w = args.weights;
  const uint8_t* lines = w.lines + panel * w.steps * kLineBytes + 4 * offset;
  const int8_t* x = args.rows.codes + row * args.rows.stride;
  const int64_t stride = args.rows.stride;
  const int32_t* sums = args.rows.group_sums + row * w.groups;

  __m256 y[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) y[r][v] = _mm256_setzero_ps();
  }
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t first = g * w.group_steps;
    const int64_t left = w.steps - first;
    const int64_t end = first + (left < w.group_steps ? left : w.group_steps);
    const int64_t base = (panel * w.groups + g) * kPanelColumns + offset;
    __m256i acc[R][V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      __m256i zero = _mm256_set1_epi32(8);
      if (w.zero_points != nullptr) {
        zero = _mm256_cvtepu8_epi32(
            _mm_loadl_epi64(reinterpret_cast<const __m128i*>(w.zero_points + base + 8 * v)));
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        // Starting from -zero * row_sum leaves nothing to subtract afterwards.
        acc[r][v] = _mm256_mullo_epi32(zero, _mm256_set1_epi32(-sums[r * w.groups + g]));
      }
    }
    int64_t s = first;
    for (; s + kFlushSteps <= end; s += kFlushSteps) {
      add_steps<R, V>(lines + s * kLineBytes, x + s * kStepChannels, stride, kFlushSteps, acc);
    }
    if (s < end) {
      add_steps<R, V>(lines + s * kLineBytes, x + s * kStepChannels, stride, end - s, acc);
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const __m256 scale = _mm256_loadu_ps(w.scales + base + 8 * v);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        y[r][v] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[r][v]), scale, y[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const int64_t column = panel * kPanelColumns + offset + 8 * v;
      if (column < w.n) store(args, row + r, column, y[r][v]);
    }
  }
}

template <int R, int V>
void panel_tiles(const MatMulArgs& args, int64_t row, int64_t panel) {
  for (int64_t offset = 0; offset < kPanelColumns; offset += 8 * V) {
    tile<R, V>(args, row, panel, offset);
  }
}

}  // namespace

void matmul_avx2(const MatMulArgs& args, Range rows, Range panels) {
  if (args.weights.bits == 8) return matmul_scalar(args, rows, panels);
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    int64_t row = rows.begin;
    for (; rows.end - row >= kMaxRows; row += kMaxRows) panel_tiles<kMaxRows, 2>(args, row, panel);
    switch (rows.end - row) {
      case 1: panel_tiles<1, 8>(args, row, panel); break;
      case 2: panel_tiles<2, 4>(args, row, panel); break;
      case 3: panel_tiles<3, 2>(args, row, panel); break;
      default: break;
    }
  }
}

}  // namespace fptq
