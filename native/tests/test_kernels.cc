// Every kernel this CPU can run, against a plain loop over int64 that follows
// fptq_onnx/numerics/matmul_w4a8.py step by step. Outputs must agree to the last bit.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "dispatch.h"

namespace {

using fptq::Element;

struct Case {
  int64_t m, k, n, block;
  bool asymmetric, bias, per_token, extreme;
};

struct Problem {
  std::vector<uint8_t> codes, zero_points;  // codes [k, n], zero_points [groups, n]
  std::vector<float> x, scales, bias;       // x [m, k], scales [groups, n]
  float a_scale;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t group_length(const Case& c) { return c.block == -1 ? c.k : c.block; }

Problem make_problem(const Case& c, std::mt19937& random) {
  Problem p;
  std::normal_distribution<float> normal(0.0f, 3.0f);
  const int64_t groups = ceil_div(c.k, group_length(c));
  p.codes.resize(static_cast<size_t>(c.k * c.n));
  for (auto& code : p.codes) code = c.extreme ? 15 : random() % 16;
  p.zero_points.resize(static_cast<size_t>(groups * c.n));
  for (auto& zero : p.zero_points) zero = c.extreme ? (random() % 2) * 15 : random() % 16;
  p.scales.resize(static_cast<size_t>(groups * c.n));
  for (auto& scale : p.scales) {
    scale = c.extreme ? std::ldexp(1.0f, static_cast<int>(random() % 200) - 100) : normal(random);
  }
  p.bias.resize(static_cast<size_t>(c.n));
  for (auto& bias : p.bias) bias = normal(random);
  p.a_scale = 0.05f;
  p.x.resize(static_cast<size_t>(c.m * c.k));
  // Extreme: everything saturates, at -128 or 127.
  for (auto& x : p.x) x = c.extreme ? (random() % 3 ? -1e6f : 1e6f) : normal(random);
  return p;
}

// The definition, one output at a time.
std::vector<float> expected(const Case& c, const Problem& p) {
  const int64_t length = group_length(c);
  const int64_t groups = ceil_div(c.k, length);
  std::vector<float> out(static_cast<size_t>(c.m * c.n));
  std::vector<int64_t> q(static_cast<size_t>(c.k));
  for (int64_t m = 0; m < c.m; ++m) {
    float scale = p.a_scale;
    if (c.per_token) {
      float absmax = 0;
      for (int64_t k = 0; k < c.k; ++k) absmax = std::fmax(absmax, std::fabs(p.x[m * c.k + k]));
      scale = absmax / 127.0f;
      if (scale < 0x1p-126f) scale = 0;
    }
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    for (int64_t k = 0; k < c.k; ++k) {
      const float rounded = std::nearbyint(p.x[m * c.k + k] * inverse);
      q[k] = static_cast<int64_t>(std::fmin(std::fmax(rounded, -128.0f), 127.0f));
    }
    for (int64_t n = 0; n < c.n; ++n) {
      float y = 0;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t zero = c.asymmetric ? p.zero_points[g * c.n + n] : 8;
        int64_t sum = 0;
        for (int64_t k = g * length; k < c.k && k < (g + 1) * length; ++k) {
          sum += (p.codes[k * c.n + n] - zero) * q[k];
        }
        y = std::fma(static_cast<float>(sum), p.scales[g * c.n + n], y);
      }
      out[m * c.n + n] = c.bias ? std::fma(y, scale, p.bias[n]) : y * scale;
    }
  }
  return out;
}

std::vector<float> run(const fptq::Kernel& kernel, const Case& c, const Problem& p) {
  const int64_t panels = ceil_div(c.n, 64);
  const int64_t steps = ceil_div(c.k, 8);
  const int64_t block_steps = c.block == -1 ? steps : c.block / 8;
  const int64_t group_steps = block_steps < steps ? block_steps : steps;
  const int64_t groups = ceil_div(steps, group_steps);
  std::vector<uint8_t> lines(static_cast<size_t>(panels * steps * 256));
  std::vector<uint8_t> zeros(static_cast<size_t>(panels * groups * 64));
  std::vector<float> scales(static_cast<size_t>(panels * groups * 64));
  for (int64_t k = 0; k < c.k; ++k) {
    for (int64_t n = 0; n < c.n; ++n) {
      const int64_t line = (n / 64 * steps + k / 8) * 256;
      lines[line + n % 64 * 4 + k % 4] |=
          static_cast<uint8_t>(p.codes[k * c.n + n] << (k % 8 >= 4 ? 4 : 0));
    }
  }
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t n = 0; n < c.n; ++n) {
      const int64_t at = (n / 64 * groups + g) * 64 + n % 64;
      zeros[at] = p.zero_points[g * c.n + n];
      scales[at] = p.scales[g * c.n + n];
    }
  }
  const int64_t stride = steps * 8;
  std::vector<int8_t> codes(static_cast<size_t>(c.m * stride), 99);
  std::vector<int32_t> sums(static_cast<size_t>(c.m * groups), 99);
  std::vector<float> row_scales(static_cast<size_t>(c.m));
  const fptq::QuantizedRows rows{codes.data(), sums.data(), row_scales.data(), stride};
  std::vector<float> out(static_cast<size_t>(c.m * c.n), -1.0f);
  const fptq::PackedWeights weights{lines.data(), scales.data(),
                                    c.asymmetric ? zeros.data() : nullptr,
                                    c.bias ? p.bias.data() : nullptr,
                                    c.k, c.n, panels, steps, groups, group_steps};
  const fptq::QuantizeArgs quantize{p.x.data(), Element::kFloat32, c.k, steps, groups,
                                    group_steps, c.per_token, p.a_scale, rows};
  kernel.quantize(quantize, {0, c.m});
  kernel.matmul({weights, rows, out.data(), Element::kFloat32}, {0, c.m}, {0, panels});
  return out;
}

}  // namespace

int main() {
  std::mt19937 random(20231);
  const int64_t blocks[] = {8, 32, 64, 128, 256, -1};
  const int64_t sizes[] = {1, 4, 7, 8, 9, 31, 63, 64, 65, 127, 128, 172, 300, 688};
  int64_t failures = 0;
  int64_t runs = 0;
  for (int round = 0; round < 400; ++round) {
    const Case c{static_cast<int64_t>(1 + random() % 14), sizes[random() % 14], sizes[random() % 14],
                 blocks[random() % 6], random() % 2 == 0, random() % 2 == 0, random() % 2 == 0,
                 random() % 4 == 0};
    const Problem p = make_problem(c, random);
    const std::vector<float> want = expected(c, p);
    const fptq::KernelTable table = fptq::all_kernels();
    for (size_t i = 0; i < table.count; ++i) {
      const fptq::Kernel& kernel = table.kernels[i];
      if (!fptq::usable(kernel)) {
        if (round == 0) std::printf("skipped: %s (this CPU lacks it)\n", kernel.name);
        continue;
      }
      ++runs;
      const std::vector<float> got = run(kernel, c, p);
      if (std::memcmp(got.data(), want.data(), want.size() * sizeof(float)) == 0) continue;
      ++failures;
      size_t at = 0;
      while (std::memcmp(&got[at], &want[at], sizeof(float)) == 0) ++at;
      std::printf("%s: m=%lld k=%lld n=%lld block=%lld asymmetric=%d bias=%d per_token=%d "
                  "extreme=%d: output %zu is %.9g, expected %.9g\n",
                  kernel.name, static_cast<long long>(c.m), static_cast<long long>(c.k),
                  static_cast<long long>(c.n), static_cast<long long>(c.block), c.asymmetric,
                  c.bias, c.per_token, c.extreme, at, got[at], want[at]);
    }
  }
  std::printf("%lld kernel runs, %lld differ\n", static_cast<long long>(runs),
              static_cast<long long>(failures));
  return failures == 0 && runs > 0 ? 0 : 1;
}
