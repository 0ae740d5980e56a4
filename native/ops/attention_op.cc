// Running an attention node: new keys and values join the cache, then every query meets all of it.
#include "attention_op.h"

#include <algorithm>
#include <cstring>

#include "session_work.h"

namespace fptq {

using ort::check;
using ort::error;

namespace {

// Rows (heads times positions) of a task: so many that transposing the keys pays off, so few that
// their sums (192 * 128 floats are 96 KiB) stay in the second-level cache.
constexpr int64_t kTaskRows = 192;
// The least work of a task, as in linear_op.cc.
constexpr int64_t kTaskMultiplies = int64_t{1} << 18;
constexpr int64_t kTaskElements = int64_t{1} << 14;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

}  // namespace

void AttentionOp::make_outputs(ort::KernelContext* context, Call& call) const {
  const int64_t output_dims[3] = {call.batch, call.tokens, heads_ * call.size};
  const int64_t cache_dims[4] = {call.batch, kv_heads_, call.present_length, call.size};
  for (size_t i = 0; i < kOutputs; ++i) {
    ort::Value* value = nullptr;
    void* data = nullptr;
    check(f_, f_.KernelContext_GetOutput(context, i, i == 0 ? output_dims : cache_dims,
                                         i == 0 ? 3 : 4, &value));
    if (value == nullptr) throw error("%s: output %zu is left out", node_.c_str(), i);
    check(f_, f_.GetTensorMutableData(value, &data));
    if (i == 0) {
      call.output = static_cast<float*>(data);
    } else {
      call.present[i - 1] = static_cast<uint8_t*>(data);
    }
  }
}

RopeArgs AttentionOp::rotation(const Call& call, int64_t position, const float* from,
                               float* to) const {
  const int64_t at = position * (call.rotary / 2);
  RopeArgs args{};
  args.input = from;
  args.output = to;
  args.cos = call.cos != nullptr ? call.cos + at : nullptr;
  args.sin = call.cos != nullptr ? call.sin + at : nullptr;
  args.size = call.size;
  args.rotary = call.rotary;
  args.interleaved = interleaved_;
  args.scale = 1.0f;
  return args;
}

// Past and new keys and values of one head, in the present cache; past ones are there already where
// both are the same memory.
void AttentionOp::append(const Call& call, int64_t batch, int64_t head) const {
  const int64_t before = call.before[static_cast<size_t>(batch)];
  const int64_t vector = call.size * (cache_ == ort::kInt8 ? 1 : int64_t{sizeof(float)});  // bytes
  const int64_t index = batch * kv_heads_ + head;
  for (int i = 0; i < 2; ++i) {
    uint8_t* present = call.present[i] + index * call.present_length * vector;
    if (call.past[i] != call.present[i]) {
      if (before != 0) {
        std::memcpy(present, call.past[i] + index * call.past_length * vector,
                    static_cast<size_t>(before * vector));
      }
      const int64_t end = before + call.tokens;
      std::memset(present + end * vector, 0,
                  static_cast<size_t>((call.present_length - end) * vector));
    }
    const float* from =
        (i == 0 ? call.k : call.v) + batch * call.tokens * call.kv_stride + head * call.size;
    uint8_t* to = present + before * vector;
    for (int64_t t = 0; t < call.tokens; ++t, from += call.kv_stride, to += vector) {
      store_vector(call, i, head, rotation(call, before + t, from, nullptr), to);
    }
  }
}

// One new key (kind 0), rotated, or value (kind 1), as it is kept.
void AttentionOp::store_vector(const Call& call, int kind, int64_t head, const RopeArgs& vector,
                               uint8_t* to) const {
  RopeArgs turned = vector;
  if (cache_ != ort::kInt8) {
    turned.output = reinterpret_cast<float*>(to);
    if (kind == 0) return kernel_->rope(turned);
    std::memcpy(to, vector.input, static_cast<size_t>(call.size) * sizeof(float));
    return;
  }
  QuantizeKvArgs codes = {vector.input, call.reciprocals[kind].data() + head * call.size,
                          reinterpret_cast<int8_t*>(to), call.size};
  if (kind == 1) return kernel_->quantize_kv(codes);
  const Workspace workspace(allocator_, static_cast<size_t>(call.size) * sizeof(float));
  turned.output = reinterpret_cast<float*>(workspace.data());
  kernel_->rope(turned);
  codes.input = turned.output;
  kernel_->quantize_kv(codes);
}

void AttentionOp::attend(const Call& call, int64_t batch, int64_t head, int64_t first,
                         int64_t count) const {
  const int64_t group = heads_ / kv_heads_;
  const int64_t rows = count * group;
  const int64_t before = call.before[static_cast<size_t>(batch)];
  const bool codes = cache_ == ort::kInt8;
  const int64_t queries = attention_padded(rows * call.size);
  const int64_t floats = queries + attention_scratch(rows, call.size);
  const Workspace workspace(allocator_, static_cast<size_t>(floats) * sizeof(float) + 64);
  const uintptr_t address = (reinterpret_cast<uintptr_t>(workspace.data()) + 63) / 64 * 64;
  float* q = reinterpret_cast<float*>(address);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t token = first + row / group;
    const float* from = call.q + (batch * call.tokens + token) * call.q_stride +
                        (head * group + row % group) * call.size;
    RopeArgs args = rotation(call, before + token, from, q + row * call.size);
    args.scale = call.scale;
    if (codes) args.channels = call.scales[0].data() + head * call.size;
    kernel_->rope(args);
  }
  const int64_t cache = (batch * kv_heads_ + head) * call.present_length * call.size *
                        (codes ? 1 : int64_t{sizeof(float)});
  const int64_t width = heads_ * call.size;
  AttentionTask task{};
  task.q = q;
  task.k = call.present[0] + cache;
  task.v = call.present[1] + cache;
  task.v_scales = codes ? call.scales[1].data() + head * call.size : nullptr;
  task.output = call.output + (batch * call.tokens + first) * width + head * group * call.size;
  task.scratch = q + queries;
  task.rows = rows;
  task.group = group;
  task.size = call.size;
  task.seen = before + first + 1;
  task.output_stride = width;
  kernel_->attention(task);
}

void AttentionOp::compute(ort::KernelContext* context) const {
  Call call{};
  read_shapes(context, call);
  read_cache(context, call);
  read_scales(context, call);
  read_lengths(context, call);
  read_rotary(context, call);
  make_outputs(context, call);
  if (call.batch == 0 || call.tokens == 0) return;

  const int64_t cached = call.batch * kv_heads_;
  const bool copies = call.past[0] != call.present[0];
  const int64_t moved = (copies ? call.present_length : call.tokens) * call.size;
  const int64_t heads_at_once = ceil_div(kTaskElements, moved);
  parallel_for(f_, context, ceil_div(cached, heads_at_once), [&](size_t index) {
    const int64_t begin = static_cast<int64_t>(index) * heads_at_once;
    for (int64_t i = begin; i < std::min(begin + heads_at_once, cached); ++i) {
      append(call, i / kv_heads_, i % kv_heads_);
    }
  });

  const int64_t group = heads_ / kv_heads_;
  const int64_t positions = std::min(std::max(kTaskRows / group, int64_t{1}), call.tokens);
  const int64_t blocks = ceil_div(call.tokens, positions);
  const int64_t tasks = cached * blocks;
  const int64_t multiplies = positions * group * call.present_length * call.size;
  const int64_t tasks_at_once = ceil_div(kTaskMultiplies, std::max(multiplies, int64_t{1}));
  parallel_for(f_, context, ceil_div(tasks, tasks_at_once), [&](size_t index) {
    const int64_t begin = static_cast<int64_t>(index) * tasks_at_once;
    for (int64_t i = begin; i < std::min(begin + tasks_at_once, tasks); ++i) {
      const int64_t block = blocks - 1 - i / cached;  // the last, which see the most keys, first
      const int64_t first = block * positions;
      attend(call, i % cached / kv_heads_, i % kv_heads_, first,
             std::min(positions, call.tokens - first));
    }
  });
}

}  // namespace fptq
