// Running a node: quantize the rows once, then multiply them by all panels of all parts.
#include "linear_op.h"

#include <algorithm>

#include "session_work.h"

namespace fptq {

using ort::check;
using ort::error;

namespace {

// A task smaller than this (some microseconds) costs more to hand to a thread than it saves.
constexpr int64_t kTaskMultiplies = int64_t{1} << 18;
constexpr int64_t kTaskConversions = int64_t{1} << 14;
// Enough tasks for any number of threads to finish together; the API does not tell that number.
constexpr int64_t kTasks = 64;
// Codes of a task's rows stay in the second-level cache while its panels pass by.
constexpr int64_t kTaskCodes = int64_t{5} << 18;
// Rows whose gate and other half wait together, 32 KiB, for being multiplied.
constexpr int64_t kGatedRows = 64;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

QuantizedRows rows_from(const QuantizedRows& rows, int64_t first, int64_t groups) {
  return {rows.codes + first * rows.stride, rows.group_sums + first * groups, rows.scales + first,
          rows.stride};
}

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

// Not when the session is made, which so takes as long with as without.
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

void LinearOp::compute(ort::KernelContext* context) const {
  const ort::Value* value = nullptr;
  check(f_, f_.KernelContext_GetInput(context, 0, &value));
  if (value == nullptr) throw error("%s: input A is absent", node_.c_str());
  ort::Tensor a = ort::tensor(f_, value);
  if (a.type != kind_.activation) throw error("%s: input A changed its type", node_.c_str());
  const PackedWeights& w = parts_[0];
  if (a.dims.empty() || a.dims.back() != w.k) {
    throw error("%s: the last dimension of A must be K = %lld, but A has the shape %s",
                node_.c_str(), static_cast<long long>(w.k), ort::shape_text(a.dims).c_str());
  }
  // A exists in memory, so the product of its dimensions cannot overflow unless one is 0.
  int64_t rows = 1;
  if (std::find(a.dims.begin(), a.dims.end(), 0) != a.dims.end()) rows = 0;
  for (size_t i = 0; rows != 0 && i + 1 < a.dims.size(); ++i) rows *= a.dims[i];

  if (moves_) std::call_once(moved_, [this] { move_weights(); });

  Call call{};
  call.context = context;
  call.rows = rows;
  call.element = kind_.activation == ort::kFloat16 ? Element::kFloat16 : Element::kFloat32;
  for (size_t i = 0; i < (gate_ == Gate::kNone ? parts_.size() : 1); ++i) {
    ort::Value* output = nullptr;
    void* y = nullptr;
    a.dims.back() = parts_[i].n;
    check(f_, f_.KernelContext_GetOutput(context, i, a.dims.data(), a.dims.size(), &output));
    if (output == nullptr) throw error("%s: output %zu is left out", node_.c_str(), i);
    if (rows != 0) check(f_, f_.GetTensorMutableData(output, &y));
    call.outputs.push_back(y);
  }
  if (rows == 0) return;

  // Rows whose distance is a multiple of a page compete for the same cache sets.
  int64_t stride = round_up(w.k_blocks * kKr, 64);
  if (stride % 1024 == 0) stride += 64;
  const int64_t code_bytes = rows * stride + kRowSlack;
  const int64_t sum_bytes = rows * w.groups * static_cast<int64_t>(sizeof(int32_t));
  const int64_t scale_bytes = rows * static_cast<int64_t>(sizeof(float));
  const Workspace workspace(allocator_, static_cast<size_t>(code_bytes + sum_bytes + scale_bytes));
  uint8_t* memory = workspace.data();
  const QuantizedRows quantized = {
      reinterpret_cast<int8_t*>(memory), reinterpret_cast<int32_t*>(memory + code_bytes),
      reinterpret_cast<float*>(memory + code_bytes + sum_bytes), stride};
  call.quantize = {a.data,           call.element, w.k,      w.k_blocks, w.groups,
                   w.group_k_blocks, per_token_,   a_scale_, quantized};
  run(call);
}

void LinearOp::run(const Call& call) const {
  const PackedWeights& w = parts_[0];
  const int64_t rows = call.rows;
  // First every row becomes int8, once; then the tiles, which all threads read it for.
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
