// Running a node: quantize the rows once, then multiply them by all panels of all parts.
#include "linear_op.h"

#include <algorithm>
#include <utility>

#include "session_work.h"

namespace fptq {

using ort::check;
using ort::error;

namespace {

// The least work of a task; less costs more to hand to a thread than it saves. 2^18 multiply-adds
// take 1 to 5 us at the 100 to 400 GOPS of docs/kernels.md (a multiply-add counts as two). So do
// 2^14 conversions to int8, at 0.16 ns each with AVX-512 (fptq_bench_kernels, 512 rows).
constexpr int64_t kTaskMultiplies = int64_t{1} << 18;
constexpr int64_t kTaskConversions = int64_t{1} << 14;
// Tasks that the panels are cut into where the rows are one task. The API does not tell the number
// of threads; 64 tasks are four for each of 16 threads, so that none waits long for the last one.
constexpr int64_t kTasks = 64;
// Bytes of codes that the rows of a task may have, 1.25 MiB: they are to stay in the second-level
// cache (2 MiB on CPUs with AMX) while panel after panel is read. When this bound was added, all
// kernels became 5 % faster at 512 rows, and AMX 7 % at K = 11008.
constexpr int64_t kTaskCodes = int64_t{5} << 18;
// Rows of a gated MLP that are multiplied before their two halves are put together: the halves
// take 2 * 64 rows * 64 columns * 4 bytes = 32 KiB of stack, and are still in cache then.
constexpr int64_t kGatedRows = 64;
// Rows of codes that are a multiple of this apart fall on few sets of the first-level cache, which
// repeat every 4 KiB, and displace each other; such a distance gets one line of cache more.
constexpr int64_t kSetConflict = 1024;
constexpr int64_t kCacheLine = 64;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

QuantizedRows rows_from(const QuantizedRows& rows, int64_t first, int64_t groups) {
  return {rows.codes + first * rows.stride, rows.group_sums + first * groups, rows.scales + first,
          rows.stride};
}

// Rows of A: the product of all its dimensions but the last. A exists in memory, so that the
// product cannot overflow unless one of them is 0.
int64_t row_count(const std::vector<int64_t>& dims) {
  if (std::find(dims.begin(), dims.end(), 0) != dims.end()) return 0;
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < dims.size(); ++i) rows *= dims[i];
  return rows;
}

// Where the int8 form of all rows lies in one piece of memory: codes, then group sums, then scales.
class RowsLayout {
 public:
  RowsLayout(const PackedWeights& w, int64_t rows) {
    stride_ = round_up(w.k_blocks * kKr, kCacheLine);
    if (stride_ % kSetConflict == 0) stride_ += kCacheLine;
    code_bytes_ = rows * stride_ + kRowSlack;
    sum_bytes_ = rows * w.groups * static_cast<int64_t>(sizeof(int32_t));
    scale_bytes_ = rows * static_cast<int64_t>(sizeof(float));
  }
  size_t bytes() const { return static_cast<size_t>(code_bytes_ + sum_bytes_ + scale_bytes_); }
  QuantizedRows in(uint8_t* memory) const {
    return {reinterpret_cast<int8_t*>(memory), reinterpret_cast<int32_t*>(memory + code_bytes_),
            reinterpret_cast<float*>(memory + code_bytes_ + sum_bytes_), stride_};
  }

 private:
  int64_t stride_, code_bytes_, sum_bytes_, scale_bytes_;
};

// One panel as weights of their own.
PackedWeights one_panel(const PackedWeights& w, int64_t panel) {
  PackedWeights out = w;
  const int64_t column = panel * kNr;
  out.blocks += panel * w.k_blocks * kNr * w.bits;
  out.scales += panel * w.groups * kNr * w.scale_bytes;
  if (w.zero_points != nullptr) out.zero_points += panel * w.groups * kNr;
  if (w.bias != nullptr) out.bias += column;
  out.n = std::min(kNr, w.n - column);
  out.panels = 1;
  return out;
}

}  // namespace

struct LinearOp::Call {
  ort::KernelContext* context;
  QuantizeArgs quantize;
  int64_t rows;
  Element element;
  std::vector<void*> outputs;
};

// Called by the first run, not by the constructor, so that making a session stays fast.
void LinearOp::move_weights() const {
  const PackedWeights first = parts_[0];
  const int64_t values = panels_ * first.groups * kNr;
  const auto move = [&](auto* from, int64_t bytes) {
    return static_cast<decltype(from)>(huge_pages_.move(from, static_cast<size_t>(bytes)));
  };
  const auto* blocks = move(first.blocks, panels_ * first.k_blocks * kNr * first.bits);
  const auto* scales = move(first.scales, values * first.scale_bytes);
  const auto* zero_points = move(first.zero_points, values);
  for (PackedWeights& part : parts_) {
    part.blocks = blocks + (part.blocks - first.blocks);
    part.scales = scales + (part.scales - first.scales);
    if (zero_points != nullptr)
      part.zero_points = zero_points + (part.zero_points - first.zero_points);
  }
}

ort::Tensor LinearOp::read_input(ort::KernelContext* context) const {
  const ort::Value* value = nullptr;
  check(f_, f_.KernelContext_GetInput(context, 0, &value));
  if (value == nullptr) throw error("%s: input A is absent", node_.c_str());
  ort::Tensor a = ort::tensor(f_, value);
  if (a.type != kind_.activation) throw error("%s: input A changed its type", node_.c_str());
  const int64_t k = parts_[0].k;
  if (a.dims.empty() || a.dims.back() != k) {
    throw error("%s: the last dimension of A must be K = %lld, but A has the shape %s",
                node_.c_str(), static_cast<long long>(k), ort::shape_text(a.dims).c_str());
  }
  return a;
}

std::vector<void*> LinearOp::make_outputs(ort::KernelContext* context, std::vector<int64_t> dims,
                                          int64_t rows) const {
  std::vector<void*> outputs;
  for (size_t i = 0; i < (gate_ == Gate::kNone ? parts_.size() : 1); ++i) {
    ort::Value* output = nullptr;
    void* y = nullptr;
    dims.back() = parts_[i].n;
    check(f_, f_.KernelContext_GetOutput(context, i, dims.data(), dims.size(), &output));
    if (output == nullptr) throw error("%s: output %zu is left out", node_.c_str(), i);
    if (rows != 0) check(f_, f_.GetTensorMutableData(output, &y));
    outputs.push_back(y);
  }
  return outputs;
}

void LinearOp::compute(ort::KernelContext* context) const {
  ort::Tensor a = read_input(context);
  const int64_t rows = row_count(a.dims);
  if (moves_) std::call_once(moved_, [this] { move_weights(); });

  Call call{};
  call.context = context;
  call.rows = rows;
  call.element = kind_.activation == ort::kFloat16 ? Element::kFloat16 : Element::kFloat32;
  call.outputs = make_outputs(context, std::move(a.dims), rows);
  if (rows == 0) return;

  const PackedWeights& w = parts_[0];
  const RowsLayout layout(w, rows);
  const Workspace workspace(allocator_, layout.bytes());
  call.quantize.input = a.data;
  call.quantize.element = call.element;
  call.quantize.k = w.k;
  call.quantize.k_blocks = w.k_blocks;
  call.quantize.groups = w.groups;
  call.quantize.group_k_blocks = w.group_k_blocks;
  call.quantize.per_token = per_token_;
  call.quantize.static_scale = a_scale_;
  call.quantize.rows = layout.in(workspace.data());
  run(call);
}

void LinearOp::run(const Call& call) const {
  const PackedWeights& w = parts_[0];
  const int64_t rows = call.rows;
  // First all rows become int8, once; then they are multiplied, and every thread reads the codes.
  const int64_t quantize_rows = ceil_div(kTaskConversions, w.k);
  parallel_for(f_, call.context, ceil_div(rows, quantize_rows), [&](size_t index) {
    const int64_t begin = static_cast<int64_t>(index) * quantize_rows;
    kernel_->quantize(call.quantize, {begin, std::min(begin + quantize_rows, rows)});
  });

  const bool gated = gate_ != Gate::kNone;
  const int64_t panels = gated ? w.panels : panels_;  // gate and up panels go together
  const int64_t fitting = std::max(kTaskCodes / call.quantize.rows.stride, kernel_->row_tile);
  const int64_t row_parts = ceil_div(rows, std::min(kernel_->rows_per_task, fitting));
  const int64_t task_rows = round_up(ceil_div(rows, row_parts), kernel_->row_tile);
  const int64_t panel_multiplies = std::min(rows, task_rows) * w.k * kNr * (gated ? 2 : 1);
  const int64_t task_panels =
      std::max(ceil_div(panels, kTasks), ceil_div(kTaskMultiplies, panel_multiplies));
  const int64_t row_tasks = ceil_div(rows, task_rows);
  const int64_t panel_tasks = ceil_div(panels, task_panels);
  const int64_t tasks = row_tasks * panel_tasks;
  parallel_for(f_, call.context, tasks, [&](size_t index) {
    // Neighbouring tasks share rows: their codes are many more bytes than a panel.
    const int64_t row = static_cast<int64_t>(index) / panel_tasks * task_rows;
    const int64_t panel = static_cast<int64_t>(index) % panel_tasks * task_panels;
    const Range task_range = {row, std::min(row + task_rows, rows)};
    const Range panel_range = {panel, std::min(panel + task_panels, panels)};
    if (gated) {
      matmul_gated(call, task_range, panel_range);
    } else {
      matmul_parts(call, task_range, panel_range);
    }
  });
}

// Panels are counted through all parts; a range may span several of them.
void LinearOp::matmul_parts(const Call& call, Range rows, Range panels) const {
  int64_t first = 0;  // panel of the part
  for (size_t i = 0; i < parts_.size(); ++i) {
    const PackedWeights& part = parts_[i];
    const Range own = {std::max(panels.begin - first, int64_t{0}),
                       std::min(panels.end - first, part.panels)};
    first += part.panels;
    if (own.begin >= own.end) continue;
    matmul_({part, call.quantize.rows, call.outputs[i], part.n, call.element}, rows, own);
  }
}

void LinearOp::matmul_gated(const Call& call, Range rows, Range panels) const {
  alignas(64) float halves[2][kGatedRows * kNr];
  const int64_t n = parts_[0].n;
  const int64_t size = call.element == Element::kFloat16 ? 2 : 4;
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    const PackedWeights weights[2] = {one_panel(parts_[0], panel), one_panel(parts_[1], panel)};
    for (int64_t row = rows.begin; row < rows.end; row += kGatedRows) {
      const int64_t count = std::min(kGatedRows, rows.end - row);
      const QuantizedRows quantized = rows_from(call.quantize.rows, row, parts_[0].groups);
      for (int half = 0; half < 2; ++half) {
        matmul_({weights[half], quantized, halves[half], kNr, Element::kFloat32}, {0, count},
                {0, 1});
      }
      for (int64_t r = 0; r < count; ++r) {
        uint8_t* output =
            static_cast<uint8_t*>(call.outputs[0]) + size * ((row + r) * n + panel * kNr);
        kernel_->swiglu(
            {halves[0] + r * kNr, halves[1] + r * kNr, output, weights[0].n, gate_, call.element});
      }
    }
  }
}

}  // namespace fptq
