// The op once more, as plainly as possible and from other data than the kernels get: unpacked
// codes, int64 sums, no layout. The tests compare the scalar kernel with it.
#pragma once

#include <cstdint>
#include <vector>

namespace fptq_test {

struct Problem {
  int64_t m, k, n;
  int64_t block;  // channels per group, or -1
  int64_t bits;   // of a code: 4 or 8
  bool per_token;
  bool half;
  bool half_scales;  // they are values that float16 holds, and given as such
  float static_scale;
  std::vector<uint8_t> codes;        // [k, n]
  std::vector<float> scales;         // [groups, n]
  std::vector<uint8_t> zero_points;  // [groups, n], or empty
  std::vector<float> bias;           // [n], or empty
  std::vector<float> activations;    // [m, k]; values that float16 holds when `half`

  int64_t group_length() const { return block == -1 ? k : block; }
  int64_t groups() const { return (k + group_length() - 1) / group_length(); }
};

struct PlainRows {
  std::vector<int8_t> codes;  // [m, k]
  std::vector<float> scales;  // [m]
};

PlainRows plain_quantize(const Problem& p);

// float32 [m, n], before any rounding to float16.
std::vector<float> plain_matmul(const Problem& p, const PlainRows& rows);

}  // namespace fptq_test
