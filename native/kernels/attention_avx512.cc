// Attention with AVX-512: see attention_tiles.h.
#include <immintrin.h>

#include <cstdint>

namespace fptq {
namespace {
constexpr int kLanes = 16;  // floats of a register
}
}  // namespace fptq

#include "attention_tiles.h"

namespace fptq {

namespace {

inline Floats load_floats(const int8_t* codes) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
  return static_cast<Floats>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
}

}  // namespace

void attention_avx512(const AttentionTask& task) { attend(task); }

void rope_avx512(const RopeArgs& args) { apply_rope(args); }

void quantize_kv_avx512(const QuantizeKvArgs& args) { quantize_values(args); }

}  // namespace fptq
