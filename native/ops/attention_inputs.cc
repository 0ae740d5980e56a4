// Reading an attention node: what a model file and a run's inputs say is checked here.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "attention_op.h"
#include "dispatch.h"
#include "node_info.h"

namespace fptq {

using ort::check;
using ort::error;

namespace {

enum Input : size_t {
  kQuery,
  kKey,
  kValue,
  kPastKey,
  kPastValue,
  kLengths,
  kTotal,
  kCos,
  kSin,
  kKeyScale,
  kValueScale
};
constexpr const char* kInputNames[AttentionOp::kInputs] = {"query",
                                                           "key",
                                                           "value",
                                                           "past_key",
                                                           "past_value",
                                                           "seqlens_k",
                                                           "total_sequence_length",
                                                           "cos_cache",
                                                           "sin_cache",
                                                           "k_scale",
                                                           "v_scale"};

}  // namespace

AttentionOp::AttentionOp(const ort::Functions& f, const ort::KernelInfo* info,
                         ort::ElementType cache)
    : f_(f), node_(node_name(f, info, kName)), cache_(cache) {
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
  for (const Input scale : {kKeyScale, kValueScale}) {
    if (given_[scale] != (cache_ == ort::kInt8)) {
      throw error("%s: %s must be given where the cache is int8, and nowhere else", node_.c_str(),
                  kInputNames[scale]);
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

ort::ElementType AttentionOp::input_type(size_t index, ort::ElementType cache) {
  if (index == kPastKey || index == kPastValue) return cache;
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
  if (tensor.type != input_type(index, cache_)) {
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
    throw error(
        "%s: past_key and past_value must be [%lld, %lld, past, %lld], but have the shapes %s and "
        "%s",
        node_.c_str(), static_cast<long long>(call.batch), static_cast<long long>(kv_heads_),
        static_cast<long long>(call.size), ort::shape_text(k.dims).c_str(),
        ort::shape_text(v.dims).c_str());
  }
  call.past[0] = static_cast<const uint8_t*>(k.data);
  call.past[1] = static_cast<const uint8_t*>(v.data);
  call.past_length = k.dims[2];
}

// One number for all, or one for every channel of every head.
void AttentionOp::read_scales(ort::KernelContext* context, Call& call) const {
  if (cache_ != ort::kInt8) return;
  const auto wanted = static_cast<size_t>(kv_heads_ * call.size);
  for (size_t i = 0; i < 2; ++i) {
    const ort::Tensor scales = input(context, kKeyScale + i);
    size_t count = 1;
    for (const int64_t d : scales.dims) count *= static_cast<size_t>(d);
    if (count != 1 && count != wanted) {
      throw error("%s: %s must have 1 or %zu numbers, but has the shape %s", node_.c_str(),
                  kInputNames[kKeyScale + i], wanted, ort::shape_text(scales.dims).c_str());
    }
    const float* from = static_cast<const float*>(scales.data);
    for (size_t channel = 0; channel < wanted; ++channel) {
      const float scale = from[count == 1 ? 0 : channel];
      if (!(scale > 0.0f) || !std::isfinite(1.0f / scale)) {
        throw error("%s: %s must be positive numbers", node_.c_str(), kInputNames[kKeyScale + i]);
      }
      call.scales[i].push_back(scale);
      call.reciprocals[i].push_back(1.0f / scale);
    }
  }
}

void AttentionOp::read_lengths(ort::KernelContext* context, Call& call) const {
  const ort::Tensor lengths = input(context, kLengths), total = input(context, kTotal);
  const auto count = [](const ort::Tensor& t) {
    int64_t n = 1;
    for (const int64_t d : t.dims) n *= d;
    return n;
  };
  if (count(lengths) != call.batch || count(total) != 1) {
    throw error(
        "%s: seqlens_k must have one number for each of %lld sequences, and "
        "total_sequence_length one, but their shapes are %s and %s",
        node_.c_str(), static_cast<long long>(call.batch), ort::shape_text(lengths.dims).c_str(),
        ort::shape_text(total.dims).c_str());
  }
  call.total = *static_cast<const int32_t*>(total.data);
  call.present_length = std::max(call.past_length, call.total);
  const bool prompt = call.tokens == call.total;  // nothing is in the cache yet
  for (int64_t b = 0; b < call.batch; ++b) {
    const int64_t length = int64_t{static_cast<const int32_t*>(lengths.data)[b]} + 1;
    const int64_t before = prompt ? 0 : length - call.tokens;
    if (before < 0 || before > call.past_length || before + call.tokens > call.present_length ||
        length > call.present_length) {
      throw error(
          "%s: seqlens_k says %lld tokens for sequence %lld, which does not fit %lld new ones, a "
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
    throw error(
        "%s: cos_cache and sin_cache must be [positions, at most %lld], but have the shapes %s and "
        "%s",
        node_.c_str(), static_cast<long long>(call.size / 2), ort::shape_text(cos.dims).c_str(),
        ort::shape_text(sin.dims).c_str());
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

}  // namespace fptq
