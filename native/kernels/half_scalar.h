// float16 without instructions for it, for the portable kernel files; none uses all of it.
#pragma once

#include <cstdint>
#include <cstring>

namespace fptq {

namespace {

// float32 to float16, half to even; too large becomes infinity, NaN stays NaN.
[[maybe_unused]] uint16_t narrow(float value) {
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

// float16 to float32, exact.
[[maybe_unused]] float widen(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 31u;
  const uint32_t fraction = half & 1023u;
  uint32_t bits = sign | ((exponent + 112) << 23) | (fraction << 13);
  if (exponent == 31) bits = sign | 0x7f800000u | (fraction << 13);
  if (exponent == 0) {  // zero or subnormal
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    std::memcpy(&bits, &magnitude, sizeof(bits));
    bits |= sign;
  }
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace

}  // namespace fptq
