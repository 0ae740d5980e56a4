// Activations to int8, as fptq_onnx/numerics/int8.py defines it. The reference for the other files.
#include <cstring>

#include "half_scalar.h"
#include "kernel.h"

namespace fptq {

namespace {

constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr uint32_t kTinyBits = 0x00800000u;  // smallest normal float

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// memcpy because a tensor in a file may start at any byte.
float load(const QuantizeArgs& args, int64_t index) {
  const auto* bytes = static_cast<const uint8_t*>(args.input);
  if (args.element == Element::kFloat16) {
    uint16_t half;
    std::memcpy(&half, bytes + 2 * index, sizeof(half));
    return widen(half);
  }
  float value;
  std::memcpy(&value, bytes + 4 * index, sizeof(value));
  return value;
}

int8_t round_to_int8(float scaled) {
  // Clamping first gives the same result as rounding first, since the bounds are integers.
  const float clamped = scaled < -128.0f ? -128.0f : scaled > 127.0f ? 127.0f : scaled;
  // Adding 1.5 * 2^23 leaves no bits for the fraction, so the addition itself rounds half to even.
  constexpr float kShift = 12582912.0f;
  const volatile float shifted = clamped + kShift;
  return static_cast<int8_t>(static_cast<int32_t>(shifted - kShift));
}

void quantize_row(const QuantizeArgs& args, int64_t row) {
  const int64_t first = row * args.k;
  int8_t* codes = args.rows.codes + row * args.rows.stride;
  int32_t* sums = args.rows.group_sums + row * args.groups;

  // The bits of non-negative floats order as the floats do, with infinity and then NaN on top.
  uint32_t absmax = 0;
  for (int64_t k = 0; k < args.k; ++k) {
    const uint32_t bits = to_bits(load(args, first + k)) & 0x7fffffffu;
    if (bits > absmax) absmax = bits;
  }
  const float scale = row_scale(args, absmax);
  args.rows.scales[row] = scale;

  std::memset(codes, 0, static_cast<size_t>(args.k_blocks * kKr));
  std::memset(sums, 0, static_cast<size_t>(args.groups) * sizeof(int32_t));
  if (!(scale > 0.0f)) return;
  const float inverse = 1.0f / scale;
  const int64_t group_length = args.group_k_blocks * kKr;
  for (int64_t k = 0; k < args.k; ++k) {
    codes[k] = round_to_int8(load(args, first + k) * inverse);
    sums[k / group_length] += codes[k];
  }
}

}  // namespace

float row_scale(const QuantizeArgs& args, uint32_t absmax_bits) {
  const float nan = from_bits(0x7fc00000u);
  if (!args.per_token) return absmax_bits > kInfinityBits ? nan : args.static_scale;
  if (absmax_bits >= kInfinityBits) return nan;
  const float scale = from_bits(absmax_bits) / 127.0f;
  return scale < from_bits(kTinyBits) ? 0.0f : scale;
}

void quantize_scalar(const QuantizeArgs& args, Range rows) {
  for (int64_t row = rows.begin; row < rows.end; ++row) quantize_row(args, row);
}

}  // namespace fptq
