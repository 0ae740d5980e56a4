// Activations to int8 with AVX2 and F16C, eight channels (one k-block of the layout) at a time.
#include <immintrin.h>

#include <cstring>

#include "kernel.h"

namespace fptq {

namespace {

__m256 load_floats(const void* input, int64_t index) {
  return _mm256_loadu_ps(
      reinterpret_cast<const float*>(static_cast<const uint8_t*>(input) + 4 * index));
}

__m256 load_halves(const void* input, int64_t index) {
  return _mm256_cvtph_ps(_mm_loadu_si128(
      reinterpret_cast<const __m128i*>(static_cast<const uint8_t*>(input) + 2 * index)));
}

template <bool kHalf>
__m256 load8(const void* input, int64_t index) {
  return kHalf ? load_halves(input, index) : load_floats(input, index);
}

// The last, incomplete k-block of a row, filled up with zeros.
template <bool kHalf>
__m256 load_tail(const void* input, int64_t index, int64_t count) {
  constexpr int64_t kSize = kHalf ? 2 : 4;
  alignas(32) uint8_t padded[8 * kSize] = {};
  std::memcpy(padded, static_cast<const uint8_t*>(input) + kSize * index,
              static_cast<size_t>(kSize * count));
  return load8<kHalf>(padded, 0);
}

uint32_t largest(__m256i v) {
  __m128i m = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(m));
}

int32_t total(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
  return _mm_cvtsi128_si32(s);
}

// Clamping before rounding gives the same codes (the bounds are integers) and keeps infinities from
// becoming the conversion's "invalid" value. min and max return their second operand for a NaN, but
// rows with NaN never get here.
__m256i quantize8(__m256 x, __m256 inverse) {
  const __m256 scaled = _mm256_mul_ps(x, inverse);
  const __m256 clamped =
      _mm256_min_ps(_mm256_max_ps(scaled, _mm256_set1_ps(-128.0f)), _mm256_set1_ps(127.0f));
  return _mm256_cvtps_epi32(clamped);  // half to even
}

void store8(int8_t* codes, __m256i q) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(codes), _mm_packs_epi16(words, words));
}

template <bool kHalf>
void quantize_row(const QuantizeArgs& args, int64_t row) {
  const int64_t first = row * args.k;
  const int64_t whole = args.k / kKr;
  const int64_t rest = args.k % kKr;
  int8_t* codes = args.rows.codes + row * args.rows.stride;
  int32_t* sums = args.rows.group_sums + row * args.groups;

  // The bits of non-negative floats order as the floats do, with infinity and then NaN on top.
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i absmax = _mm256_setzero_si256();
  for (int64_t s = 0; s < whole; ++s) {
    const __m256i bits = _mm256_castps_si256(load8<kHalf>(args.input, first + 8 * s));
    absmax = _mm256_max_epu32(absmax, _mm256_and_si256(bits, magnitude));
  }
  __m256 tail = _mm256_setzero_ps();
  if (rest != 0) {
    tail = load_tail<kHalf>(args.input, first + 8 * whole, rest);
    absmax = _mm256_max_epu32(absmax, _mm256_and_si256(_mm256_castps_si256(tail), magnitude));
  }
  const float scale = row_scale(args, largest(absmax));
  args.rows.scales[row] = scale;
  if (!(scale > 0.0f)) {
    std::memset(codes, 0, static_cast<size_t>(args.k_blocks * kKr));
    std::memset(sums, 0, static_cast<size_t>(args.groups) * sizeof(int32_t));
    return;
  }

  const __m256 inverse = _mm256_set1_ps(1.0f / scale);
  for (int64_t g = 0, s = 0; g < args.groups; ++g) {
    const int64_t left = args.k_blocks - s;
    const int64_t end = s + (left < args.group_k_blocks ? left : args.group_k_blocks);
    __m256i sum = _mm256_setzero_si256();
    for (; s < end; ++s) {
      const __m256 x = s < whole ? load8<kHalf>(args.input, first + 8 * s) : tail;
      const __m256i q = quantize8(x, inverse);
      sum = _mm256_add_epi32(sum, q);
      store8(codes + 8 * s, q);
    }
    sums[g] = total(sum);
  }
}

}  // namespace

void quantize_avx2(const QuantizeArgs& args, Range rows) {
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    if (args.element == Element::kFloat16) {
      quantize_row<true>(args, row);
    } else {
      quantize_row<false>(args, row);
    }
  }
}

}  // namespace fptq
