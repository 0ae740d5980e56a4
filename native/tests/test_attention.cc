// Random problems for the attention, rotary and cache functions of every kernel this CPU runs,
// beside plain loops in double: test_attention [--plant-error]. Exits with 1 where a result is too
// far away.
//
// The bound: a score is a sum of `size` products, so its rounding error is at most (size + 2) * u
// times the sum of their magnitudes (u = 2^-24), e^x moves by that much relatively, and so does
// each weight; sums of `keys` products and of weights add (keys + 8) * u. Nothing is known of the
// order of the sums.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "dispatch.h"

namespace {

struct Problem {
  int64_t rows, group, size, seen, keys;
  std::vector<float> q, k, v;   // k and v are integers where the cache holds codes
  std::vector<float> v_scales;  // then, [size]
};

float* aligned(std::vector<float>& memory) {
  const uintptr_t address = (reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64;
  return reinterpret_cast<float*>(address);
}

// What a row should be, and how far each element may be from it.
void reference(const Problem& p, int64_t row, std::vector<double>& out,
               std::vector<double>& bound) {
  constexpr double u = 1.0 / (1 << 24);
  const int64_t keys = p.seen + row / p.group;
  std::vector<double> scores(static_cast<size_t>(keys)), moved(scores.size());
  double most = -INFINITY;
  for (int64_t key = 0; key < keys; ++key) {
    double sum = 0, magnitude = 0;
    for (int64_t d = 0; d < p.size; ++d) {
      const double x = double{p.q[row * p.size + d]} * double{p.k[key * p.size + d]};
      sum += x;
      magnitude += std::fabs(x);
    }
    scores[key] = sum;
    moved[key] = static_cast<double>(p.size + 2) * u * magnitude + 4 * u * std::fabs(sum);
    most = std::max(most, sum);
  }
  double total = 0, furthest = 0;
  for (int64_t key = 0; key < keys; ++key) {
    scores[key] = std::exp(scores[key] - most);
    total += scores[key];
    furthest = std::max(furthest, moved[key]);
  }
  const double relative = 4 * furthest + 2 * static_cast<double>(keys + 64) * u;
  for (int64_t d = 0; d < p.size; ++d) {
    double sum = 0, magnitude = 0;
    for (int64_t key = 0; key < keys; ++key) {
      const double x = scores[key] / total * double{p.v[key * p.size + d]};
      sum += x;
      magnitude += std::fabs(x);
    }
    const double scale = p.v_scales.empty() ? 1.0 : double{p.v_scales[d]};
    out[d] = scale * sum;
    bound[d] = scale * relative * magnitude + 1e-37;
  }
}

bool check_attention(const fptq::Kernel& kernel, const Problem& p, bool plant) {
  // Rows end where their vectors end, so that a sanitizer sees what is read behind them.
  std::vector<float> k(p.k), q(p.q);
  const bool codes = !p.v_scales.empty();
  if (plant)
    k[static_cast<size_t>((p.seen - 1) * p.size)] +=
        p.k[static_cast<size_t>((p.seen - 1) * p.size)] > 0 ? -1.0f : 1.0f;
  const int64_t positions = (p.rows + p.group - 1) / p.group;
  std::vector<float> output(static_cast<size_t>(positions * p.group * p.size), NAN);
  std::vector<float> scratch(static_cast<size_t>(fptq::attention_scratch(p.rows, p.size)) + 16,
                             NAN);
  const std::vector<int8_t> k_codes(k.begin(), k.end()), v_codes(p.v.begin(), p.v.end());
  const void* keys = codes ? static_cast<const void*>(k_codes.data()) : k.data();
  const void* values = codes ? static_cast<const void*>(v_codes.data()) : p.v.data();
  kernel.attention({q.data(), keys, values, codes ? p.v_scales.data() : nullptr, output.data(),
                    aligned(scratch), p.rows, p.group, p.size, p.seen, p.group * p.size});
  std::vector<double> wanted(static_cast<size_t>(p.size)), bound(wanted.size());
  for (int64_t row = 0; row < p.rows; ++row) {
    reference(p, row, wanted, bound);
    for (int64_t d = 0; d < p.size; ++d) {
      const double got = output[row * p.size + d];
      if (!(std::fabs(got - wanted[d]) <= bound[d])) {
        std::printf(
            "%s: rows %ld group %ld size %ld seen %ld: row %ld element %ld is %.9g, not %.9g\n",
            kernel.name, long(p.rows), long(p.group), long(p.size), long(p.seen), long(row),
            long(d), got, wanted[d]);
        return false;
      }
    }
  }
  return true;
}

bool check_rope(const fptq::Kernel& kernel, std::mt19937& random, int64_t size, bool interleaved,
                bool plant) {
  std::normal_distribution<float> normal;
  const int64_t half = std::uniform_int_distribution<int64_t>(0, size / 2)(random);
  std::vector<float> x(static_cast<size_t>(size)), y(x.size()), cos(half + 1), sin(half + 1);
  for (float& value : x) value = normal(random);
  for (int64_t i = 0; i < half; ++i) {
    const float angle = normal(random);
    cos[i] = std::cos(angle);
    sin[i] = std::sin(angle);
  }
  kernel.rope({x.data(), y.data(), half ? cos.data() : nullptr, half ? sin.data() : nullptr, size,
               2 * half, interleaved, 0.5f, nullptr});
  for (int64_t i = 0; i < size; ++i) {
    double wanted = 0.5 * x[i];
    if (i < 2 * half) {
      const int64_t pair = interleaved ? i / 2 : i % half;
      const bool second = interleaved ? i % 2 == 1 : i >= half;
      const double a = x[interleaved ? 2 * pair : pair];
      const double b = x[interleaved ? 2 * pair + 1 : half + pair];
      wanted = 0.5 * (second ? b * cos[pair] + a * sin[pair] : a * cos[pair] - b * sin[pair]);
    }
    if (plant && i == size - 1) wanted += 0.01;
    if (!(std::fabs(y[i] - wanted) <= 1e-6 * (1 + std::fabs(wanted)) * 4)) {
      std::printf("%s: rotated element %ld of %ld is %.9g, not %.9g\n", kernel.name, long(i),
                  long(size), double{y[i]}, wanted);
      return false;
    }
  }
  return true;
}

Problem random_problem(std::mt19937& random) {
  const auto pick = [&](std::vector<int64_t> values) { return values[random() % values.size()]; };
  Problem p{};
  p.group = pick({1, 1, 2, 3, 4, 7, 8});
  p.size = pick({1, 3, 8, 16, 20, 24, 32, 40, 64, 80, 96, 128, 256});
  p.rows = pick({1, 2, 3, 4, 5, 6, 7, 8, 13, 24, 50});
  p.seen = pick({1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200});
  p.keys = p.seen + (p.rows - 1) / p.group;
  std::normal_distribution<float> normal;
  const auto fill = [&](std::vector<float>& to, int64_t count, float size) {
    to.resize(static_cast<size_t>(count));
    for (float& x : to) x = size * normal(random);
  };
  fill(p.q, p.rows * p.size, 1.0f / std::sqrt(static_cast<float>(p.size)));
  fill(p.k, p.keys * p.size, random() % 8 == 0 ? 30.0f : 2.0f);  // sometimes one key has all weight
  fill(p.v, p.keys * p.size, 1.0f);
  if (random() % 2 == 0) return p;
  for (float& x : p.k) x = std::fmax(-128.0f, std::fmin(127.0f, std::nearbyint(40 * x)));
  for (float& x : p.v) x = std::fmax(-128.0f, std::fmin(127.0f, std::nearbyint(40 * x)));
  for (float& x : p.q) x /= 40;
  fill(p.v_scales, p.size, 1.0f);
  for (float& x : p.v_scales) x = 0.01f + std::fabs(x);
  return p;
}

// Codes for the cache; ties, what is too large and what is no number among them.
bool check_quantize_kv(const fptq::Kernel& kernel, std::mt19937& random, int64_t count,
                       bool plant) {
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(count)), reciprocals(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    reciprocals[i] = std::ldexp(1.0f, static_cast<int>(random() % 8));
    x[i] = (random() % 2 ? std::floor(60 * normal(random)) + 0.5f : 60 * normal(random)) /
           reciprocals[i];
    if (random() % 16 == 0) x[i] = normal(random) * INFINITY;
    if (random() % 16 == 0) x[i] = NAN;
  }
  std::vector<int8_t> codes(x.size());
  kernel.quantize_kv({x.data(), reciprocals.data(), codes.data(), count});
  for (size_t i = 0; i < x.size(); ++i) {
    const float scaled = x[i] * reciprocals[i];
    int wanted = 127;
    if (!std::isnan(scaled)) {
      wanted = static_cast<int>(std::nearbyint(std::fmax(-128.0f, std::fmin(127.0f, scaled))));
    }
    if (plant && i == x.size() - 1) wanted ^= 1;
    if (codes[i] != wanted) {
      std::printf("%s: the code of %.9g is %d, not %d\n", kernel.name, double{scaled}, codes[i],
                  wanted);
      return false;
    }
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const bool plant = argc > 1 && std::strcmp(argv[1], "--plant-error") == 0;
  const fptq::KernelTable table = fptq::all_kernels();
  int failed = 0, tested = 0;
  for (size_t i = 0; i < table.count; ++i) {
    const fptq::Kernel& kernel = table.kernels[i];
    if (!fptq::usable(kernel)) continue;
    std::mt19937 random(7);
    bool attention = true, rotate = true, encode = true;
    for (int n = 0; n < 300; ++n) {
      const Problem p = random_problem(random);
      attention = attention && check_attention(kernel, p, plant);
      rotate = rotate && check_rope(kernel, random, p.size, n % 2 == 1, plant);
      encode = encode && check_quantize_kv(kernel, random, p.size, plant);
    }
    ++tested;
    const bool good = attention && rotate && encode;
    failed += plant ? !attention && !rotate && !encode : !good;
    std::printf("%s: attention %s\n", kernel.name, good ? "good" : "WRONG");
  }
  if (plant) return failed == tested ? 1 : 0;  // every kernel must have been caught
  return failed != 0;
}
