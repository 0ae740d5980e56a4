// Activations to int8 with NEON, eight channels (one k-block of the layout) at a time.
#include <arm_neon.h>

#include <cstring>

#include "kernel.h"

namespace fptq {

namespace {

struct Eight {
  float32x4_t low, high;
};

// Up to 8 elements, filled up with zeros.
Eight load(const QuantizeArgs& args, int64_t index, int64_t count) {
  const auto* bytes = static_cast<const uint8_t*>(args.input);
  if (args.element == Element::kFloat16) {
    uint16_t halves[8] = {};
    std::memcpy(halves, bytes + 2 * index, static_cast<size_t>(2 * count));
    const float16x8_t all = vreinterpretq_f16_u16(vld1q_u16(halves));
    return {vcvt_f32_f16(vget_low_f16(all)), vcvt_f32_f16(vget_high_f16(all))};
  }
  float values[8] = {};
  std::memcpy(values, bytes + 4 * index, static_cast<size_t>(4 * count));
  return {vld1q_f32(values), vld1q_f32(values + 4)};
}

// Clamping before rounding gives the same codes: the bounds are integers.
int32x4_t quantize4(float32x4_t x, float32x4_t inverse) {
  const float32x4_t scaled = vmulq_f32(x, inverse);
  const float32x4_t clamped =
      vminq_f32(vmaxq_f32(scaled, vdupq_n_f32(-128.0f)), vdupq_n_f32(127.0f));
  return vcvtnq_s32_f32(clamped);  // half to even
}

void quantize_row(const QuantizeArgs& args, int64_t row) {
  const int64_t first = row * args.k;
  int8_t* codes = args.rows.codes + row * args.rows.stride;
  int32_t* sums = args.rows.group_sums + row * args.groups;
  const auto left = [&](int64_t s) {
    const int64_t rest = args.k - s * kKr;
    return rest < kKr ? rest : kKr;
  };

  // The bits of non-negative floats order as the floats do, with infinity and then NaN on top.
  const uint32x4_t magnitude = vdupq_n_u32(0x7fffffff);
  uint32x4_t absmax = vdupq_n_u32(0);
  for (int64_t s = 0; s < args.k_blocks; ++s) {
    const Eight x = load(args, first + s * kKr, left(s));
    absmax = vmaxq_u32(absmax, vandq_u32(vreinterpretq_u32_f32(x.low), magnitude));
    absmax = vmaxq_u32(absmax, vandq_u32(vreinterpretq_u32_f32(x.high), magnitude));
  }
  const float scale = row_scale(args, vmaxvq_u32(absmax));
  args.rows.scales[row] = scale;
  if (!(scale > 0.0f)) {
    std::memset(codes, 0, static_cast<size_t>(args.k_blocks * kKr));
    std::memset(sums, 0, static_cast<size_t>(args.groups) * sizeof(int32_t));
    return;
  }
  const float32x4_t inverse = vdupq_n_f32(1.0f / scale);
  for (int64_t g = 0, s = 0; g < args.groups; ++g) {
    const int64_t rest = args.k_blocks - s;
    const int64_t end = s + (rest < args.group_k_blocks ? rest : args.group_k_blocks);
    int32x4_t sum = vdupq_n_s32(0);
    for (; s < end; ++s) {
      const Eight x = load(args, first + s * kKr, left(s));
      const int32x4_t low = quantize4(x.low, inverse);
      const int32x4_t high = quantize4(x.high, inverse);
      sum = vaddq_s32(sum, vaddq_s32(low, high));
      vst1_s8(codes + s * kKr, vmovn_s16(vcombine_s16(vmovn_s32(low), vmovn_s32(high))));
    }
    sums[g] = vaddvq_s32(sum);
  }
}

}  // namespace

void quantize_neon(const QuantizeArgs& args, Range rows) {
  for (int64_t row = rows.begin; row < rows.end; ++row) quantize_row(args, row);
}

}  // namespace fptq
