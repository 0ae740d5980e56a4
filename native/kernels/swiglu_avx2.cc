// The gate of a gated MLP with AVX2, FMA and F16C: the operations of swiglu_scalar.cc, in its
// order.
#include <immintrin.h>

#include <cstring>

#include "kernel.h"

namespace fptq {

namespace {

__m256 exponential(__m256 x) {
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-0.693359375f), x);
  r = _mm256_fmadd_ps(n, _mm256_set1_ps(2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.0f / 5040.0f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

__m256 activated(__m256 x, Gate function) {
  __m256 t = x;
  if (function == Gate::kGeluTanh) {
    t = _mm256_mul_ps(x, _mm256_fmadd_ps(_mm256_set1_ps(0.0713548163f), _mm256_mul_ps(x, x),
                                         _mm256_set1_ps(1.59576912f)));
  }
  // min and max return their second operand for a NaN; x / (...) is NaN all the same.
  const __m256 minus = _mm256_xor_ps(t, _mm256_set1_ps(-0.0f));
  const __m256 z =
      _mm256_min_ps(_mm256_max_ps(minus, _mm256_set1_ps(-87.0f)), _mm256_set1_ps(88.0f));
  return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), exponential(z)));
}

}  // namespace

void swiglu_avx2(const SwigluArgs& args) {
  for (int64_t i = 0; i < args.count; i += 8) {
    const int left = static_cast<int>(args.count - i < 8 ? args.count - i : 8);
    const __m256i mask =
        _mm256_cmpgt_epi32(_mm256_set1_epi32(left), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const __m256 x = _mm256_maskload_ps(args.gate + i, mask);
    const __m256 up = _mm256_maskload_ps(args.up + i, mask);
    const __m256 y = _mm256_mul_ps(activated(x, args.function), up);
    if (args.element == Element::kFloat16) {
      const __m128i half = _mm256_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT);
      std::memcpy(static_cast<uint16_t*>(args.output) + i, &half, static_cast<size_t>(2 * left));
    } else {
      _mm256_maskstore_ps(static_cast<float*>(args.output) + i, mask, y);
    }
  }
}

}  // namespace fptq
