// Every kernel this CPU runs against the plain reference, on random shapes, bit for bit.
//
//   fptq_test_kernels [--count N] [--seed S] [--plant-error]
//
// --plant-error makes an off-by-one in each place of planted_error.h, in what a kernel reads or in
// what it wrote: every kernel must then fail for every place (status 1), which shows that it can.
#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "dispatch.h"
#include "planted_error.h"
#include "random_problem.h"

namespace {

using fptq_test::half_bits;
using fptq_test::pack;
using fptq_test::Packed;
using fptq_test::pick;
using fptq_test::PlainRows;
using fptq_test::Problem;
using fptq_test::Random;
using fptq_test::random_problem;
using fptq_test::Result;
using fptq_test::round_to_half;

// What memory holds that nobody has written yet: not zero.
constexpr int8_t kStaleCode = 99;
constexpr uint8_t kStaleOutput = 0xee;

Result run(const fptq::Kernel& kernel, const Problem& p, const Packed& packed, Random& random) {
  const int64_t k_blocks = (p.k + 7) / 8;
  const int64_t panels = (p.n + 63) / 64;
  const int64_t groups = p.groups();
  const int64_t group_k_blocks = p.block == -1 ? k_blocks : std::min(p.block / 8, k_blocks);
  const int64_t stride = 8 * k_blocks + pick(random, 0, 9);
  const int64_t size = p.half ? 2 : 4;

  // Odd offsets: nothing may rely on alignment. Exact sizes: sanitizers see any read beyond.
  std::vector<uint8_t> blocks(packed.blocks.size() + 1);
  std::memcpy(blocks.data() + 1, packed.blocks.data(), packed.blocks.size());
  std::vector<uint8_t> scales(packed.scales.size() + 1);
  std::memcpy(scales.data() + 1, packed.scales.data(), packed.scales.size());
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
  result.output_stride = p.n + (random() % 2 ? pick(random, 1, 70) : 0);
  result.stride = stride;
  result.codes.assign(static_cast<size_t>(p.m * stride + fptq::kRowSlack), kStaleCode);
  result.row_scales.assign(static_cast<size_t>(p.m), -1.0f);
  result.sums.assign(static_cast<size_t>(p.m * groups), -1);
  // The last row ends where the output does: sanitizers see a store beyond.
  const int64_t output_elements = (p.m - 1) * result.output_stride + p.n;
  result.output.assign(static_cast<size_t>(output_elements * size), kStaleOutput);
  const fptq::QuantizedRows rows = {result.codes.data(), result.sums.data(),
                                    result.row_scales.data(), stride};
  const fptq::Element element = p.half ? fptq::Element::kFloat16 : fptq::Element::kFloat32;
  const int64_t cut = pick(random, 0, p.m);
  const fptq::QuantizeArgs quantize = {input.data(), element,        p.k,
                                       k_blocks,     groups,         group_k_blocks,
                                       p.per_token,  p.static_scale, rows};
  // The later rows first: a store beyond the end of a row would damage one that is finished.
  kernel.quantize(quantize, {cut, p.m});
  kernel.quantize(quantize, {0, cut});

  fptq::PackedWeights weights{};
  weights.blocks = blocks.data() + 1;
  weights.scales = scales.data() + 1;
  weights.zero_points = packed.zero_points.empty() ? nullptr : packed.zero_points.data();
  weights.bias = p.bias.empty() ? nullptr : p.bias.data();
  weights.bits = p.bits;
  weights.scale_bytes = packed.scale_bytes;
  weights.k = p.k;
  weights.n = p.n;
  weights.panels = panels;
  weights.k_blocks = k_blocks;
  weights.groups = groups;
  weights.group_k_blocks = group_k_blocks;
  const fptq::MatMulArgs matmul = {weights, rows, result.output.data(), result.output_stride,
                                   element};
  const int64_t middle = pick(random, 0, panels);
  fptq::MatMul* const multiply = fptq::matmul_of(kernel, p.bits);
  multiply(matmul, {cut, p.m}, {middle, panels});
  multiply(matmul, {0, cut}, {0, middle});
  multiply(matmul, {0, cut}, {middle, panels});
  multiply(matmul, {cut, p.m}, {0, middle});
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
                "%s: m=%" PRId64 " k=%" PRId64 " n=%" PRId64 " block=%" PRId64 " bits=%" PRId64
                " per_token=%d half=%d half_scales=%d zeros=%d bias=%d",
                kernel, p.m, p.k, p.n, p.block, p.bits, p.per_token, p.half, p.half_scales,
                !p.zero_points.empty(), !p.bias.empty());
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
        if (rows.codes[m * p.k + k] != got.codes[m * got.stride + k]) {
          std::printf("%s: code [%" PRId64 ", %" PRId64 "] is %d, expected %d\n", where, m, k,
                      got.codes[m * got.stride + k], rows.codes[m * p.k + k]);
          return false;
        }
      }
      if (sum != got.sums[m * p.groups() + g]) {
        std::printf("%s: sum of row %" PRId64 " group %" PRId64 " is wrong\n", where, m, g);
        return false;
      }
    }
  }
  for (int64_t m = 0; m < p.m; ++m) {
    const auto row = got.codes.begin() + m * got.stride;
    const auto end = row + (p.k + 7) / 8 * 8;
    if (!std::all_of(row + p.k, end, [](int8_t code) { return code == 0; }) ||
        !std::all_of(end, m + 1 < p.m ? row + got.stride : got.codes.end(),
                     [](int8_t code) { return code == kStaleCode; })) {
      std::printf("%s: row %" PRId64 " of the codes is not zero behind K, or too long\n", where, m);
      return false;
    }
  }
  const int64_t size = p.half ? 2 : 4;
  for (int64_t m = 0; m + 1 < p.m; ++m) {
    const auto row = got.output.begin() + m * got.output_stride * size;
    if (!std::all_of(row + p.n * size, row + got.output_stride * size,
                     [](uint8_t byte) { return byte == kStaleOutput; })) {
      std::printf("%s: row %" PRId64 " of the output is written beyond its columns\n", where, m);
      return false;
    }
  }
  for (int64_t i = 0; i < p.m * p.n; ++i) {
    const uint8_t* at = got.output.data() + (i / p.n * got.output_stride + i % p.n) * size;
    bool equal = false;
    if (p.half) {
      uint16_t bits;
      std::memcpy(&bits, at, 2);
      equal =
          std::isnan(expected[i]) ? (bits & 0x7fff) > 0x7c00 : bits == round_to_half(expected[i]);
    } else {
      float value;
      std::memcpy(&value, at, 4);
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

// silu or tanh-GELU of random and special values, against the scalar file bit for bit, and that
// against double precision.
bool swiglu_agrees(const fptq::Kernel& kernel, Random& random) {
  const int64_t count = pick(random, 1, 80);
  std::vector<float> gate(static_cast<size_t>(count)), up(gate.size());
  for (auto& g : gate) {
    g = random() % 20 == 0 ? std::ldexp(1.0f, static_cast<int>(pick(random, -140, 127)))
                           : static_cast<float>(pick(random, -20000, 20000)) / 1000.0f;
    if (random() % 50 == 0) g = NAN;
  }
  for (auto& u : up) u = static_cast<float>(pick(random, -1000, 1000)) / 64.0f;
  const auto function = random() % 2 ? fptq::Gate::kSilu : fptq::Gate::kGeluTanh;
  const auto element = random() % 2 ? fptq::Element::kFloat16 : fptq::Element::kFloat32;
  const size_t size = element == fptq::Element::kFloat16 ? 2 : 4;
  std::vector<uint8_t> got(gate.size() * size), expected(got.size()), exact(gate.size() * 4);
  kernel.swiglu({gate.data(), up.data(), got.data(), count, function, element});
  fptq::swiglu_scalar({gate.data(), up.data(), expected.data(), count, function, element});
  fptq::swiglu_scalar(
      {gate.data(), up.data(), exact.data(), count, function, fptq::Element::kFloat32});
  for (int64_t i = 0; i < count; ++i) {
    float value;
    std::memcpy(&value, exact.data() + 4 * i, 4);
    const bool nan = std::isnan(gate[i]);
    if (nan != std::isnan(value)) return false;
    if (nan) continue;
    if (std::memcmp(got.data() + size * i, expected.data() + size * i, size) != 0) return false;
    const double x = gate[i];
    const double t = function == fptq::Gate::kSilu
                         ? x
                         : 2 * std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x);
    const double want = x / (1 + std::exp(-t)) * up[i];
    if (std::fabs(want) > 3e38) continue;  // overflows, or nearly so
    // See tests/numerics/test_gated.py for the bound.
    const double bound = (4 * std::fmin(std::fmax(std::fabs(t), 1.0), 88.0) + 8) * 0x1p-24;
    if (!(std::fabs(value - want) <= bound * std::fabs(want) + 1e-33)) return false;
  }
  return true;
}

// Random problems in every kernel; `plant` makes an error, or none. Counts failures per kernel.
std::vector<int> failures_of(int count, unsigned seed, fptq_test::Place plant) {
  const fptq::KernelTable table = fptq::all_kernels();
  std::vector<int> failures(table.count, 0);
  // What a planted error does is seen once; of real ones a few are printed.
  const int enough = plant == fptq_test::Place::kNone ? 4 : 1;
  for (int i = 0; i < count; ++i) {
    fptq::tuned_for_amd() = i % 2 == 0;
    Random random(seed + static_cast<unsigned>(i));
    Problem p = random_problem(random);
    const PlainRows rows = fptq_test::plain_quantize(p);
    const std::vector<float> expected = fptq_test::plain_matmul(p, rows);
    fptq_test::plant_in_input(plant, p, random);
    const Packed packed = pack(p);
    for (size_t j = 0; j < table.count; ++j) {
      const fptq::Kernel& kernel = table.kernels[j];
      if (!fptq::usable(kernel) || failures[j] >= enough) continue;
      Result result = run(kernel, p, packed, random);
      fptq_test::plant_in_result(plant, p, result);
      if (!compare(p, rows, expected, result, kernel.name)) ++failures[j];
      if (plant == fptq_test::Place::kNone && !swiglu_agrees(kernel, random)) {
        std::printf("%s: a gate differs\n", kernel.name);
        ++failures[j];
      }
    }
  }
  return failures;
}

// Every kernel that ran must fail for every place: 1 then, as a failing run; else 3.
int plant_everywhere(int count, unsigned seed) {
  const fptq::KernelTable table = fptq::all_kernels();
  int status = 1;
  for (const fptq_test::Place place : fptq_test::kPlaces) {
    const std::vector<int> failures = failures_of(count, seed, place);
    for (size_t j = 0; j < table.count; ++j) {
      if (!fptq::usable(table.kernels[j]) || failures[j] != 0) continue;
      std::printf("%s: an error planted in %s was not seen\n", table.kernels[j].name,
                  fptq_test::place_name(place));
      status = 3;
    }
  }
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  int count = 1500;
  unsigned seed = 1;
  bool plant = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--plant-error") == 0)
      plant = true;
    else if (std::strcmp(argv[i], "--count") == 0 && i + 1 < argc)
      count = std::atoi(argv[++i]);
    else if (std::strcmp(argv[i], "--seed") == 0 && i + 1 < argc)
      seed = static_cast<unsigned>(std::atoi(argv[++i]));
    else {
      std::printf("unknown argument %s\n", argv[i]);
      return 2;
    }
  }
  if (plant) return plant_everywhere(count, seed);
  const fptq::KernelTable table = fptq::all_kernels();
  const std::vector<int> failures = failures_of(count, seed, fptq_test::Place::kNone);
  int failed = 0;
  for (size_t j = 0; j < table.count; ++j) {
    const bool ran = fptq::usable(table.kernels[j]);
    std::printf("%-12s %s\n", table.kernels[j].name,
                !ran          ? "skipped: this CPU lacks it"
                : failures[j] ? "FAILED"
                              : "ok");
    failed += failures[j] != 0;
  }
  return failed ? 1 : 0;
}
