// The portable kernel, and the reference for the others: fptq_onnx/numerics/matmul_w4a8.py in C++.
// Compiled without vectorization, so that it stays a second opinion on the SIMD files.
#include <cmath>
#include <cstring>

#include "kernel.h"

namespace fptq {

namespace {

// memcpy because a tensor in a file may start at any byte.
float load(const float* array, int64_t index) {
  float value;
  std::memcpy(&value, reinterpret_cast<const uint8_t*>(array) + 4 * index, sizeof(value));
  return value;
}

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

// acc[c] = the sum over the group of code * x; modulo 2^32 like the SIMD kernels, hence unsigned.
void accumulate(const uint8_t* lines, const int8_t* x, int64_t steps, uint32_t* acc) {
  for (int64_t s = 0; s < steps; ++s, lines += kLineBytes, x += kStepChannels) {
    for (int64_t c = 0; c < kPanelColumns; ++c) {
      int32_t sum = 0;
      for (int i = 0; i < 4; ++i) {
        const int32_t byte = lines[4 * c + i];
        sum += (byte & 15) * x[i] + (byte >> 4) * x[4 + i];
      }
      acc[c] += static_cast<uint32_t>(sum);
    }
  }
}

void one_row(const MatMulArgs& args, int64_t row, int64_t panel) {
  const PackedWeights& w = args.weights;
  const uint8_t* lines = w.lines + panel * w.steps * kLineBytes;
  const int8_t* x = args.rows.codes + row * args.rows.stride;
  float y[kPanelColumns] = {};
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t first = g * w.group_steps;
    const int64_t steps = w.steps - first < w.group_steps ? w.steps - first : w.group_steps;
    uint32_t acc[kPanelColumns] = {};
    accumulate(lines + first * kLineBytes, x + first * kStepChannels, steps, acc);
    const auto row_sum = static_cast<uint32_t>(args.rows.group_sums[row * w.groups + g]);
    const int64_t base = (panel * w.groups + g) * kPanelColumns;
    for (int64_t c = 0; c < kPanelColumns; ++c) {
      const uint32_t zero = w.zero_points != nullptr ? w.zero_points[base + c] : 8u;
      const auto centred = static_cast<int32_t>(acc[c] - zero * row_sum);
      y[c] = std::fma(static_cast<float>(centred), load(w.scales, base + c), y[c]);
    }
  }
  const float row_scale = args.rows.scales[row];
  const int64_t first_column = panel * kPanelColumns;
  for (int64_t c = 0; c < kPanelColumns && first_column + c < w.n; ++c) {
    const int64_t column = first_column + c;
    const float out = w.bias != nullptr ? std::fma(y[c], row_scale, load(w.bias, column))
                                        : y[c] * row_scale;
    if (args.element == Element::kFloat16) {
      static_cast<uint16_t*>(args.output)[row * w.n + column] = narrow(out);
    } else {
      static_cast<float*>(args.output)[row * w.n + column] = out;
    }
  }
}

}  // namespace

void matmul_w4a8_scalar(const MatMulArgs& args, Range rows, Range panels) {
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    for (int64_t row = rows.begin; row < rows.end; ++row) one_row(args, row, panel);
  }
}

}  // namespace fptq
