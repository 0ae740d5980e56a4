// Times every kernel this CPU runs, on one thread: fptq_bench_kernels [K N [block [asymmetric]
// [half]]]; half: float16 scales.
//
// Weights cycle through enough copies to be out of cache for few rows, as in a model. Prints the
// median and the best of several runs; GOPS counts a multiply-add as two.
#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "dispatch.h"

namespace {

double seconds() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t k = argc > 2 ? std::atoll(argv[1]) : 4096;
  const int64_t n = argc > 2 ? std::atoll(argv[2]) : 4096;
  const int64_t block = argc > 3 ? std::atoll(argv[3]) : 128;
  bool asymmetric = false, half = false;
  for (int i = 4; i < argc; ++i) {
    (std::strcmp(argv[i], "half") == 0 ? half : asymmetric) = true;
  }
  const int64_t k_blocks = (k + 7) / 8;
  const int64_t panels = (n + 63) / 64;
  const int64_t group_k_blocks = block == -1 ? k_blocks : block / 8;
  const int64_t groups = (k_blocks + group_k_blocks - 1) / group_k_blocks;
  const int64_t max_rows = 512;
  const int64_t stride = 8 * k_blocks + 64;

  const int64_t bytes = panels * k_blocks * fptq::kPackedBlockBytesW4;
  const int64_t copies = std::max<int64_t>(1, (int64_t{1} << 30) / bytes);
  std::mt19937 random(1);
  std::vector<uint8_t> blocks(static_cast<size_t>(bytes * copies));
  for (auto& b : blocks) b = static_cast<uint8_t>(random());
  const int64_t values = panels * groups * 64;
  const int64_t scale_bytes = half ? 2 : 4;
  std::vector<uint8_t> scales(static_cast<size_t>(values * scale_bytes * copies));
  for (int64_t i = 0; i < values * copies; ++i) {
    const float wide = 0.0078125f;
    const uint16_t narrow = 0x2000;  // the same
    std::memcpy(scales.data() + i * scale_bytes, half ? static_cast<const void*>(&narrow) : &wide,
                static_cast<size_t>(scale_bytes));
  }
  std::vector<uint8_t> zeros(static_cast<size_t>(values), 7);
  std::vector<float> input(static_cast<size_t>(max_rows * k));
  for (auto& x : input) x = static_cast<float>(random() % 255) - 127.0f;
  std::vector<int8_t> memory(static_cast<size_t>(max_rows * stride + fptq::kRowSlack + 64));
  // On a cache line, as the session's allocator gives it.
  int8_t* codes = memory.data() + 63 - (reinterpret_cast<uintptr_t>(memory.data()) + 63) % 64;
  std::vector<int32_t> sums(static_cast<size_t>(max_rows * groups));
  std::vector<float> row_scales(static_cast<size_t>(max_rows));
  std::vector<float> output(static_cast<size_t>(max_rows * n));
  const fptq::QuantizedRows rows = {codes, sums.data(), row_scales.data(), stride};

  fptq::PackedWeights weights{};
  weights.zero_points = asymmetric ? zeros.data() : nullptr;
  weights.bits = 4;
  weights.scale_bytes = scale_bytes;
  weights.k = k;
  weights.n = n;
  weights.panels = panels;
  weights.k_blocks = k_blocks;
  weights.groups = groups;
  weights.group_k_blocks = group_k_blocks;

  std::printf("K=%" PRId64 " N=%" PRId64 " block=%" PRId64 "%s%s\n", k, n, block,
              asymmetric ? " asymmetric" : "", half ? " half" : "");
  const fptq::KernelTable table = fptq::all_kernels();
  for (size_t i = 0; i < table.count; ++i) {
    const fptq::Kernel& kernel = table.kernels[i];
    const char* only = std::getenv("FPTQ_FORCE_KERNEL");
    if (!fptq::usable(kernel) || (only != nullptr && std::strcmp(only, kernel.name) != 0)) continue;
    for (const int64_t m : {1, 2, 4, 16, 128, 512}) {
      if (kernel.features == 0 && m > 4) continue;
      const fptq::QuantizeArgs quantize = {input.data(), fptq::Element::kFloat32, k,    k_blocks,
                                           groups,       group_k_blocks,          true, 1.0f,
                                           rows};
      std::vector<double> times;
      double quantize_time = 1e9;
      const double end = seconds() + 1.0;
      for (int64_t run = 0; times.size() < 5 || seconds() < end; ++run) {
        weights.blocks = blocks.data() + (run % copies) * bytes;
        weights.scales = scales.data() + (run % copies) * values * scale_bytes;
        const fptq::MatMulArgs matmul = {weights, rows, output.data(), n, fptq::Element::kFloat32};
        const double t0 = seconds();
        kernel.quantize(quantize, {0, m});
        const double t1 = seconds();
        for (int64_t row = 0; row < m; row += kernel.rows_per_task) {
          kernel.matmul_w4a8(matmul, {row, std::min(row + kernel.rows_per_task, m)}, {0, panels});
        }
        times.push_back(seconds() - t0);
        quantize_time = std::min(quantize_time, t1 - t0);
      }
      std::sort(times.begin(), times.end());
      const double median = times[times.size() / 2];
      const double operations = 2.0 * static_cast<double>(m * k * n);
      std::printf("%-12s M=%-4" PRId64
                  " median %9.1f us %7.1f GOPS  best %7.1f GOPS  %5.1f GB/s  "
                  "quantize %.1f us\n",
                  kernel.name, m, median * 1e6, operations / median * 1e-9,
                  operations / times[0] * 1e-9, static_cast<double>(bytes) / median * 1e-9,
                  quantize_time * 1e6);
    }
  }
  return 0;
}
