#include "planted_error.h"

#include <cmath>

namespace fptq_test {

namespace {

float next_float(float value) { return std::nextafter(value, INFINITY); }

// Of a positive value that float16 holds.
float next_half(float value) { return half_value(static_cast<uint16_t>(half_bits(value) + 1)); }

}  // namespace

const char* place_name(Place place) {
  switch (place) {
    case Place::kNone: return "nothing";
    case Place::kWeight: return "a weight";
    case Place::kLastChannel: return "a weight of the last channel";
    case Place::kLastColumn: return "a weight of the last column";
    case Place::kScale: return "a scale";
    case Place::kHalfScale: return "a float16 scale";
    case Place::kZeroPoint: return "a zero point";
    case Place::kBias: return "a bias";
    case Place::kCode: return "the code of an activation";
    case Place::kWideHalfCode: return "the code of an activation in a wide float16 row";
    case Place::kGroupSum: return "the sum of a group";
    case Place::kRowScale: return "the scale of a row";
    case Place::kLastOutput: return "the last output";
    case Place::kBehindCodes: return "what is behind the codes of a row";
    case Place::kBetweenRows: return "what is between the rows of the output";
  }
  return "";
}

void plant_in_input(Place place, Problem& p, Random& random) {
  const int64_t k = pick(random, 0, p.k - 1);
  const int64_t n = pick(random, 0, p.n - 1);
  const int64_t g = pick(random, 0, p.groups() - 1);
  switch (place) {
    case Place::kWeight: p.codes[k * p.n + n] ^= 1; break;
    case Place::kLastChannel: p.codes[(p.k - 1) * p.n + n] ^= 1; break;
    case Place::kLastColumn: p.codes[k * p.n + p.n - 1] ^= 1; break;
    case Place::kScale:
      if (!p.half_scales) p.scales[g * p.n + n] = next_float(p.scales[g * p.n + n]);
      break;
    case Place::kHalfScale:
      if (p.half_scales) p.scales[g * p.n + n] = next_half(p.scales[g * p.n + n]);
      break;
    case Place::kZeroPoint:
      if (!p.zero_points.empty()) p.zero_points[g * p.n + n] ^= 1;
      break;
    case Place::kBias:
      if (!p.bias.empty()) p.bias[n] = next_float(p.bias[n]);
      break;
    default: break;
  }
}

void plant_in_result(Place place, const Problem& p, Result& result) {
  switch (place) {
    case Place::kCode: result.codes[p.k - 1] ^= 1; break;
    case Place::kWideHalfCode:
      if (p.half && p.k >= 1000) result.codes[p.k - 1] ^= 1;
      break;
    case Place::kGroupSum: ++result.sums.back(); break;
    case Place::kRowScale: result.row_scales.back() = next_float(result.row_scales.back()); break;
    case Place::kLastOutput: result.output[result.output.size() - (p.half ? 2 : 4)] ^= 1; break;
    case Place::kBehindCodes:
      result.codes[(p.m - 1) * result.stride + (p.k + 7) / 8 * 8] ^= 1;
      break;
    case Place::kBetweenRows:
      if (p.m > 1 && result.output_stride > p.n) result.output[p.n * (p.half ? 2 : 4)] ^= 1;
      break;
    default: break;
  }
}

}  // namespace fptq_test
