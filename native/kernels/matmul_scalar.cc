// The portable kernel, and the reference for the others: fptq_onnx/numerics/matmul_w4a8.py in C++.
// Compiled without vectorization, so that it stays a second opinion on the SIMD files.
#include <cmath>
#include <cstring>

#include "half_scalar.h"
#include "kernel.h"

namespace fptq {

namespace {

// memcpy because a tensor in a file may start at any byte.
float load(const float* array, int64_t index) {
  float value;
  std::memcpy(&value, reinterpret_cast<const uint8_t*>(array) + 4 * index, sizeof(value));
  return value;
}

float load_scale(const PackedWeights& w, int64_t index) {
  if (w.scale_bytes == 4) return load(reinterpret_cast<const float*>(w.scales), index);
  uint16_t half;
  std::memcpy(&half, w.scales + 2 * index, sizeof(half));
  return widen(half);
}

// acc[c] = the sum over the group of code * x; modulo 2^32 like the SIMD kernels, hence unsigned.
void accumulate(const uint8_t* blocks, int64_t bits, const int8_t* x, int64_t k_blocks,
                uint32_t* acc) {
  for (int64_t s = 0; s < k_blocks; ++s, blocks += kNr * bits, x += kKr) {
    for (int64_t c = 0; c < kNr; ++c) {
      int32_t sum = 0;
      for (int i = 0; i < 4; ++i) {
        const int32_t byte = blocks[4 * c + i];
        const int32_t low = bits == 4 ? byte & 15 : byte;
        const int32_t high = bits == 4 ? byte >> 4 : blocks[kNr * 4 + 4 * c + i];
        sum += low * x[i] + high * x[4 + i];
      }
      acc[c] += static_cast<uint32_t>(sum);
    }
  }
}

void one_row(const MatMulArgs& args, int64_t row, int64_t panel) {
  const PackedWeights& w = args.weights;
  const int64_t block_bytes = kNr * w.bits;
  const uint8_t* blocks = w.blocks + panel * w.k_blocks * block_bytes;
  const uint32_t middle = w.bits == 4 ? 8 : 128;
  const int8_t* x = args.rows.codes + row * args.rows.stride;
  float y[kNr] = {};
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t first = g * w.group_k_blocks;
    const int64_t k_blocks =
        w.k_blocks - first < w.group_k_blocks ? w.k_blocks - first : w.group_k_blocks;
    uint32_t acc[kNr] = {};
    accumulate(blocks + first * block_bytes, w.bits, x + first * kKr, k_blocks, acc);
    const auto row_sum = static_cast<uint32_t>(args.rows.group_sums[row * w.groups + g]);
    const int64_t base = (panel * w.groups + g) * kNr;
    for (int64_t c = 0; c < kNr; ++c) {
      const uint32_t zero = w.zero_points != nullptr ? w.zero_points[base + c] : middle;
      const auto centred = static_cast<int32_t>(acc[c] - zero * row_sum);
      y[c] = std::fma(static_cast<float>(centred), load_scale(w, base + c), y[c]);
    }
  }
  const float row_scale = args.rows.scales[row];
  const int64_t first_column = panel * kNr;
  for (int64_t c = 0; c < kNr && first_column + c < w.n; ++c) {
    const int64_t column = first_column + c;
    const float out =
        w.bias != nullptr ? std::fma(y[c], row_scale, load(w.bias, column)) : y[c] * row_scale;
    if (args.element == Element::kFloat16) {
      static_cast<uint16_t*>(args.output)[row * args.output_stride + column] = narrow(out);
    } else {
      static_cast<float*>(args.output)[row * args.output_stride + column] = out;
    }
  }
}

void all_panels(const MatMulArgs& args, Range rows, Range panels) {
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    for (int64_t row = rows.begin; row < rows.end; ++row) one_row(args, row, panel);
  }
}

}  // namespace

void matmul_w4a8_scalar(const MatMulArgs& args, Range rows, Range panels) {
  all_panels(args, rows, panels);
}

void matmul_w8a8_scalar(const MatMulArgs& args, Range rows, Range panels) {
  all_panels(args, rows, panels);
}

}  // namespace fptq
