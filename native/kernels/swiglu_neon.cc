// The gate of a gated MLP with NEON: the operations of swiglu_scalar.cc, in its order.
#include <arm_neon.h>

#include <cstring>

#include "kernel.h"

namespace fptq {

namespace {

float32x4_t exponential(float32x4_t x) {
  const float32x4_t n = vrndnq_f32(vmulq_f32(x, vdupq_n_f32(1.44269504f)));
  float32x4_t r = vfmaq_f32(x, n, vdupq_n_f32(-0.693359375f));
  r = vfmaq_f32(r, n, vdupq_n_f32(2.12194440e-4f));
  float32x4_t p = vdupq_n_f32(1.0f / 5040.0f);
  p = vfmaq_f32(vdupq_n_f32(1.0f / 720.0f), p, r);
  p = vfmaq_f32(vdupq_n_f32(1.0f / 120.0f), p, r);
  p = vfmaq_f32(vdupq_n_f32(1.0f / 24.0f), p, r);
  p = vfmaq_f32(vdupq_n_f32(1.0f / 6.0f), p, r);
  p = vfmaq_f32(vdupq_n_f32(0.5f), p, r);
  p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
  p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
  const int32x4_t exponent = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
  return vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
}

float32x4_t activated(float32x4_t x, Gate function) {
  float32x4_t t = x;
  if (function == Gate::kGeluTanh) {
    t = vmulq_f32(x,
                  vfmaq_f32(vdupq_n_f32(1.59576912f), vdupq_n_f32(0.0713548163f), vmulq_f32(x, x)));
  }
  // The "nm" forms return the number for a NaN; x / (...) is NaN all the same.
  const float32x4_t z =
      vminnmq_f32(vmaxnmq_f32(vnegq_f32(t), vdupq_n_f32(-87.0f)), vdupq_n_f32(88.0f));
  return vdivq_f32(x, vaddq_f32(vdupq_n_f32(1.0f), exponential(z)));
}

}  // namespace

void swiglu_neon(const SwigluArgs& args) {
  for (int64_t i = 0; i < args.count; i += 4) {
    const auto count = static_cast<size_t>(args.count - i < 4 ? args.count - i : 4);
    float gate[4] = {};
    float up[4] = {};
    std::memcpy(gate, args.gate + i, 4 * count);
    std::memcpy(up, args.up + i, 4 * count);
    const float32x4_t y = vmulq_f32(activated(vld1q_f32(gate), args.function), vld1q_f32(up));
    if (args.element == Element::kFloat16) {
      const float16x4_t half = vcvt_f16_f32(y);
      std::memcpy(static_cast<uint16_t*>(args.output) + i, &half, 2 * count);
    } else {
      std::memcpy(static_cast<float*>(args.output) + i, &y, 4 * count);
    }
  }
}

}  // namespace fptq
