// Errors made on purpose, each the smallest there is at one place of the computation, to see that
// the test of the kernels notices it.
#pragma once

#include <cstdint>
#include <vector>

#include "random_problem.h"

namespace fptq_test {

// What a kernel made of a problem.
struct Result {
  std::vector<int8_t> codes;  // [m, stride], and slack
  std::vector<float> row_scales;
  std::vector<int32_t> sums;    // [m, groups]
  std::vector<uint8_t> output;  // float32 or float16, rows output_stride elements apart
  int64_t stride = 0, output_stride = 0;
};

enum class Place {
  kNone,
  // In what the kernel reads (and the plain reference does not):
  kWeight,
  kLastChannel,  // a weight of the last channel: a tail of a k-block, a group and a piece
  kLastColumn,   // a weight of the last column: a tail of a panel
  kScale,
  kHalfScale,  // the same, only where scales are float16
  kZeroPoint,
  kBias,
  // In what the kernel wrote:
  kCode,          // the last of the first row
  kWideHalfCode,  // the same, only where rows are float16 of 1000 channels and more
  kGroupSum,
  kRowScale,
  kLastOutput,   // of the last row
  kBehindCodes,  // the byte after a row's last k-block
  kBetweenRows,  // the byte after a row of the output, where rows do not follow each other directly
};
constexpr Place kPlaces[] = {
    Place::kWeight,       Place::kLastChannel, Place::kLastColumn, Place::kScale,
    Place::kHalfScale,    Place::kZeroPoint,   Place::kBias,       Place::kCode,
    Place::kWideHalfCode, Place::kGroupSum,    Place::kRowScale,   Place::kLastOutput,
    Place::kBehindCodes,  Place::kBetweenRows,
};
const char* place_name(Place place);

// Off by one at the place, where the problem has it; nothing for a place of the other kind.
void plant_in_input(Place place, Problem& problem, Random& random);
void plant_in_result(Place place, const Problem& problem, Result& result);

}  // namespace fptq_test
