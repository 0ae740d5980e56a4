// Vectors of kLanes floats for attention_tiles.h, in the compiler's own vector extensions. In an
// unnamed namespace, see there.
#pragma once

#include <cstring>

#include "attention.h"

namespace fptq {

namespace {

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef float Four __attribute__((vector_size(16)));
typedef int32_t FourInts __attribute__((vector_size(16)));

// Not those of <algorithm>, whose copies the linker would merge.
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
void fill(float* to, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

template <class V>
inline __attribute__((always_inline)) V load(const float* from) {
  V v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}
template <class V>
inline __attribute__((always_inline)) void store(float* to, V v) {
  std::memcpy(to, &v, sizeof(v));
}

// What lies in a cache, as floats.
inline __attribute__((always_inline)) Floats load_floats(const float* from) {
  return load<Floats>(from);
}
// As many codes as a register has floats. Each file that includes this defines it with its own
// instructions: GCC 12 makes dozens of them from vector types.
inline Floats load_floats(const int8_t* codes);

// e^x for x <= 0: 0 below -87, NaN for NaN; relative error below 2^-22. Cephes' reduction by ln 2
// in two parts and a Taylor polynomial, as in swiglu_scalar.cc.
inline __attribute__((always_inline)) Floats exponential(Floats x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  const Floats shifted = x * 1.44269504f + kMagic;
  const Floats n = shifted - kMagic;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * (1.0f / 5040.0f) + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  Words bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits << 23) + (127u << 23);  // only the integer's low bits are left: 2^n
  Floats power;
  std::memcpy(&power, &bits, sizeof(power));
  const Floats zero = {};
  return x < -87.0f ? zero : p * power;
}

// The elements of v exchanged with those `distance` away.
template <int distance>
inline __attribute__((always_inline)) Floats exchanged(Floats v) {
  Ints index;
  for (int i = 0; i < kLanes; ++i) index[i] = i ^ distance;
  return __builtin_shuffle(v, index);
}
template <class Combine>
inline __attribute__((always_inline)) float across(Floats v, const Combine& combine) {
  if constexpr (kLanes >= 16) v = combine(v, exchanged<8>(v));
  if constexpr (kLanes >= 8) v = combine(v, exchanged<4>(v));
  v = combine(v, exchanged<2>(v));
  v = combine(v, exchanged<1>(v));
  return v[0];
}

// Codes as floats, which hold them exactly.
void widen(const int8_t* codes, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(codes[i]);
}

// [keys, size] -> [size, kAttentionKeys]; columns without a key become 0.
void transpose(const float* k, int64_t keys, int64_t size, float* out) {
  int64_t key = 0;
  for (; key + 4 <= keys; key += 4) {
    const float* from = k + key * size;
    int64_t d = 0;
    for (; d + 4 <= size; d += 4) {
      const Four a = load<Four>(from + d), b = load<Four>(from + size + d);
      const Four c = load<Four>(from + 2 * size + d), e = load<Four>(from + 3 * size + d);
      const FourInts low = {0, 4, 1, 5}, high = {2, 6, 3, 7}, first = {0, 1, 4, 5},
                     last = {2, 3, 6, 7};
      const Four ab_low = __builtin_shuffle(a, b, low), ab_high = __builtin_shuffle(a, b, high);
      const Four ce_low = __builtin_shuffle(c, e, low), ce_high = __builtin_shuffle(c, e, high);
      float* to = out + d * kAttentionKeys + key;
      store(to, __builtin_shuffle(ab_low, ce_low, first));
      store(to + kAttentionKeys, __builtin_shuffle(ab_low, ce_low, last));
      store(to + 2 * kAttentionKeys, __builtin_shuffle(ab_high, ce_high, first));
      store(to + 3 * kAttentionKeys, __builtin_shuffle(ab_high, ce_high, last));
    }
    for (; d < size; ++d) {
      for (int64_t i = 0; i < 4; ++i) out[d * kAttentionKeys + key + i] = from[i * size + d];
    }
  }
  for (; key < kAttentionKeys; ++key) {
    for (int64_t d = 0; d < size; ++d) {
      out[d * kAttentionKeys + key] = key < keys ? k[key * size + d] : 0.0f;
    }
  }
}

}  // namespace

}  // namespace fptq
