#include "random_problem.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace fptq_test {

int64_t pick(Random& random, int64_t low, int64_t high) {
  return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
}

uint16_t half_bits(float value) {
  if (std::isnan(value)) return 0x7e00;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (std::isinf(magnitude)) return sign | 0x7c00;
  if (magnitude == 0) return sign;
  int exponent = 0;
  const float fraction = std::frexp(magnitude, &exponent);  // 0.5..1
  if (exponent < -13)
    return static_cast<uint16_t>(sign | static_cast<int>(std::ldexp(magnitude, 24)));
  return static_cast<uint16_t>(sign | ((exponent + 14) << 10) |
                               (static_cast<int>(std::ldexp(fraction, 11)) & 1023));
}

uint16_t round_to_half(float value) {
  if (std::isnan(value)) return 0x7e00;
  const double magnitude = std::fabs(static_cast<double>(value));
  if (magnitude >= 65520.0) return half_bits(value > 0 ? INFINITY : -INFINITY);
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const int last_bit = std::max(exponent - 11, -24);
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(magnitude, -last_bit)), last_bit);
  return half_bits(std::copysign(static_cast<float>(rounded), value));
}

float half_value(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 1023;
  if (exponent == 31) return fraction ? NAN : bits & 0x8000 ? -INFINITY : INFINITY;
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(fraction), -24)
                              : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

Problem random_problem(Random& random) {
  // Longer blocks are worked on in pieces: 520 and 1024 also twice and more in one problem.
  static const int64_t kBlocks[] = {8, 16, 32, 64, 128, 256, 520, 1024, -1};
  Problem p{};
  p.m = pick(random, 1, random() % 16 == 0 ? 300 : random() % 2 ? 40 : 7);
  p.k = pick(random, 1, random() % 4 == 0 ? 900 : 140);
  if (random() % 16 == 0) p.k = pick(random, 1000, 2400);
  p.n = pick(random, 1, 200);
  p.block = kBlocks[random() % 9];
  p.bits = random() % 4 == 0 ? 8 : 4;
  p.per_token = random() % 2;
  p.half = random() % 3 == 0;
  p.static_scale = std::ldexp(1.0f + static_cast<float>(random() % 1000) / 1000.0f,
                              static_cast<int>(pick(random, -9, -4)));
  p.codes.resize(static_cast<size_t>(p.k * p.n));
  p.scales.resize(static_cast<size_t>(p.groups() * p.n));
  p.activations.resize(static_cast<size_t>(p.m * p.k));

  // A third of the problems have extreme values only; half of those with one sign, which makes the
  // largest sums there can be (static scales below 1/16 turn -7.996 into the code -128).
  const bool extreme = random() % 3 == 0;
  const bool one_sign = random() % 2;
  const uint32_t largest = p.bits == 4 ? 15 : 255;
  for (auto& c : p.codes) {
    c = static_cast<uint8_t>(extreme ? (one_sign ? 1 : random() % 2) * largest
                                     : random() % (largest + 1));
  }
  p.half_scales = random() % 2;
  // Sometimes results overflow or become subnormal, or scales do, of float16.
  const int wide = random() % 8 != 0 ? 6 : p.half_scales ? 24 : 120;
  for (auto& s : p.scales) {
    s = std::ldexp(1.0f + static_cast<float>(random() % 4096) / 4096.0f,
                   static_cast<int>(pick(random, -wide, wide)));
    if (p.half_scales) s = half_value(round_to_half(s));
  }
  if (random() % 2) {
    p.zero_points.resize(p.scales.size());
    for (auto& z : p.zero_points) z = static_cast<uint8_t>(random() % (largest + 1));
  }
  if (random() % 2) {
    p.bias.resize(static_cast<size_t>(p.n));
    for (auto& b : p.bias) b = static_cast<float>(pick(random, -1000, 1000)) / 64.0f;
  }
  for (auto& a : p.activations) {
    // Multiples of 1/256 below 8: float16 holds them. Steps of the static scale are hit between
    // and on the halves, and 127 / 128 are passed.
    a = extreme ? (!one_sign && random() % 2 ? 7.99609375f : -7.99609375f)
                : static_cast<float>(pick(random, -2047, 2047)) / 256.0f;
  }
  auto plant = [&](float value) { p.activations[random() % p.activations.size()] = value; };
  switch (random() % 12) {
    case 0: plant(NAN); break;
    case 1: plant(INFINITY); break;
    case 2: plant(-INFINITY); break;
    case 3:  // a row of zeros, and one of float16 subnormals
      for (int64_t k = 0; k < p.k; ++k) p.activations[k] = 0.0f;
      for (int64_t k = 0; k < p.k && p.m > 1; ++k)
        p.activations[p.k + k] = std::ldexp(static_cast<float>(pick(random, -9, 9)), -24);
      break;
    case 4:  // rows whose scale is below the smallest normal float
      if (!p.half)
        for (auto& a : p.activations) a = std::ldexp(a, -130);
      break;
    default: break;
  }
  return p;
}

Packed pack(const Problem& p) {
  const int64_t panels = (p.n + 63) / 64;
  const int64_t k_blocks = (p.k + 7) / 8;
  const int64_t groups = p.groups();
  Packed out;
  const int64_t block = 64 * p.bits;
  out.blocks.assign(static_cast<size_t>(panels * k_blocks * block), 0);
  for (int64_t k = 0; k < p.k; ++k) {
    for (int64_t n = 0; n < p.n; ++n) {
      const bool high = k % 8 >= 4;
      int64_t byte = ((n / 64) * k_blocks + k / 8) * block + 4 * (n % 64) + k % 4;
      if (p.bits == 8 && high) byte += 256;
      out.blocks[byte] |=
          static_cast<uint8_t>(p.codes[k * p.n + n] << (p.bits == 4 && high ? 4 : 0));
    }
  }
  const int64_t values = panels * groups * 64;
  out.scale_bytes = p.half_scales ? 2 : 4;
  out.scales.assign(static_cast<size_t>(values * out.scale_bytes), 0);
  if (!p.zero_points.empty()) out.zero_points.assign(static_cast<size_t>(values), 0);
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t n = 0; n < p.n; ++n) {
      const int64_t at = ((n / 64) * groups + g) * 64 + n % 64;
      const float scale = p.scales[g * p.n + n];
      const uint16_t half = half_bits(scale);
      uint8_t* to = out.scales.data() + at * out.scale_bytes;
      std::memcpy(to, p.half_scales ? static_cast<const void*>(&half) : &scale,
                  static_cast<size_t>(out.scale_bytes));
      if (!p.zero_points.empty()) out.zero_points[at] = p.zero_points[g * p.n + n];
    }
  }
  return out;
}

}  // namespace fptq_test
