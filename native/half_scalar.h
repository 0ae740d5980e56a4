// Rounding to float16 without instructions for it, for the portable kernel files.
#pragma once

#include <cstdint>
#include <cstring>

namespace fptq {

namespace {

// float32 to float16, half to even; too large becomes infinity, NaN stays NaN.
uint16_t narrow(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;   // NaN
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // rounds above 65504
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the result is a multiple of 2^-24. Scaled by 2^24 it is at most 1024; adding 2^23
    // drops the fraction and rounds half to even, and leaves the integer in the low bits.
    float scaled;
    std::memcpy(&scaled, &magnitude, sizeof(scaled));
    const volatile float shifted = scaled * 0x1p24f + 0x1p23f;
    const float result = shifted;
    std::memcpy(&bits, &result, sizeof(bits));
    return static_cast<uint16_t>(sign | (bits & 0x7ffu));
  }
  const uint32_t rebased = magnitude - (112u << 23);
  const uint32_t odd = (rebased >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((rebased + 0xfffu + odd) >> 13));
}

}  // namespace

}  // namespace fptq
