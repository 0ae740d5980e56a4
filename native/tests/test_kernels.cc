// Every kernel this CPU runs against the plain reference, on random shapes, bit for bit.
//
//   fptq_test_kernels [--count N] [--seed S] [--plant-error]
//
// --plant-error flips one bit of one weight that the kernels see and the reference does not: the
// program must then fail, which shows that it can.
#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "dispatch.h"
#include "plain_reference.h"

namespace {

using fptq_test::PlainRows;
using fptq_test::Problem;

using Random = std::mt19937;

int64_t pick(Random& random, int64_t low, int64_t high) {
  return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
}

uint16_t half_bits(float value) {  // value is one that float16 holds, or NaN
  if (std::isnan(value)) return 0x7e00;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (std::isinf(magnitude)) return sign | 0x7c00;
  if (magnitude == 0) return sign;
  int exponent = 0;
  const float fraction = std::frexp(magnitude, &exponent);  // 0.5..1
  if (exponent < -13) return static_cast<uint16_t>(sign | static_cast<int>(std::ldexp(magnitude, 24)));
  return static_cast<uint16_t>(sign | ((exponent + 14) << 10) |
                               (static_cast<int>(std::ldexp(fraction, 11)) & 1023));
}

// The nearest float16 of any float32, ties to even, worked in double: no bit tricks.
uint16_t round_to_half(float value) {
  if (std::isnan(value)) return 0x7e00;
  const double magnitude = std::fabs(static_cast<double>(value));
  if (magnitude >= 65520.0) return half_bits(value > 0 ? INFINITY : -INFINITY);
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const int last_bit = std::max(exponent - 11, -24);
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(magnitude, -last_bit)), last_bit);
  return half_bits(std::copysign(static_cast<float>(rounded), value));
}

Problem random_problem(Random& random) {
  static const int64_t kBlocks[] = {8, 16, 32, 64, 128, 256, 1024, -1};
  Problem p{};
  p.m = pick(random, 1, random() % 16 == 0 ? 300 : random() % 2 ? 40 : 7);
  p.k = pick(random, 1, random() % 4 == 0 ? 900 : 140);
  p.n = pick(random, 1, 200);
  p.block = kBlocks[random() % 8];
  p.per_token = random() % 2;
  p.half = random() % 3 == 0;
  p.static_scale = std::ldexp(1.0f + static_cast<float>(random() % 1000) / 1000.0f,
                              static_cast<int>(pick(random, -9, -4)));
  p.codes.resize(static_cast<size_t>(p.k * p.n));
  p.scales.resize(static_cast<size_t>(p.groups() * p.n));
  p.activations.resize(static_cast<size_t>(p.m * p.k));

  // A third of the problems have extreme values only; half of those with one sign, which makes the
  // largest sums there can be (static scales below 1/16 turn -7.996 into the code -128).
  const bool extreme = random() % 3 == 0;
  const bool one_sign = random() % 2;
  for (auto& c : p.codes) c = extreme ? (one_sign ? 1 : random() % 2) * 15 : random() % 16;
  const int wide = random() % 8 == 0 ? 120 : 6;  // sometimes results overflow or become subnormal
  for (auto& s : p.scales) {
    s = std::ldexp(1.0f + static_cast<float>(random() % 4096) / 4096.0f,
                   static_cast<int>(pick(random, -wide, wide)));
  }
  if (random() % 2) {
    p.zero_points.resize(p.scales.size());
    for (auto& z : p.zero_points) z = random() % 16;
  }
  if (random() % 2) {
    p.bias.resize(static_cast<size_t>(p.n));
    for (auto& b : p.bias) b = static_cast<float>(pick(random, -1000, 1000)) / 64.0f;
  }
  for (auto& a : p.activations) {
    // Multiples of 1/256 below 8: float16 holds them. Steps of the static scale are hit between
    // and on the halves, and 127 / 128 are passed.
    a = extreme ? (!one_sign && random() % 2 ? 7.99609375f : -7.99609375f)
                : static_cast<float>(pick(random, -2047, 2047)) / 256.0f;
  }
  auto plant = [&](float value) { p.activations[random() % p.activations.size()] = value; };
  switch (random() % 12) {
    case 0: plant(NAN); break;
    case 1: plant(INFINITY); break;
    case 2: plant(-INFINITY); break;
    case 3:  // a row of zeros, and one of float16 subnormals
      for (int64_t k = 0; k < p.k; ++k) p.activations[k] = 0.0f;
      for (int64_t k = 0; k < p.k && p.m > 1; ++k) p.activations[p.k + k] = std::ldexp(static_cast<float>(pick(random, -9, 9)), -24);
      break;
    case 4:  // rows whose scale is below the smallest normal float
      if (!p.half) for (auto& a : p.activations) a = std::ldexp(a, -130);
      break;
    default: break;
  }
  return p;
}

struct Packed {
  std::vector<uint8_t> lines, zero_points;
  std::vector<float> scales;
};

// The layout from its definition in panels.py, one code at a time.
Packed pack(const Problem& p) {
  const int64_t panels = (p.n + 63) / 64;
  const int64_t steps = (p.k + 7) / 8;
  const int64_t groups = p.groups();
  Packed out;
  out.lines.assign(static_cast<size_t>(panels * steps * 256), 0);
  for (int64_t k = 0; k < p.k; ++k) {
    for (int64_t n = 0; n < p.n; ++n) {
      const int64_t byte = ((n / 64) * steps + k / 8) * 256 + 4 * (n % 64) + k % 4;
      out.lines[byte] |= static_cast<uint8_t>(p.codes[k * p.n + n] << (k % 8 < 4 ? 0 : 4));
    }
  }
  out.scales.assign(static_cast<size_t>(panels * groups * 64), 0.0f);
  if (!p.zero_points.empty()) out.zero_points.assign(out.scales.size(), 0);
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t n = 0; n < p.n; ++n) {
      const int64_t at = ((n / 64) * groups + g) * 64 + n % 64;
      out.scales[at] = p.scales[g * p.n + n];
      if (!p.zero_points.empty()) out.zero_points[at] = p.zero_points[g * p.n + n];
    }
  }
  return out;
}

struct Result {
  std::vector<int8_t> codes;  // [m, k]
  std::vector<float> row_scales;
  std::vector<int32_t> sums;
  std::vector<uint8_t> output;
};

Result run(const fptq::Kernel& kernel, const Problem& p, const Packed& packed, Random& random) {
  const int64_t steps = (p.k + 7) / 8;
  const int64_t panels = (p.n + 63) / 64;
  const int64_t groups = p.groups();
  const int64_t group_steps = p.block == -1 ? steps : std::min(p.block / 8, steps);
  const int64_t stride = 8 * steps + pick(random, 0, 9);
  const int64_t size = p.half ? 2 : 4;

  // Odd offsets: nothing may rely on alignment. Exact sizes: sanitizers see any read beyond.
  std::vector<uint8_t> lines(packed.lines.size() + 1);
  std::memcpy(lines.data() + 1, packed.lines.data(), packed.lines.size());
  std::vector<uint8_t> input(static_cast<size_t>(p.m * p.k * size));
  for (int64_t i = 0; i < p.m * p.k; ++i) {
    if (p.half) {
      const uint16_t bits = half_bits(p.activations[i]);
      std::memcpy(input.data() + 2 * i, &bits, 2);
    } else {
      std::memcpy(input.data() + 4 * i, &p.activations[i], 4);
    }
  }

  Result result;
  std::vector<int8_t> codes(static_cast<size_t>(p.m * stride + fptq::kRowSlack), 99);  // stale memory is not zero
  result.row_scales.assign(static_cast<size_t>(p.m), -1.0f);
  result.sums.assign(static_cast<size_t>(p.m * groups), -1);
  result.output.assign(static_cast<size_t>(p.m * p.n * size), 0xee);
  const fptq::QuantizedRows rows = {codes.data(), result.sums.data(), result.row_scales.data(),
                                    stride};
  const fptq::Element element = p.half ? fptq::Element::kFloat16 : fptq::Element::kFloat32;
  const int64_t cut = pick(random, 0, p.m);
  const fptq::QuantizeArgs quantize = {input.data(), element, p.k, steps, groups, group_steps,
                                       p.per_token, p.static_scale, rows};
  kernel.quantize(quantize, {0, cut});
  kernel.quantize(quantize, {cut, p.m});

  const fptq::PackedWeights weights = {
      lines.data() + 1, packed.scales.data(),
      packed.zero_points.empty() ? nullptr : packed.zero_points.data(),
      p.bias.empty() ? nullptr : p.bias.data(), 4, p.k, p.n, panels, steps, groups, group_steps};
  const fptq::MatMulArgs matmul = {weights, rows, result.output.data(), p.n, element};
  const int64_t middle = pick(random, 0, panels);
  kernel.matmul(matmul, {0, cut}, {0, middle});
  kernel.matmul(matmul, {0, cut}, {middle, panels});
  kernel.matmul(matmul, {cut, p.m}, {0, panels});

  for (int64_t m = 0; m < p.m; ++m) {
    result.codes.insert(result.codes.end(), codes.begin() + m * stride,
                        codes.begin() + m * stride + p.k);
  }
  return result;
}

bool same(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, 4) == 0;
}

// Prints the first difference; returns whether all is equal.
bool compare(const Problem& p, const PlainRows& rows, const std::vector<float>& expected,
             const Result& got, const char* kernel) {
  char where[160];
  std::snprintf(where, sizeof(where),
                "%s: m=%" PRId64 " k=%" PRId64 " n=%" PRId64 " block=%" PRId64
                " per_token=%d half=%d zeros=%d bias=%d",
                kernel, p.m, p.k, p.n, p.block, p.per_token, p.half, !p.zero_points.empty(),
                !p.bias.empty());
  for (int64_t m = 0; m < p.m; ++m) {
    if (!same(rows.scales[m], got.row_scales[m])) {
      std::printf("%s: row %" PRId64 " has scale %a, expected %a\n", where, m,
                  static_cast<double>(got.row_scales[m]), static_cast<double>(rows.scales[m]));
      return false;
    }
    for (int64_t g = 0; g < p.groups(); ++g) {
      int64_t sum = 0;
      for (int64_t k = g * p.group_length(); k < p.k && k < (g + 1) * p.group_length(); ++k) {
        sum += rows.codes[m * p.k + k];
        if (rows.codes[m * p.k + k] != got.codes[m * p.k + k]) {
          std::printf("%s: code [%" PRId64 ", %" PRId64 "] is %d, expected %d\n", where, m, k,
                      got.codes[m * p.k + k], rows.codes[m * p.k + k]);
          return false;
        }
      }
      if (sum != got.sums[m * p.groups() + g]) {
        std::printf("%s: sum of row %" PRId64 " group %" PRId64 " is wrong\n", where, m, g);
        return false;
      }
    }
  }
  for (int64_t i = 0; i < p.m * p.n; ++i) {
    bool equal = false;
    if (p.half) {
      uint16_t bits;
      std::memcpy(&bits, got.output.data() + 2 * i, 2);
      equal = std::isnan(expected[i]) ? (bits & 0x7fff) > 0x7c00 : bits == round_to_half(expected[i]);
    } else {
      float value;
      std::memcpy(&value, got.output.data() + 4 * i, 4);
      equal = same(value, expected[i]);
    }
    if (!equal) {
      std::printf("%s: output [%" PRId64 ", %" PRId64 "] differs from %a\n", where, i / p.n,
                  i % p.n, static_cast<double>(expected[i]));
      return false;
    }
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  int count = 1500;
  unsigned seed = 1;
  bool plant = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--plant-error") == 0) plant = true;
    else if (std::strcmp(argv[i], "--count") == 0 && i + 1 < argc) count = std::atoi(argv[++i]);
    else if (std::strcmp(argv[i], "--seed") == 0 && i + 1 < argc) seed = static_cast<unsigned>(std::atoi(argv[++i]));
    else { std::printf("unknown argument %s\n", argv[i]); return 2; }
  }
  const fptq::KernelTable table = fptq::all_kernels();
  std::vector<int> failures(table.count, 0);
  for (int i = 0; i < count; ++i) {
    Random random(seed + static_cast<unsigned>(i));
    Problem p = random_problem(random);
    const PlainRows rows = fptq_test::plain_quantize(p);
    const std::vector<float> expected = fptq_test::plain_matmul(p, rows);
    if (plant) p.codes[random() % p.codes.size()] ^= 1;
    const Packed packed = pack(p);
    for (size_t j = 0; j < table.count; ++j) {
      const fptq::Kernel& kernel = table.kernels[j];
      if (!fptq::usable(kernel) || failures[j] > 3) continue;
      if (!compare(p, rows, expected, run(kernel, p, packed, random), kernel.name)) ++failures[j];
    }
  }
  int failed = 0;
  for (size_t j = 0; j < table.count; ++j) {
    const bool ran = fptq::usable(table.kernels[j]);
    std::printf("%-12s %s\n", table.kernels[j].name,
                !ran ? "skipped: this CPU lacks it" : failures[j] ? "FAILED" : "ok");
    failed += failures[j] != 0;
  }
  // With a planted error every kernel that ran must have failed; then exit 1 as a failing run does.
  if (plant) {
    for (size_t j = 0; j < table.count; ++j) {
      if (fptq::usable(table.kernels[j]) && failures[j] == 0) return 3;
    }
    return 1;
  }
  return failed ? 1 : 0;
}
