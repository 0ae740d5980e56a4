// fptq::GroupQueryAttention, version 1: causal attention with a KV cache and rotary embeddings, the
// part of com.microsoft's operator of that name that docs/kernels.md lists, with its inputs and
// outputs.
#pragma once

#include <string>
#include <vector>

#include "kernel.h"
#include "ort_wrappers.h"

namespace fptq {

class AttentionOp {
 public:
  // `cache`: the type of past and present, float32 or int8. Throws ort::Error.
  AttentionOp(const ort::Functions& f, const ort::KernelInfo* info, ort::ElementType cache);
  ~AttentionOp();
  AttentionOp(const AttentionOp&) = delete;
  AttentionOp& operator=(const AttentionOp&) = delete;

  // Safe to call from several threads at once. Throws ort::Error.
  void compute(ort::KernelContext* context) const;

  static constexpr const char* kName = "GroupQueryAttention";
  static constexpr size_t kInputs = 11;
  static constexpr size_t kOutputs = 3;
  static ort::ElementType input_type(size_t index, ort::ElementType cache);
  static bool required(size_t index);

 private:
  // One call, validated.
  struct Call {
    int64_t batch, tokens, size;  // size: elements of a head
    const float* q;
    const float* k;
    const float* v;
    int64_t q_stride, kv_stride;  // from token to token
    const uint8_t* past[2];       // keys and values, [batch, kv_heads, past_length, size], or null
    uint8_t* present[2];          // [batch, kv_heads, present_length, size]
    // Of the codes' channels, [kv_heads * size], and one over them; empty for float32.
    std::vector<float> scales[2], reciprocals[2];
    int64_t past_length, present_length;
    std::vector<int64_t> before;  // tokens each sequence has in the cache
    int64_t total;                // total_sequence_length
    const float* cos;             // [positions, rotary / 2]
    const float* sin;
    int64_t positions, rotary;
    float* output;  // [batch, tokens, heads * size]
    float scale;
  };

  ort::Tensor input(ort::KernelContext* context, size_t index) const;
  void read_shapes(ort::KernelContext* context, Call& call) const;
  void read_cache(ort::KernelContext* context, Call& call) const;
  void read_scales(ort::KernelContext* context, Call& call) const;
  void read_lengths(ort::KernelContext* context, Call& call) const;
  void read_rotary(ort::KernelContext* context, Call& call) const;
  void make_outputs(ort::KernelContext* context, Call& call) const;
  void append(const Call& call, int64_t batch, int64_t head) const;
  void store_vector(const Call& call, int kind, int64_t head, const RopeArgs& vector,
                    uint8_t* to) const;
  void attend(const Call& call, int64_t batch, int64_t head, int64_t first, int64_t count) const;
  RopeArgs rotation(const Call& call, int64_t position, const float* from, float* to) const;

  const ort::Functions& f_;
  std::string node_;
  const Kernel* kernel_ = nullptr;
  ort::Allocator* allocator_ = nullptr;
  ort::ElementType cache_;
  int64_t heads_ = 0, kv_heads_ = 0;
  float scale_ = 0.0f;  // 0: one over the square root of the head size
  bool rotary_ = false, interleaved_ = false;
  bool given_[kInputs] = {};
};

}  // namespace fptq
