#include "plain_reference.h"

#include <cfloat>
#include <cmath>
#include <limits>

namespace fptq_test {

PlainRows plain_quantize(const Problem& p) {
  PlainRows rows{std::vector<int8_t>(static_cast<size_t>(p.m * p.k)),
                 std::vector<float>(static_cast<size_t>(p.m))};
  for (int64_t m = 0; m < p.m; ++m) {
    const float* x = p.activations.data() + m * p.k;
    bool nan = false;
    float absmax = 0.0f;
    for (int64_t k = 0; k < p.k; ++k) {
      nan = nan || std::isnan(x[k]);
      absmax = std::fmax(absmax, std::fabs(x[k]));
    }
    float scale = p.static_scale;
    if (p.per_token) {
      nan = nan || std::isinf(absmax);
      scale = absmax / 127.0f;
      if (scale < FLT_MIN) scale = 0.0f;
    }
    rows.scales[m] = nan ? std::numeric_limits<float>::quiet_NaN() : scale;
    if (nan || scale == 0.0f) continue;
    const float inverse = 1.0f / scale;
    for (int64_t k = 0; k < p.k; ++k) {
      const float rounded = std::nearbyint(x[k] * inverse);
      rows.codes[m * p.k + k] = static_cast<int8_t>(std::fmin(std::fmax(rounded, -128.0f), 127.0f));
    }
  }
  return rows;
}

std::vector<float> plain_matmul(const Problem& p, const PlainRows& rows) {
  std::vector<float> out(static_cast<size_t>(p.m * p.n));
  for (int64_t m = 0; m < p.m; ++m) {
    for (int64_t n = 0; n < p.n; ++n) {
      float y = 0.0f;
      for (int64_t g = 0; g < p.groups(); ++g) {
        const int64_t zero =
            p.zero_points.empty() ? (p.bits == 4 ? 8 : 128) : p.zero_points[g * p.n + n];
        int64_t sum = 0;
        for (int64_t k = g * p.group_length(); k < p.k && k < (g + 1) * p.group_length(); ++k) {
          sum += (p.codes[k * p.n + n] - zero) * rows.codes[m * p.k + k];
        }
        y = std::fma(static_cast<float>(sum), p.scales[g * p.n + n], y);
      }
      out[m * p.n + n] =
          p.bias.empty() ? y * rows.scales[m] : std::fma(y, rows.scales[m], p.bias[n]);
    }
  }
  return out;
}

}  // namespace fptq_test
