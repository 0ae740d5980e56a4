// Activations to int8 with AVX-512, 64 channels at a time whatever the groups are: their sums are
// taken from the finished codes, which are in the first-level cache.
#include <immintrin.h>

#include <cstring>

#include "kernel.h"

namespace fptq {

namespace {

constexpr int64_t kChunk = 64;  // channels that become one register of codes

// Lanes 0..count-1 of `lanes`; count may be negative or beyond.
uint64_t first_lanes(int64_t count, int64_t lanes) {
  if (count <= 0) return 0;
  return ~uint64_t{0} >> (64 - (count < lanes ? count : lanes));
}

// The address of element `index`, which may be at any byte.
template <bool kHalf>
const uint8_t* element(const void* input, int64_t index) {
  return static_cast<const uint8_t*>(input) + (kHalf ? 2 : 4) * index;
}

template <bool kHalf>
__m512 load16(const uint8_t* at) {
  if (kHalf) return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  return _mm512_loadu_ps(at);
}

// The first `count` elements (none, if negative), and zeros for the others.
template <bool kHalf>
__m512 load_some(const uint8_t* at, int64_t count) {
  const auto mask = static_cast<__mmask16>(first_lanes(count, 16));
  if (kHalf) return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, at));
  return _mm512_maskz_loadu_ps(mask, at);
}

// The largest magnitude of a row: the bits of non-negative floats order as the floats do, with
// infinity and then NaN on top. Four maxima, because one would wait for itself.
template <bool kHalf>
uint32_t largest(const QuantizeArgs& args, int64_t first) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i most[4] = {};
  int64_t i = 0;
  for (; i + kChunk <= args.k; i += kChunk) {
    const uint8_t* at = element<kHalf>(args.input, first + i);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const __m512i bits = _mm512_castps_si512(load16<kHalf>(at + (kHalf ? 32 : 64) * v));
      most[v] = _mm512_max_epu32(most[v], _mm512_and_si512(bits, magnitude));
    }
  }
  for (; i < args.k; i += 16) {
    const __m512 x = load_some<kHalf>(element<kHalf>(args.input, first + i), args.k - i);
    most[0] = _mm512_max_epu32(most[0], _mm512_and_si512(_mm512_castps_si512(x), magnitude));
  }
  return _mm512_reduce_max_epu32(
      _mm512_max_epu32(_mm512_max_epu32(most[0], most[1]), _mm512_max_epu32(most[2], most[3])));
}

// Clamping before rounding gives the same codes (the bounds are integers). It is needed above only:
// what is too small for the conversion becomes the smallest integer, and the packing saturates.
__m512i round16(__m512 x, __m512 inverse) {
  return _mm512_cvtps_epi32(  // half to even
      _mm512_min_ps(_mm512_mul_ps(x, inverse), _mm512_set1_ps(127.0f)));
}

__m512i pack64(const __m512i (&q)[4]) {
  const __m512i words[2] = {_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3])};
  const __m512i bytes = _mm512_packs_epi16(words[0], words[1]);
  // Packing works within 128 bits: lane 4 i + j has what belongs to lane i + 4 j.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, bytes);
}

template <bool kHalf>
void round_row(const QuantizeArgs& args, int64_t first, __m512 inverse, int8_t* codes) {
  __m512i q[4];
  int64_t i = 0;
  for (; i + kChunk <= args.k; i += kChunk) {
    const uint8_t* at = element<kHalf>(args.input, first + i);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      // The next row, if there is one, comes from memory meanwhile.
      _mm_prefetch(reinterpret_cast<const char*>(at + args.k * (kHalf ? 2 : 4) + 64 * v),
                   _MM_HINT_T1);
      q[v] = round16(load16<kHalf>(at + (kHalf ? 32 : 64) * v), inverse);
    }
    _mm512_storeu_si512(codes + i, pack64(q));
  }
  const int64_t rest = args.k - i;
  if (rest == 0) return;
  const uint8_t* at = element<kHalf>(args.input, first + i);
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    q[v] = round16(load_some<kHalf>(at + (kHalf ? 32 : 64) * v, rest - 16 * v), inverse);
  }
  // To the end of the last k-block; what follows may belong to another thread's row.
  _mm512_mask_storeu_epi8(codes + i, first_lanes(args.k_blocks * kKr - i, 64), pack64(q));
}

// The sum of `count` codes. vpdpbusd adds four signed bytes, times ones, to a lane.
int32_t total(const int8_t* codes, int64_t count) {
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sum = _mm512_setzero_si512();
  int64_t i = 0;
  for (; i + kChunk <= count; i += kChunk) {
    sum = _mm512_dpbusd_epi32(sum, ones, _mm512_loadu_si512(codes + i));
  }
  if (i < count) {
    sum = _mm512_dpbusd_epi32(sum, ones,
                              _mm512_maskz_loadu_epi8(first_lanes(count - i, 64), codes + i));
  }
  return _mm512_reduce_add_epi32(sum);
}

template <bool kHalf>
void quantize_row(const QuantizeArgs& args, int64_t row) {
  const int64_t first = row * args.k;
  int8_t* codes = args.rows.codes + row * args.rows.stride;
  int32_t* sums = args.rows.group_sums + row * args.groups;
  const float scale = row_scale(args, largest<kHalf>(args, first));
  args.rows.scales[row] = scale;
  if (!(scale > 0.0f)) {
    std::memset(codes, 0, static_cast<size_t>(args.k_blocks * kKr));
    std::memset(sums, 0, static_cast<size_t>(args.groups) * sizeof(int32_t));
    return;
  }
  round_row<kHalf>(args, first, _mm512_set1_ps(1.0f / scale), codes);
  const int64_t length = args.group_k_blocks * kKr;
  for (int64_t g = 0; g < args.groups; ++g) {
    const int64_t left = args.k_blocks * kKr - g * length;
    sums[g] = total(codes + g * length, left < length ? left : length);
  }
}

}  // namespace

void quantize_avx512(const QuantizeArgs& args, Range rows) {
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    if (args.element == Element::kFloat16) {
      quantize_row<true>(args, row);
    } else {
      quantize_row<false>(args, row);
    }
  }
}

}  // namespace fptq
