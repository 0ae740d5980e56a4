// fptq::MatMulW4A8 and fptq::MatMulW8A8, version 1: what the nodes mean is written in
// docs/kernels.md.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "huge_pages.h"
#include "kernel.h"
#include "ort_wrappers.h"

namespace fptq {

// Which of the registered ops a node is: ONNX Runtime chooses by name and types of A and scales.
struct OpKind {
  int64_t weight_bits;          // 4 or 8
  ort::ElementType activation;  // of A and of the outputs
  ort::ElementType scales;
  const char* name() const { return weight_bits == 4 ? "MatMulW4A8" : "MatMulW8A8"; }
};

class LinearOp {
 public:
  // Validates attributes and constant inputs. Throws ort::Error.
  LinearOp(const ort::Functions& f, const ort::KernelInfo* info, OpKind kind);
  ~LinearOp();
  LinearOp(const LinearOp&) = delete;
  LinearOp& operator=(const LinearOp&) = delete;

  // Safe to call from several threads at once. Throws ort::Error.
  void compute(ort::KernelContext* context) const;

  static constexpr size_t kInputs = 5;
  static constexpr size_t kRequiredInputs = 3;
  static ort::ElementType input_type(size_t index, const OpKind& kind);

  // Each output has A's shape with its own last dimension; symbols are kept. Throws ort::Error.
  static void infer_shape(const ort::Functions& f, OpKind kind, ort::ShapeInferContext* context);

 private:
  void read_shape_attributes(const ort::KernelInfo* info);
  void read_activation_attributes(const ort::KernelInfo* info);
  void read_gate(const ort::KernelInfo* info);
  void read_weights(const ort::KernelInfo* info);
  void move_weights() const;
  std::string string_attribute(const ort::KernelInfo* info, const char* name) const;
  const void* constant(const ort::KernelInfo* info, size_t index, ort::ElementType type,
                       const std::vector<int64_t>& dims, bool may_be_empty) const;

  struct Call;
  // Input A of a call, whose type and last dimension are checked. Throws ort::Error.
  ort::Tensor read_input(ort::KernelContext* context) const;
  // Memory of the outputs, null where there are no rows; `dims` are those of A. Throws ort::Error.
  std::vector<void*> make_outputs(ort::KernelContext* context, std::vector<int64_t> dims,
                                  int64_t rows) const;
  void run(const Call& call) const;
  void matmul_parts(const Call& call, Range rows, Range panels) const;
  void matmul_gated(const Call& call, Range rows, Range panels) const;

  const ort::Functions& f_;
  OpKind kind_;
  std::string node_;
  const Kernel* kernel_ = nullptr;
  MatMul* matmul_ = nullptr;  // the kernel's for weights of these bits
  ort::Allocator* allocator_ = nullptr;
  // Linears of one input: one output each, or the two of a gated MLP with one output.
  // Where their weights are changes once, before the first of them is used.
  mutable std::vector<PackedWeights> parts_;
  mutable HugePages huge_pages_;
  mutable std::once_flag moved_;
  bool moves_ = false;
  Gate gate_ = Gate::kNone;
  int64_t panels_ = 0;  // of all parts
  bool per_token_ = false;
  float a_scale_ = 1.0f;
};

}  // namespace fptq
