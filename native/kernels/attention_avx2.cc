// Attention with AVX2 and FMA: see attention_tiles.h.
#include <immintrin.h>

#include <cstdint>

namespace fptq {
namespace {
constexpr int kLanes = 8;  // floats of a register
}
}  // namespace fptq

#include "attention_tiles.h"

namespace fptq {

namespace {

inline Floats load_floats(const int8_t* codes) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
  return static_cast<Floats>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
}

}  // namespace

void attention_avx2(const AttentionTask& task) { attend(task); }

void rope_avx2(const RopeArgs& args) { apply_rope(args); }

void quantize_kv_avx2(const QuantizeKvArgs& args) { quantize_values(args); }

}  // namespace fptq
