// fptq::MatMulW4A8, version 1: what the node means is written in docs/kernels.md.
#pragma once

#include "kernel.h"
#include "ort_wrappers.h"

namespace fptq {

class MatMulW4A8 {
 public:
  // Validates attributes and constant inputs. Throws ort::Error.
  MatMulW4A8(const ort::Functions& f, const ort::KernelInfo* info, ort::ElementType activation);
  ~MatMulW4A8();
  MatMulW4A8(const MatMulW4A8&) = delete;
  MatMulW4A8& operator=(const MatMulW4A8&) = delete;

  // Safe to call from several threads at once. Throws ort::Error.
  void compute(ort::KernelContext* context) const;

  static const char* name() { return "MatMulW4A8"; }
  static constexpr size_t kInputs = 5;
  static constexpr size_t kRequiredInputs = 3;
  static ort::ElementType input_type(size_t index, ort::ElementType activation);

  // Y has A's shape with the last dimension N; symbols are kept. Throws ort::Error.
  static void infer_shape(const ort::Functions& f, ort::ShapeInferContext* context);

 private:
  void read_attributes(const ort::KernelInfo* info);
  void read_weights(const ort::KernelInfo* info);
  const void* constant(const ort::KernelInfo* info, size_t index, ort::ElementType type,
                       const std::vector<int64_t>& dims, bool may_be_empty) const;
  void run(const ort::KernelContext* context, const QuantizeArgs& quantize, const MatMulArgs& matmul,
           int64_t rows) const;

  const ort::Functions& f_;
  ort::ElementType activation_;
  std::string node_;
  const Kernel* kernel_ = nullptr;
  ort::Allocator* allocator_ = nullptr;
  PackedWeights weights_{};
  bool per_token_ = false;
  float a_scale_ = 1.0f;
};

}  // namespace fptq
