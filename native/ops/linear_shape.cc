// Shape inference of the ops, which keeps symbolic dimensions such as "batch" alive in the graph.
#include <atomic>
#include <climits>
#include <deque>
#include <string>

#include "linear_op.h"

namespace fptq {

using ort::check;

namespace {

constexpr size_t kMaxParts = 64;

// The integers of an attribute; none when it is absent or odd, which the kernel's constructor
// reports with the node's name.
std::vector<int64_t> ints(const ort::Functions& f, ort::ShapeInferContext* context,
                          const char* name, ort::AttrType type) {
  const ort::OpAttr* attr = nullptr;
  int64_t values[kMaxParts];
  size_t bytes = 0;
  ort::Status* status = f.ShapeInferContext_GetAttribute(context, name, &attr);
  if (status == nullptr) status = f.ReadOpAttr(attr, type, values, sizeof(values), &bytes);
  if (status == nullptr) return {values, values + bytes / sizeof(values[0])};
  f.ReleaseStatus(status);
  return {};
}

bool has_attribute(const ort::Functions& f, ort::ShapeInferContext* context, const char* name) {
  const ort::OpAttr* attr = nullptr;
  ort::Status* status = f.ShapeInferContext_GetAttribute(context, name, &attr);
  if (status == nullptr) return attr != nullptr;
  f.ReleaseStatus(status);
  return false;
}

struct InputShape {
  ort::ElementType type;
  std::vector<int64_t> dims;
  std::vector<const char*> symbols;
};

std::string unused_symbol() {
  static std::atomic<unsigned long long> count{0};
  return "fptq_unnamed_" + std::to_string(count.fetch_add(1, std::memory_order_relaxed));
}

void set_output(const ort::Functions& f, ort::ShapeInferContext* context, size_t index,
                const InputShape& shape) {
  ort::TensorInfo* y = nullptr;
  check(f, f.CreateTensorTypeAndShapeInfo(&y));
  struct Release {
    const ort::Functions& f;
    ort::TensorInfo* info;
    ~Release() { f.ReleaseTensorTypeAndShapeInfo(info); }
  } release{f, y};
  auto symbols = shape.symbols;
  check(f, f.SetTensorElementType(y, shape.type));
  check(f, f.SetDimensions(y, shape.dims.data(), shape.dims.size()));
  check(f, f.SetSymbolicDimensions(y, symbols.data(), symbols.size()));
  check(f, f.ShapeInferContext_SetOutputTypeShape(context, index, y));
}

}  // namespace

void LinearOp::infer_shape(const ort::Functions& f, OpKind kind, ort::ShapeInferContext* context) {
  const std::vector<int64_t> k = ints(f, context, "K", ort::kAttrInt);
  std::vector<int64_t> n = ints(f, context, "N", ort::kAttrInts);
  if (k.size() != 1 || k[0] < 1 || n.empty()) return;
  if (has_attribute(f, context, "gate")) n.resize(1);

  ort::TensorInfo* a = nullptr;  // belongs to the context
  check(f, f.ShapeInferContext_GetInputTypeShape(context, 0, &a));
  size_t rank = 0;
  check(f, f.GetDimensionsCount(a, &rank));
  if (rank == 0) return;  // an unknown rank looks like this, too
  InputShape shape{ort::kUndefined, std::vector<int64_t>(rank), std::vector<const char*>(rank)};
  check(f, f.GetTensorElementType(a, &shape.type));
  check(f, f.GetDimensions(a, shape.dims.data(), rank));
  check(f, f.GetSymbolicDimensions(a, shape.symbols.data(), rank));
  if (shape.dims.back() >= 0 && shape.dims.back() != k[0]) {
    throw ort::error("fptq::%s: the last dimension of A must be K = %lld, but A has the shape %s",
                     kind.name(), static_cast<long long>(k[0]),
                     ort::shape_text(shape.dims).c_str());
  }
  shape.symbols.back() = "";
  std::deque<std::string> made;  // keeps its strings where they are
  for (size_t i = 0; i + 1 < rank; ++i) {
    if (shape.dims[i] >= 0 || (shape.symbols[i] != nullptr && shape.symbols[i][0] != '\0'))
      continue;
    // The API cannot say "unknown and nameless"; it would write the dimension -1. Without a shape a
    // Scan behind this op does not run, so the dimension gets a name that no other has: ONNX
    // Runtime takes dimensions of one name for equal.
    shape.symbols[i] = made.emplace_back(unused_symbol()).c_str();
  }
  for (size_t i = 0; i < n.size(); ++i) {
    if (n[i] < 1 || n[i] > INT_MAX) return;
    shape.dims.back() = n[i];
    set_output(f, context, i, shape);
  }
}

}  // namespace fptq
