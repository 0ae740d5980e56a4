// Pieces of tiles for the AVX-512 kernel files, in an unnamed namespace: each file that includes
// this is compiled for AVX-512 and has its own copies, which no linker merges with anything.
//
// A register of codes is 16 columns by 4 channels; the activation operand is 4 bytes broadcast to
// all columns; an accumulator holds 16 columns of one row.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernel.h"

namespace fptq {

namespace {

constexpr int kVectors = 4;  // registers of 16 columns in a panel

// Far enough to cover the latency of memory while a panel streams in, and across the end of a 4 KiB
// page, at which the hardware prefetcher stops. AMD's CPUs want more where several rows are
// computed on the way (4 rows: 13 % on Zen 5), and what one or two rows use once kept out of the
// larger caches. 8 KiB for those would be 5 % slower on one thread: what is fetched then meets what
// is read in the same sets of the first-level cache.
constexpr int64_t kPrefetchDistanceL2 = 4096;   // bytes
constexpr int64_t kPrefetchDistanceL1 = 8192;   // where AMD computes more than kNtaRows rows
constexpr int64_t kPrefetchDistanceNta = 4864;  // where AMD computes up to kNtaRows rows
constexpr int kNtaRows = 2;
// The cache that weights for few rows are fetched into: see tuned_for_amd().
enum class PrefetchHint { kL1, kL2 };

constexpr int64_t kUnpackedBlockBytes = kPackedBlockBytesW8;  // one byte per code

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

// The scales of groups are a stream of their own, too thin for the hardware prefetcher, and so are
// their zero points. Fetched when the blocks of a group begin, those of the next would come too
// late: a group of 128 channels takes no longer than memory takes to answer.
constexpr int64_t kScalesPrefetchDistance = 4096;
inline int64_t scales_prefetch_distance(const PackedWeights& w) {
  return 1 + kScalesPrefetchDistance / (w.group_k_blocks * kNr * w.bits);
}
template <PrefetchHint kHint>
inline __attribute__((always_inline)) void prefetch_scales(const PackedWeights& w, int64_t panel,
                                                           int64_t g) {
  constexpr auto kLocality = kHint == PrefetchHint::kL1 ? _MM_HINT_T0 : _MM_HINT_T1;
  const int64_t first = (panel * w.groups + g) * kNr;
  const auto* scales = reinterpret_cast<const char*>(w.scales + first * w.scale_bytes);
  _mm_prefetch(scales, kLocality);
  _mm_prefetch(scales + 64, kLocality);
  if (w.scale_bytes == 4) {
    _mm_prefetch(scales + 128, kLocality);
    _mm_prefetch(scales + 192, kLocality);
  }
  if (w.zero_points != nullptr) {
    _mm_prefetch(reinterpret_cast<const char*>(w.zero_points + first), kLocality);
  }
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

template <int R, PrefetchHint kHint>
inline __attribute__((always_inline)) void prefetch_weights(const uint8_t* block) {
  const char* at = reinterpret_cast<const char*>(block);
  if (kHint == PrefetchHint::kL1 && R <= kNtaRows) {
    _mm_prefetch(at + kPrefetchDistanceNta, _MM_HINT_NTA);
  } else if (kHint == PrefetchHint::kL1) {
    _mm_prefetch(at + kPrefetchDistanceL1, _MM_HINT_T0);
  } else {
    _mm_prefetch(at + kPrefetchDistanceL2, _MM_HINT_T1);
  }
}

// acc += codes of `k_blocks` blocks of 4-bit weights * activations of R rows.
template <int R, PrefetchHint kHint>
inline __attribute__((always_inline)) void dot_w4(const uint8_t* block, const int8_t* x,
                                                  int64_t stride, int64_t k_blocks,
                                                  Accumulators<R>& acc) {
  const __m512i low_nibble = _mm512_set1_epi8(15);
  for (int64_t s = 0; s < k_blocks; ++s, block += kPackedBlockBytesW4, x += kKr) {
    __m512i codes[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      prefetch_weights<R, kHint>(block + 64 * v);
      codes[v] = _mm512_and_si512(_mm512_loadu_si512(block + 64 * v), low_nibble);
    }
    dot_quad<R>(codes, x, stride, acc);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      // Loaded again rather than kept: there is no register to keep it in.
      const __m512i raw = _mm512_loadu_si512(block + 64 * v);
      codes[v] = _mm512_and_si512(_mm512_srli_epi16(raw, 4), low_nibble);
    }
    dot_quad<R>(codes, x + 4, stride, acc);
  }
}

// The same for 8-bit weights.
template <int R, PrefetchHint kHint>
inline __attribute__((always_inline)) void dot_w8(const uint8_t* bytes, const int8_t* x,
                                                  int64_t stride, int64_t k_blocks,
                                                  Accumulators<R>& acc) {
  for (int64_t s = 0; s < k_blocks; ++s, bytes += kUnpackedBlockBytes, x += kKr) {
#pragma GCC unroll 8
    for (int half = 0; half < 2; ++half) {
      __m512i codes[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const uint8_t* at = bytes + half * kHalfBlockBytes + 64 * v;
        prefetch_weights<R, kHint>(at);
        codes[v] = _mm512_loadu_si512(at);
      }
      dot_quad<R>(codes, x + 4 * half, stride, acc);
    }
  }
}

// acc = -zero * row_sum, which leaves nothing to subtract when the group is complete.
template <int R>
inline __attribute__((always_inline)) void start_group(const PackedWeights& w, const int32_t* sums,
                                                       int64_t panel, int64_t g,
                                                       Accumulators<R>& acc) {
  if (w.zero_points == nullptr) {
    const int32_t middle = w.bits == 4 ? 8 : 128;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512i start = _mm512_set1_epi32(-middle * sums[r * w.groups + g]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) acc[r][v] = start;
    }
    return;
  }
  const uint8_t* zero_points = w.zero_points + (panel * w.groups + g) * kNr;
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

// Scales from number `first` on, 16 in each register; float32 holds those of float16 exactly.
template <int N>
inline __attribute__((always_inline)) void load_scales(const PackedWeights& w, int64_t first,
                                                       __m512 (&scales)[N]) {
  const uint8_t* at = w.scales + first * w.scale_bytes;
  if (w.scale_bytes == 2) {
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) {
      scales[v] =
          _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32 * v)));
    }
  } else {
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) scales[v] = _mm512_loadu_ps(at + 64 * v);
  }
}

// y [R, 64] = acc * scale + y, or without y for the first group.
template <int R>
inline __attribute__((always_inline)) void finish_group(const PackedWeights& w, int64_t panel,
                                                        int64_t g, const Accumulators<R>& acc,
                                                        float* y) {
  __m512 scales[kVectors];
  load_scales(w, (panel * w.groups + g) * kNr, scales);
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      float* sum = y + r * kNr + 16 * v;
      const __m512 before = g == 0 ? _mm512_setzero_ps() : _mm512_load_ps(sum);
      _mm512_store_ps(sum, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][v]), scales[v], before));
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
  const int64_t index = row * args.output_stride + column;
  if (args.element == Element::kFloat16) {
    const __m256i half = _mm512_cvtps_ph(out, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(args.output) + index, mask, half);
  } else {
    _mm512_mask_storeu_ps(static_cast<float*>(args.output) + index, mask, out);
  }
}

void store_rows(const MatMulArgs& args, Range rows, int64_t panel, const float* y) {
  const PackedWeights& w = args.weights;
  const int64_t first = panel * kNr;
  if (first + kNr <= w.n && args.element == Element::kFloat32 && w.bias == nullptr) {
    float* out = static_cast<float*>(args.output) + rows.begin * args.output_stride + first;
    for (int64_t row = rows.begin; row < rows.end; ++row, y += kNr) {
      const __m512 row_scale = _mm512_set1_ps(args.rows.scales[row]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        _mm512_storeu_ps(out + 16 * v, _mm512_mul_ps(_mm512_load_ps(y + 16 * v), row_scale));
      }
      out += args.output_stride;
    }
    return;
  }
  for (int64_t row = rows.begin; row < rows.end; ++row, y += kNr) {
    for (int64_t c = 0; c < kNr; c += 16) {
      const int64_t column = panel * kNr + c;
      if (column < args.weights.n) store(args, row, column, _mm512_load_ps(y + c));
    }
  }
}

}  // namespace

}  // namespace fptq
