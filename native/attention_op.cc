// Running an attention node: new keys and values join the cache, then every query meets all of it.
#include "attention_op.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "dispatch.h"
#include "node_info.h"
#include "session_work.h"

namespace fptq {

using ort::check;
using ort::error;

namespace {

enum Input : size_t { kQuery, kKey, kValue, kPastKey, kPastValue, kLengths, kTotal, kCos, kSin };
constexpr const char* kInputNames[AttentionOp::kInputs] = {
    "query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length",
    "cos_cache", "sin_cache"};

// Rows (heads times positions) of a task: enough to earn the transposing of keys back, few enough for
// their sums to stay in the second-level cache.
constexpr int64_t kTaskRows = 192;
// Below these a task costs more to hand to a thread than it saves.
constexpr int64_t kTaskMultiplies = int64_t{1} << 18;
constexpr int64_t kTaskElements = int64_t{1} << 14;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

}  // namespace

// One call, validated.
struct AttentionOp::Call {
  int64_t batch, tokens, size;  // size: elements of a head
  const float* q;
  const float* k;
  const float* v;
  int64_t q_stride, kv_stride;  // from token to token
  const float* past[2];         // keys and values, [batch, kv_heads, past_length, size], or null
  float* present[2];            // [batch, kv_heads, present_length, size]
  int64_t past_length, present_length;
  std::vector<int64_t> before;  // tokens each sequence has in the cache
  int64_t total;                // total_sequence_length
  const float* cos;             // [positions, rotary / 2]
  const float* sin;
  int64_t positions, rotary;
  float* output;  // [batch, tokens, heads * size]
  float scale;
};

AttentionOp::AttentionOp(const ort::Functions& f, const ort::KernelInfo* info)
    : f_(f), node_(node_name(f, info, kName)) {
  heads_ = int_attribute(f, info, "num_heads", node_);
  kv_heads_ = int_attribute(f, info, "kv_num_heads", node_);
  rotary_ = int_attribute(f, info, "do_rotary", node_) != 0;
  interleaved_ = int_attribute(f, info, "rotary_interleaved", node_) != 0;
  ort::Status* status = f.KernelInfoGetAttribute_float(info, "scale", &scale_);
  if (status != nullptr) f.ReleaseStatus(status);
  constexpr int64_t kMost = 1 << 20;
  if (kv_heads_ < 1 || heads_ < kv_heads_ || heads_ > kMost || heads_ % kv_heads_ != 0) {
    throw error("%s: num_heads %lld must be a multiple of kv_num_heads %lld", node_.c_str(),
                static_cast<long long>(heads_), static_cast<long long>(kv_heads_));
  }
  if (!std::isfinite(scale_)) throw error("%s: scale must be finite", node_.c_str());
  for (size_t i = 0; i < kInputs; ++i) given_[i] = has_input(f, info, i);
  for (const auto& pair : {std::make_pair(kKey, kValue), std::make_pair(kPastKey, kPastValue)}) {
    if (given_[pair.first] != given_[pair.second]) {
      throw error("%s: %s and %s must be given together", node_.c_str(), kInputNames[pair.first],
                  kInputNames[pair.second]);
    }
  }
  if (rotary_ && !(given_[kCos] && given_[kSin])) {
    throw error("%s: do_rotary needs cos_cache and sin_cache", node_.c_str());
  }
  char message[512];
  kernel_ = choose_kernel(std::getenv("FPTQ_FORCE_KERNEL"), message, sizeof(message));
  if (kernel_ == nullptr) throw error("%s", message);
  check(f_, f_.KernelInfoGetAllocator(info, ort::kMemDefault, &allocator_));
}

AttentionOp::~AttentionOp() { f_.ReleaseAllocator(allocator_); }

ort::ElementType AttentionOp::input_type(size_t index) {
  return index == kLengths || index == kTotal ? ort::kInt32 : ort::kFloat;
}

bool AttentionOp::required(size_t index) {
  return index == kQuery || index == kLengths || index == kTotal;
}

ort::Tensor AttentionOp::input(ort::KernelContext* context, size_t index) const {
  const ort::Value* value = nullptr;
  check(f_, f_.KernelContext_GetInput(context, index, &value));
  if (value == nullptr) throw error("%s: input %s is absent", node_.c_str(), kInputNames[index]);
  ort::Tensor tensor = ort::tensor(f_, value);
  if (tensor.type != input_type(index)) {
    throw error("%s: input %s changed its type", node_.c_str(), kInputNames[index]);
  }
  return tensor;
}

void AttentionOp::read_shapes(ort::KernelContext* context, Call& call) const {
  const ort::Tensor q = input(context, kQuery);
  const int64_t all = heads_ + (given_[kKey] ? 0 : 2 * kv_heads_);  // heads in q
  if (q.dims.size() != 3 || q.dims[2] == 0 || q.dims[2] % all != 0) {
    throw error("%s: query must be [batch, tokens, %lld heads], but has the shape %s",
                node_.c_str(), static_cast<long long>(all), ort::shape_text(q.dims).c_str());
  }
  call.batch = q.dims[0];
  call.tokens = q.dims[1];
  call.size = q.dims[2] / all;
  call.q = static_cast<const float*>(q.data);
  call.q_stride = call.kv_stride = q.dims[2];
  call.scale = scale_ != 0.0f ? scale_ : 1.0f / std::sqrt(static_cast<float>(call.size));
  if (!given_[kKey]) {
    call.k = call.q + heads_ * call.size;
    call.v = call.k + kv_heads_ * call.size;
    return;
  }
  const ort::Tensor k = input(context, kKey), v = input(context, kValue);
  const std::vector<int64_t> wanted = {call.batch, call.tokens, kv_heads_ * call.size};
  if (k.dims != wanted || v.dims != wanted) {
    throw error("%s: key and value must have the shape %s, but have %s and %s", node_.c_str(),
                ort::shape_text(wanted).c_str(), ort::shape_text(k.dims).c_str(),
                ort::shape_text(v.dims).c_str());
  }
  call.k = static_cast<const float*>(k.data);
  call.v = static_cast<const float*>(v.data);
  call.kv_stride = wanted[2];
}

void AttentionOp::read_cache(ort::KernelContext* context, Call& call) const {
  call.past[0] = call.past[1] = nullptr;
  call.past_length = 0;
  if (!given_[kPastKey]) return;
  const ort::Tensor k = input(context, kPastKey), v = input(context, kPastValue);
  const bool ranked = k.dims.size() == 4;
  if (!ranked || k.dims != v.dims || k.dims[0] != call.batch || k.dims[1] != kv_heads_ ||
      k.dims[3] != call.size) {
    throw error("%s: past_key and past_value must be [%lld, %lld, past, %lld], but have the shapes %s and %s",
                node_.c_str(), static_cast<long long>(call.batch), static_cast<long long>(kv_heads_),
                static_cast<long long>(call.size), ort::shape_text(k.dims).c_str(),
                ort::shape_text(v.dims).c_str());
  }
  call.past[0] = static_cast<const float*>(k.data);
  call.past[1] = static_cast<const float*>(v.data);
  call.past_length = k.dims[2];
}

void AttentionOp::read_lengths(ort::KernelContext* context, Call& call) const {
  const ort::Tensor lengths = input(context, kLengths), total = input(context, kTotal);
  const auto count = [](const ort::Tensor& t) {
    int64_t n = 1;
    for (const int64_t d : t.dims) n *= d;
    return n;
  };
  if (count(lengths) != call.batch || count(total) != 1) {
    throw error("%s: seqlens_k must have one number for each of %lld sequences, and "
                "total_sequence_length one, but their shapes are %s and %s",
                node_.c_str(), static_cast<long long>(call.batch),
                ort::shape_text(lengths.dims).c_str(), ort::shape_text(total.dims).c_str());
  }
  call.total = *static_cast<const int32_t*>(total.data);
  call.present_length = std::max(call.past_length, call.total);
  const bool prompt = call.tokens == call.total;  // nothing is in the cache yet
  for (int64_t b = 0; b < call.batch; ++b) {
    const int64_t length = int64_t{static_cast<const int32_t*>(lengths.data)[b]} + 1;
    const int64_t before = prompt ? 0 : length - call.tokens;
    if (before < 0 || before > call.past_length || before + call.tokens > call.present_length ||
        length > call.present_length) {
      throw error("%s: seqlens_k says %lld tokens for sequence %lld, which does not fit %lld new ones, a "
                  "past of %lld and total_sequence_length %lld",
                  node_.c_str(), static_cast<long long>(length), static_cast<long long>(b),
                  static_cast<long long>(call.tokens), static_cast<long long>(call.past_length),
                  static_cast<long long>(call.total));
    }
    call.before.push_back(before);
  }
}

void AttentionOp::read_rotary(ort::KernelContext* context, Call& call) const {
  call.cos = call.sin = nullptr;
  call.rotary = 0;
  if (!rotary_) return;
  const ort::Tensor cos = input(context, kCos), sin = input(context, kSin);
  if (cos.dims.size() != 2 || cos.dims != sin.dims || cos.dims[1] > call.size / 2) {
    throw error("%s: cos_cache and sin_cache must be [positions, at most %lld], but have the shapes %s and %s",
                node_.c_str(), static_cast<long long>(call.size / 2),
                ort::shape_text(cos.dims).c_str(), ort::shape_text(sin.dims).c_str());
  }
  call.cos = static_cast<const float*>(cos.data);
  call.sin = static_cast<const float*>(sin.data);
  call.rotary = 2 * cos.dims[1];
  for (const int64_t before : call.before) {
    if (before + call.tokens > cos.dims[0]) {
      throw error("%s: position %lld is not in cos_cache, which has %lld", node_.c_str(),
                  static_cast<long long>(before + call.tokens - 1),
                  static_cast<long long>(cos.dims[0]));
    }
  }
}

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
      call.present[i - 1] = static_cast<float*>(data);
    }
  }
}

RotateArgs AttentionOp::rotation(const Call& call, int64_t position, const float* from,
                                 float* to) const {
  const int64_t at = position * (call.rotary / 2);
  const bool turns = call.cos != nullptr;
  return {from,      to,          turns ? call.cos + at : nullptr, turns ? call.sin + at : nullptr,
          call.size, call.rotary, interleaved_,                    1.0f};
}

// Past and new keys and values of one head, in the present cache; past ones are there already where both
// are the same memory.
void AttentionOp::append(const Call& call, int64_t batch, int64_t head) const {
  const int64_t before = call.before[static_cast<size_t>(batch)];
  const auto bytes = [&](int64_t tokens) {
    return static_cast<size_t>(tokens * call.size) * sizeof(float);
  };
  const int64_t index = batch * kv_heads_ + head;
  for (int i = 0; i < 2; ++i) {
    float* present = call.present[i] + index * call.present_length * call.size;
    if (call.past[i] != call.present[i]) {
      if (before != 0) {
        std::memcpy(present, call.past[i] + index * call.past_length * call.size, bytes(before));
      }
      const int64_t end = before + call.tokens;
      std::memset(present + end * call.size, 0, bytes(call.present_length - end));
    }
    const float* from = (i == 0 ? call.k : call.v) + batch * call.tokens * call.kv_stride + head * call.size;
    float* to = present + before * call.size;
    for (int64_t t = 0; t < call.tokens; ++t, from += call.kv_stride, to += call.size) {
      if (i == 0) {
        kernel_->rotate(rotation(call, before + t, from, to));
      } else {
        std::memcpy(to, from, bytes(1));
      }
    }
  }
}

void AttentionOp::attend(const Call& call, int64_t batch, int64_t head, int64_t first,
                         int64_t count) const {
  const int64_t group = heads_ / kv_heads_;
  const int64_t rows = count * group;
  const int64_t before = call.before[static_cast<size_t>(batch)];
  const int64_t queries = attention_padded(rows * call.size);
  const int64_t floats = queries + attention_scratch(rows, call.size);
  const Workspace workspace(allocator_, static_cast<size_t>(floats) * sizeof(float) + 64);
  const uintptr_t address = (reinterpret_cast<uintptr_t>(workspace.data()) + 63) / 64 * 64;
  float* q = reinterpret_cast<float*>(address);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t token = first + row / group;
    const float* from = call.q + (batch * call.tokens + token) * call.q_stride +
                        (head * group + row % group) * call.size;
    RotateArgs args = rotation(call, before + token, from, q + row * call.size);
    args.scale = call.scale;
    kernel_->rotate(args);
  }
  const int64_t cache = (batch * kv_heads_ + head) * call.present_length * call.size;
  const int64_t width = heads_ * call.size;
  float* output = call.output + (batch * call.tokens + first) * width + head * group * call.size;
  kernel_->attention({q, call.present[0] + cache, call.present[1] + cache, output, q + queries, rows,
                      group, call.size, before + first + 1, width});
}

void AttentionOp::compute(ort::KernelContext* context) const {
  Call call{};
  read_shapes(context, call);
  read_cache(context, call);
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
