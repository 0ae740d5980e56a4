// The gate of a gated MLP: SiLU or tanh-GELU of one half times the other, as
// fptq_onnx/numerics/gated.py defines them. The reference for the other files.
#include <cmath>
#include <cstring>

#include "half_scalar.h"
#include "kernel.h"

namespace fptq {

namespace {

// e^x for |x| up to 88: 2^n times a Taylor polynomial of the rest, |rest| <= ln(2) / 2.
float exponential(float x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, half to even
  const volatile float shifted = x * 1.44269504f + kShift;
  const float n = shifted - kShift;
  float r = std::fma(n, -0.693359375f, x);
  r = std::fma(n, 2.12194440e-4f, r);
  float p = 1.0f / 5040.0f;
  p = std::fma(p, r, 1.0f / 720.0f);
  p = std::fma(p, r, 1.0f / 120.0f);
  p = std::fma(p, r, 1.0f / 24.0f);
  p = std::fma(p, r, 1.0f / 6.0f);
  p = std::fma(p, r, 0.5f);
  p = std::fma(p, r, 1.0f);
  p = std::fma(p, r, 1.0f);
  const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return p * power;
}

float activated(float x, Gate function) {
  // tanh-GELU is x * sigmoid(t) as well, with a polynomial of x for t.
  const float t = function == Gate::kSilu ? x : x * std::fma(0.0713548163f, x * x, 1.59576912f);
  // The comparisons let a NaN become a bound; x / (...) is NaN all the same.
  const float z = -t > -87.0f ? (-t < 88.0f ? -t : 88.0f) : -87.0f;
  return x / (1.0f + exponential(z));
}

}  // namespace

void swiglu_scalar(const SwigluArgs& args) {
  for (int64_t i = 0; i < args.count; ++i) {
    const float y = activated(args.gate[i], args.function) * args.up[i];
    if (args.element == Element::kFloat16) {
      static_cast<uint16_t*>(args.output)[i] = narrow(y);
    } else {
      static_cast<float*>(args.output)[i] = y;
    }
  }
}

}  // namespace fptq
