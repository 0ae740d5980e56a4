// AVX512-VNNI: vpdpbusd multiplies 64 unsigned bytes (weight codes) by 64 signed ones (activations)
// and adds groups of four into 16 int32 lanes. With the layout of panels.py a register of codes is
// 16 columns by 4 channels, and the activation operand is one 32-bit broadcast from memory.
//
// A tile is up to 6 rows by 64 columns: 24 accumulators, 4 registers of raw weights, a mask and a
// temporary, 30 of the 32 registers. 24 independent accumulators also hide vpdpbusd's latency of
// 5 cycles at one or two per cycle.
#include <immintrin.h>

#include "kernel.h"

namespace fptq {

namespace {

constexpr int kMaxRows = 6;
constexpr int kVectors = 4;  // registers of 16 columns in a panel

// Far enough to cover the latency of memory while a panel streams in, and across the 4 KiB page
// at which the hardware prefetcher stops.
constexpr int64_t kPrefetchBytes = 4096;

// Four activation bytes as one operand; they live in an int8 array without alignment.
using Quad = int32_t __attribute__((may_alias, aligned(1)));

// The instruction is pinned because GCC 12 copies and spills accumulators around the intrinsic,
// which halves the speed.
inline __attribute__((always_inline)) void dot(__m512i& acc, __m512i codes, const int8_t* x) {
  __asm__("vpdpbusd %2%{1to16%}, %1, %0"
          : "+v"(acc)
          : "v"(codes), "m"(*reinterpret_cast<const Quad*>(x)));
}

struct Group {
  const uint8_t* lines;
  const int8_t* x;
  int64_t stride;
  int64_t steps;
};

// acc[r][v] += codes * x over one group.
template <int R>
inline __attribute__((always_inline)) void accumulate(const Group& group,
                                                      __m512i (&acc)[R][kVectors]) {
  const __m512i low_nibble = _mm512_set1_epi8(15);
  const uint8_t* line = group.lines;
  const int8_t* x = group.x;
  const int64_t stride = group.stride;
  for (int64_t s = 0; s < group.steps; ++s, line += kLineBytes, x += kStepChannels) {
    __m512i raw[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      _mm_prefetch(reinterpret_cast<const char*>(line) + kPrefetchBytes + 64 * v, _MM_HINT_T0);
      raw[v] = _mm512_loadu_si512(line + 64 * v);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const __m512i low = _mm512_and_si512(raw[v], low_nibble);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) dot(acc[r][v], low, x + r * stride);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16(raw[v], 4), low_nibble);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) dot(acc[r][v], high, x + r * stride + 4);
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

template <int R>
void tile(const MatMulArgs& args, int64_t row, int64_t panel) {
  const PackedWeights& w = args.weights;
  const uint8_t* lines = w.lines + panel * w.steps * kLineBytes;
  const int8_t* x = args.rows.codes + row * args.rows.stride;
  const int32_t* sums = args.rows.group_sums + row * w.groups;

  __m512 y[R][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) y[r][v] = _mm512_setzero_ps();
  }
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t first = g * w.group_steps;
    const int64_t left = w.steps - first;
    const int64_t base = (panel * w.groups + g) * kPanelColumns;
    __m512i acc[R][kVectors];
    // Starting from -zero * row_sum leaves nothing to subtract afterwards.
    if (w.zero_points == nullptr) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m512i start = _mm512_set1_epi32(-8 * sums[r * w.groups + g]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) acc[r][v] = start;
      }
    } else {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const __m512i zero = _mm512_cvtepu8_epi32(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(w.zero_points + base + 16 * v)));
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const __m512i minus_sum = _mm512_set1_epi32(-sums[r * w.groups + g]);
          acc[r][v] = _mm512_mullo_epi32(zero, minus_sum);
        }
      }
    }
    accumulate<R>({lines + first * kLineBytes, x + first * kStepChannels, args.rows.stride,
                   left < w.group_steps ? left : w.group_steps},
                  acc);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const __m512 scale = _mm512_loadu_ps(w.scales + base + 16 * v);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        y[r][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][v]), scale, y[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const int64_t column = panel * kPanelColumns + 16 * v;
      if (column < w.n) store(args, row + r, column, y[r][v]);
    }
  }
}

}  // namespace

void matmul_w4a8_avx512vnni(const MatMulArgs& args, Range rows, Range panels) {
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    int64_t row = rows.begin;
    for (; rows.end - row >= kMaxRows; row += kMaxRows) tile<kMaxRows>(args, row, panel);
    switch (rows.end - row) {
      case 1: tile<1>(args, row, panel); break;
      case 2: tile<2>(args, row, panel); break;
      case 3: tile<3>(args, row, panel); break;
      case 4: tile<4>(args, row, panel); break;
      case 5: tile<5>(args, row, panel); break;
      default: break;
    }
  }
}

}  // namespace fptq
