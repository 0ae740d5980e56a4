// Tasks of several calls at once, as ONNX Runtime's pool runs them: same output as one after
// another.
//
// Every kernel this CPU runs; two calls over the same weights with different rows, seven threads
// each. Built with -fsanitize=thread (make native-tsan) it shows that tasks write no common byte.
#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "dispatch.h"

namespace {

constexpr int64_t kK = 328, kN = 200, kBlock = 32;
constexpr int64_t kKBlocks = kK / 8, kPanels = (kN + 63) / 64, kGroupKBlocks = kBlock / 8;
constexpr int64_t kGroups = (kKBlocks + kGroupKBlocks - 1) / kGroupKBlocks;
constexpr int64_t kStride = kK;  // no slack: a store beyond a row's end hits another thread's row
constexpr int kThreads = 7;

struct Weights {
  std::vector<uint8_t> blocks, zeros;
  std::vector<float> scales, bias;
};

Weights make_weights() {
  Weights w;
  uint32_t state = 12345;
  const auto next = [&state] { return state = state * 1664525u + 1013904223u, state >> 16; };
  w.blocks.resize(kPanels * kKBlocks * 256);
  for (auto& byte : w.blocks) byte = static_cast<uint8_t>(next());
  w.zeros.resize(kPanels * kGroups * 64);
  for (auto& zero : w.zeros) zero = static_cast<uint8_t>(next() % 16);
  w.scales.resize(kPanels * kGroups * 64);
  for (auto& scale : w.scales) scale = 0.001f * static_cast<float>(1 + next() % 100);
  w.bias.resize(kN);
  for (auto& bias : w.bias) bias = static_cast<float>(next() % 7);
  return w;
}

// The memory of one call, and its tasks.
struct Call {
  Call(const fptq::Kernel& k, const Weights& w, int64_t m)
      : kernel(k),
        rows_count(m),
        input(static_cast<size_t>(m * kK)),
        codes(static_cast<size_t>(m * kStride + fptq::kRowSlack)),
        sums(static_cast<size_t>(m * kGroups)),
        scales(static_cast<size_t>(m)),
        output(static_cast<size_t>(m * kN)) {
    weights.blocks = w.blocks.data();
    weights.scales = reinterpret_cast<const uint8_t*>(w.scales.data());
    weights.zero_points = w.zeros.data();
    weights.bias = w.bias.data();
    weights.bits = 4;
    weights.scale_bytes = 4;
    weights.k = kK;
    weights.n = kN;
    weights.panels = kPanels;
    weights.k_blocks = kKBlocks;
    weights.groups = kGroups;
    weights.group_k_blocks = kGroupKBlocks;
    for (size_t i = 0; i < input.size(); ++i) {
      input[i] = static_cast<float>(static_cast<int>(i * 7919 % 2003) - 1001) * 0.01f;
    }
  }
  fptq::QuantizedRows rows() { return {codes.data(), sums.data(), scales.data(), kStride}; }
  int64_t parts() const { return (rows_count + 4) / 5; }
  void quantize(int64_t part) {
    kernel.quantize({input.data(), fptq::Element::kFloat32, kK, kKBlocks, kGroups, kGroupKBlocks,
                     true, 1.0f, rows()},
                    range(part));
  }
  void multiply(int64_t task) {
    const int64_t panel = task % kPanels;
    kernel.matmul_w4a8({weights, rows(), output.data(), kN, fptq::Element::kFloat32},
                       range(task / kPanels), {panel, panel + 1});
  }
  fptq::Range range(int64_t part) const {
    const int64_t begin = part * 5;
    return {begin, begin + 5 < rows_count ? begin + 5 : rows_count};
  }

  const fptq::Kernel& kernel;
  int64_t rows_count;
  std::vector<float> input;
  std::vector<int8_t> codes;
  std::vector<int32_t> sums;
  std::vector<float> scales, output;
  fptq::PackedWeights weights{};
};

// Tasks taken by whoever is free, as a pool does.
void run_tasks(int64_t count, const std::function<void(int64_t)>& task) {
  std::atomic<int64_t> next{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      for (int64_t t = next++; t < count; t = next++) task(t);
    });
  }
  for (auto& thread : threads) thread.join();
}

void run_parallel(Call& call) {
  run_tasks(call.parts(), [&](int64_t part) { call.quantize(part); });
  run_tasks(call.parts() * kPanels, [&](int64_t task) { call.multiply(task); });
}

void run_serial(Call& call) {
  for (int64_t part = 0; part < call.parts(); ++part) call.quantize(part);
  for (int64_t task = 0; task < call.parts() * kPanels; ++task) call.multiply(task);
}

}  // namespace

int main() {
  const Weights weights = make_weights();
  const fptq::KernelTable table = fptq::all_kernels();
  for (size_t i = 0; i < table.count; ++i) {
    const fptq::Kernel& kernel = table.kernels[i];
    if (!fptq::usable(kernel)) {
      std::printf("%s: this CPU lacks it\n", kernel.name);
      continue;
    }
    Call first(kernel, weights, 33), second(kernel, weights, 12);
    std::thread other([&] { run_parallel(second); });
    run_parallel(first);
    other.join();
    for (const Call* call : {&first, &second}) {
      Call serial(kernel, weights, call->rows_count);
      run_serial(serial);
      if (std::memcmp(serial.output.data(), call->output.data(), 4 * serial.output.size()) != 0) {
        std::printf("%s: %" PRId64 " rows differ when tasks run at once\n", kernel.name,
                    call->rows_count);
        return 1;
      }
    }
    std::printf("%s: ok\n", kernel.name);
  }
  return 0;
}
