// Random inputs for the tests of the kernels: problems, their packed form, and float16 by hand.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "plain_reference.h"

namespace fptq_test {

using Random = std::mt19937;

int64_t pick(Random& random, int64_t low, int64_t high);

// The bits of a value that float16 holds, or of NaN.
uint16_t half_bits(float value);

// The value of a float16.
float half_value(uint16_t bits);

// The nearest float16 of any float32, ties to even, worked in double: no bit tricks.
uint16_t round_to_half(float value);

Problem random_problem(Random& random);

struct Packed {
  std::vector<uint8_t> blocks, zero_points;
  std::vector<uint8_t> scales;  // float32 or float16
  int64_t scale_bytes;
};

// The layout from its definition in panels.py, one code at a time.
Packed pack(const Problem& p);

}  // namespace fptq_test
