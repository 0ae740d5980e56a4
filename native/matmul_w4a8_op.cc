// fptq::MatMulW4A8: reads and checks a node's attributes and weights once, then quantizes the
// activation and multiplies on ONNX Runtime's thread pool. Weights are used where they lie.
#include "matmul_w4a8_op.h"

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#include "dispatch.h"
#include "ort_status.h"

namespace fptq {

namespace {

using ort::api;
using ort::error;
using ort::Status;

constexpr size_t kMaxRank = 16;
constexpr int64_t kMaxChannels = int64_t{1} << 30;  // K and N; keeps every product within int64
constexpr int64_t kMaxOneGroup = (int64_t{1} << 31) / (15 * 128) - 8;  // int32 holds its sum
constexpr int64_t kRowsPerTask = 96;                // a multiple of the tiles' rows
constexpr int64_t kBytesPerTask = int64_t{1} << 16;
constexpr int64_t kWorthThreads = int64_t{1} << 18;  // bytes of weights times rows

enum Input : size_t { kA, kB, kScales, kZeroPoints, kBias, kInputCount };

struct Shape {
  int64_t dims[kMaxRank];
  size_t rank;
};

struct Op : ort::CustomOp {
  Element element;
};

struct MatMulW4A8 {
  const Kernel* kernel;
  Element element;
  PackedWeights weights;
  bool per_token;
  float static_scale;
  ort::Allocator* allocator;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Status* read_shape(const ort::TensorInfo* info, Shape* shape) {
  FPTQ_RETURN_IF_ERROR(api().GetDimensionsCount(info, &shape->rank));
  if (shape->rank > kMaxRank) return error("fptq.MatMulW4A8: rank %zu is too high", shape->rank);
  return api().GetDimensions(info, shape->dims, shape->rank);
}

Status* read_int(const ort::KernelInfo* info, const char* name, int64_t* value) {
  if (Status* missing = api().KernelInfoGetAttribute_int64(info, name, value)) {
    api().ReleaseStatus(missing);
    return error("fptq.MatMulW4A8: the integer attribute %s is missing", name);
  }
  return nullptr;
}

// The address of a constant input, after checking its type and shape; null when it is absent.
Status* constant_input(const ort::KernelInfo* info, size_t index, const char* name,
                       ort::ElementType type, const Shape& expected, bool optional,
                       const void** data) {
  *data = nullptr;
  size_t count = 0;
  FPTQ_RETURN_IF_ERROR(api().KernelInfo_GetInputCount(info, &count));
  bool present = index < count;
  if (present) {
    char input_name[2];
    size_t size = sizeof(input_name);
    // A name that does not fit is an error here, and proof that there is one.
    if (Status* too_long = api().KernelInfo_GetInputName(info, index, input_name, &size)) {
      api().ReleaseStatus(too_long);
    }
    present = size > 1;
  }
  if (!present) {
    return optional ? nullptr : error("fptq.MatMulW4A8: the input %s is missing", name);
  }
  int constant = 0;
  const ort::Value* value = nullptr;
  FPTQ_RETURN_IF_ERROR(api().KernelInfoGetConstantInput_tensor(info, index, &constant, &value));
  if (!constant || value == nullptr) {
    return error("fptq.MatMulW4A8: the input %s must be a constant initializer", name);
  }
  ort::TensorInfoHolder tensor;
  FPTQ_RETURN_IF_ERROR(api().GetTensorTypeAndShape(value, tensor.out()));
  ort::ElementType found;
  FPTQ_RETURN_IF_ERROR(api().GetTensorElementType(tensor.get(), &found));
  if (found != type) return error("fptq.MatMulW4A8: the input %s has the wrong type", name);
  Shape shape;
  FPTQ_RETURN_IF_ERROR(read_shape(tensor.get(), &shape));
  bool same = shape.rank == expected.rank;
  for (size_t i = 0; same && i < shape.rank; ++i) same = shape.dims[i] == expected.dims[i];
  if (!same) {
    return error("fptq.MatMulW4A8: the shape of %s does not fit K, N and block_size", name);
  }
  void* address = nullptr;
  FPTQ_RETURN_IF_ERROR(
      api().GetTensorMutableData(const_cast<ort::Value*>(value), &address));
  if (address == nullptr) return error("fptq.MatMulW4A8: the input %s has no data", name);
  *data = address;
  return nullptr;
}

Status* read_sizes(const ort::KernelInfo* info, PackedWeights* w) {
  int64_t block = 0;
  int64_t layout = 0;
  FPTQ_RETURN_IF_ERROR(read_int(info, "K", &w->k));
  FPTQ_RETURN_IF_ERROR(read_int(info, "N", &w->n));
  FPTQ_RETURN_IF_ERROR(read_int(info, "block_size", &block));
  FPTQ_RETURN_IF_ERROR(read_int(info, "layout", &layout));
  if (layout != 1) {
    return error("fptq.MatMulW4A8: weight layout %lld is unknown to this library, it knows 1",
                 static_cast<long long>(layout));
  }
  if (w->k < 1 || w->k > kMaxChannels || w->n < 1 || w->n > kMaxChannels) {
    return error("fptq.MatMulW4A8: K and N must be from 1 to 2^30");
  }
  if (block != -1 && (block < kStepChannels || block % kStepChannels != 0)) {
    return error("fptq.MatMulW4A8: block_size must be a multiple of 8, or -1");
  }
  w->panels = ceil_div(w->n, kPanelColumns);
  w->steps = ceil_div(w->k, kStepChannels);
  const int64_t block_steps = block == -1 ? w->steps : block / kStepChannels;
  w->group_steps = block_steps < w->steps ? block_steps : w->steps;
  w->groups = ceil_div(w->steps, w->group_steps);
  if (w->group_steps * kStepChannels > kMaxOneGroup) {
    return error("fptq.MatMulW4A8: a group of %lld channels could overflow, the limit is %lld",
                 static_cast<long long>(w->group_steps * kStepChannels),
                 static_cast<long long>(kMaxOneGroup));
  }
  return nullptr;
}

Status* read_activation(const ort::KernelInfo* info, MatMulW4A8* node) {
  char mode[16] = {};
  size_t size = sizeof(mode);
  if (Status* bad = api().KernelInfoGetAttribute_string(info, "activation", mode, &size)) {
    api().ReleaseStatus(bad);
    mode[0] = '\0';
  }
  node->per_token = std::strcmp(mode, "per_token") == 0;
  if (!node->per_token && std::strcmp(mode, "static") != 0) {
    return error("fptq.MatMulW4A8: the attribute activation must be static or per_token");
  }
  if (node->per_token) return nullptr;
  float scale = 0;
  if (Status* bad = api().KernelInfoGetAttribute_float(info, "a_scale", &scale)) {
    api().ReleaseStatus(bad);
    scale = 0;
  }
  if (!(scale >= std::numeric_limits<float>::min()) || std::isinf(scale)) {
    return error("fptq.MatMulW4A8: a static activation needs a_scale, a positive normal float");
  }
  node->static_scale = scale;
  return nullptr;
}

Status* initialize(const ort::KernelInfo* info, MatMulW4A8* node) {
  char message[256];
  node->kernel = choose_kernel(std::getenv("FPTQ_FORCE_KERNEL"), message, sizeof(message));
  if (node->kernel == nullptr) return error("fptq.MatMulW4A8: %s", message);
  PackedWeights& w = node->weights;
  FPTQ_RETURN_IF_ERROR(read_sizes(info, &w));
  FPTQ_RETURN_IF_ERROR(read_activation(info, node));
  const Shape lines{{w.panels, w.steps, kLineBytes}, 3};
  const Shape groups{{w.panels, w.groups, kPanelColumns}, 3};
  const Shape columns{{w.n}, 1};
  const void* data = nullptr;
  FPTQ_RETURN_IF_ERROR(constant_input(info, kB, "B", ort::kUint8, lines, false, &data));
  w.lines = static_cast<const uint8_t*>(data);
  FPTQ_RETURN_IF_ERROR(constant_input(info, kScales, "scales", ort::kFloat, groups, false, &data));
  w.scales = static_cast<const float*>(data);
  FPTQ_RETURN_IF_ERROR(
      constant_input(info, kZeroPoints, "zero_points", ort::kUint8, groups, true, &data));
  w.zero_points = static_cast<const uint8_t*>(data);
  FPTQ_RETURN_IF_ERROR(constant_input(info, kBias, "bias", ort::kFloat, columns, true, &data));
  w.bias = static_cast<const float*>(data);
  return api().KernelInfoGetAllocator(info, ort::kMemDefault, &node->allocator);
}

struct Job {
  const Kernel* kernel;
  QuantizeArgs quantize;
  MatMulArgs matmul;
  int64_t row_count;
  int64_t panels_per_task;
};

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

void quantize_task(void* data, size_t task) {
  const Job& job = *static_cast<const Job*>(data);
  const int64_t begin = static_cast<int64_t>(task) * kRowsPerTask;
  job.kernel->quantize(job.quantize, {begin, smaller(begin + kRowsPerTask, job.row_count)});
}

void matmul_task(void* data, size_t task) {
  const Job& job = *static_cast<const Job*>(data);
  const int64_t panels = job.matmul.weights.panels;
  const int64_t per_block = ceil_div(panels, job.panels_per_task);
  const int64_t row = static_cast<int64_t>(task) / per_block * kRowsPerTask;
  const int64_t panel = static_cast<int64_t>(task) % per_block * job.panels_per_task;
  job.kernel->matmul(job.matmul, {row, smaller(row + kRowsPerTask, job.row_count)},
                     {panel, smaller(panel + job.panels_per_task, panels)});
}

Status* run_tasks(const ort::KernelContext* context, void (*function)(void*, size_t),
                  int64_t count, bool threads, Job* job) {
  if (count > 1 && threads) {
    return api().KernelContext_ParallelFor(context, function, static_cast<size_t>(count), 0, job);
  }
  for (int64_t task = 0; task < count; ++task) function(job, static_cast<size_t>(task));
  return nullptr;
}

Status* multiply(const MatMulW4A8& node, const ort::KernelContext* context, const void* a,
                 int64_t m, void* y) {
  const PackedWeights& w = node.weights;
  const int64_t stride = w.steps * kStepChannels;
  if (m > std::numeric_limits<int64_t>::max() / (8 * (stride + w.groups + 8))) {
    return error("fptq.MatMulW4A8: %lld rows are too many", static_cast<long long>(m));
  }
  const int64_t codes_bytes = ceil_div(m * stride, 64) * 64;
  const int64_t total = codes_bytes + 4 * m * (w.groups + 1);
  auto* buffer =
      static_cast<uint8_t*>(node.allocator->Alloc(node.allocator, static_cast<size_t>(total)));
  if (buffer == nullptr) return error("fptq.MatMulW4A8: out of memory");
  const QuantizedRows rows{reinterpret_cast<int8_t*>(buffer),
                           reinterpret_cast<int32_t*>(buffer + codes_bytes),
                           reinterpret_cast<float*>(buffer + codes_bytes) + m * w.groups, stride};
  Job job{node.kernel,
          {a, node.element, w.k, w.steps, w.groups, w.group_steps, node.per_token,
           node.static_scale, rows},
          {w, rows, y, node.element},
          m,
          1};
  const int64_t panel_bytes = w.steps * kLineBytes;
  const bool threads = panel_bytes * w.panels * m >= kWorthThreads;
  const int64_t work = panel_bytes * smaller(m, kRowsPerTask);
  job.panels_per_task = work >= kBytesPerTask ? 1 : ceil_div(kBytesPerTask, work);
  const int64_t row_blocks = ceil_div(m, kRowsPerTask);
  Status* failed = run_tasks(context, quantize_task, row_blocks, threads, &job);
  if (failed == nullptr) {
    const int64_t tasks = row_blocks * ceil_div(w.panels, job.panels_per_task);
    failed = run_tasks(context, matmul_task, tasks, threads, &job);
  }
  node.allocator->Free(node.allocator, buffer);
  return failed;
}

Status* compute(void* self, ort::KernelContext* context) {
  const MatMulW4A8& node = *static_cast<const MatMulW4A8*>(self);
  const ort::Value* input = nullptr;
  FPTQ_RETURN_IF_ERROR(api().KernelContext_GetInput(context, kA, &input));
  if (input == nullptr) return error("fptq.MatMulW4A8: the input A is missing");
  ort::TensorInfoHolder info;
  FPTQ_RETURN_IF_ERROR(api().GetTensorTypeAndShape(input, info.out()));
  Shape shape;
  FPTQ_RETURN_IF_ERROR(read_shape(info.get(), &shape));
  if (shape.rank == 0 || shape.dims[shape.rank - 1] != node.weights.k) {
    return error("fptq.MatMulW4A8: the last dimension of A must be K = %lld",
                 static_cast<long long>(node.weights.k));
  }
  int64_t m = 1;
  for (size_t i = 0; i + 1 < shape.rank; ++i) m *= shape.dims[i];
  shape.dims[shape.rank - 1] = node.weights.n;
  ort::Value* output = nullptr;
  FPTQ_RETURN_IF_ERROR(
      api().KernelContext_GetOutput(context, 0, shape.dims, shape.rank, &output));
  if (m == 0) return nullptr;
  void* a = nullptr;
  void* y = nullptr;
  FPTQ_RETURN_IF_ERROR(api().GetTensorMutableData(const_cast<ort::Value*>(input), &a));
  FPTQ_RETURN_IF_ERROR(api().GetTensorMutableData(output, &y));
  return multiply(node, context, a, m, y);
}

void destroy(void* self) {
  auto* node = static_cast<MatMulW4A8*>(self);
  if (node->allocator != nullptr) api().ReleaseAllocator(node->allocator);
  delete node;
}

Status* create(const ort::CustomOp* op, const ort::Api*, const ort::KernelInfo* info, void** out) {
  *out = nullptr;
  auto* node = new (std::nothrow) MatMulW4A8();
  if (node == nullptr) return error("fptq.MatMulW4A8: out of memory");
  node->element = static_cast<const Op*>(op)->element;
  if (Status* failed = initialize(info, node)) {
    destroy(node);
    return failed;
  }
  *out = node;
  return nullptr;
}

// ONNX Runtime takes a dimension without a symbol for a number, so an unknown one needs a symbol of
// its own; a name that occurs nowhere else says just as little.
void name_unknown(const Shape& shape, const char** symbols, char (*names)[32]) {
  static std::atomic<unsigned> counter{0};
  for (size_t i = 0; i + 1 < shape.rank; ++i) {
    if (shape.dims[i] >= 0 || (symbols[i] != nullptr && symbols[i][0] != '\0')) continue;
    std::snprintf(names[i], sizeof(names[i]), "fptq_unknown_%u", counter.fetch_add(1));
    symbols[i] = names[i];
  }
}

// Y has A's shape, symbols included, with N for the last dimension.
Status* infer_shape(const ort::CustomOp*, ort::ShapeInferContext* context) {
  ort::TensorInfo* a = nullptr;  // owned by the context
  FPTQ_RETURN_IF_ERROR(api().ShapeInferContext_GetInputTypeShape(context, kA, &a));
  Shape shape;
  FPTQ_RETURN_IF_ERROR(read_shape(a, &shape));
  if (shape.rank == 0) return nullptr;  // unknown rank
  const char* symbols[kMaxRank] = {};
  FPTQ_RETURN_IF_ERROR(api().GetSymbolicDimensions(a, symbols, shape.rank));
  char names[kMaxRank][32];
  name_unknown(shape, symbols, names);
  const ort::OpAttr* attribute = nullptr;
  FPTQ_RETURN_IF_ERROR(api().ShapeInferContext_GetAttribute(context, "N", &attribute));
  int64_t n = 0;
  size_t size = 0;
  FPTQ_RETURN_IF_ERROR(api().ReadOpAttr(attribute, ort::kAttrInt, &n, sizeof(n), &size));
  ort::ElementType type;
  FPTQ_RETURN_IF_ERROR(api().GetTensorElementType(a, &type));
  shape.dims[shape.rank - 1] = n;
  symbols[shape.rank - 1] = "";
  ort::TensorInfoHolder y;
  FPTQ_RETURN_IF_ERROR(api().CreateTensorTypeAndShapeInfo(y.out()));
  FPTQ_RETURN_IF_ERROR(api().SetTensorElementType(y.get(), type));
  FPTQ_RETURN_IF_ERROR(api().SetDimensions(y.get(), shape.dims, shape.rank));
  FPTQ_RETURN_IF_ERROR(api().SetSymbolicDimensions(y.get(), symbols, shape.rank));
  return api().ShapeInferContext_SetOutputTypeShape(context, 0, y.get());
}

ort::ElementType element_type(const ort::CustomOp* op) {
  const bool half = static_cast<const Op*>(op)->element == Element::kFloat16;
  return half ? ort::kFloat16 : ort::kFloat;
}

ort::ElementType input_type(const ort::CustomOp* op, size_t index) {
  switch (index) {
    case kA: return element_type(op);
    case kB:
    case kZeroPoints: return ort::kUint8;
    default: return ort::kFloat;
  }
}

ort::Characteristic input_characteristic(const ort::CustomOp*, size_t index) {
  return index >= kZeroPoints ? ort::kOptional : ort::kRequired;
}

Op make_op(Element element) {
  Op op{};
  op.element = element;
  op.version = ort::kApiVersion;
  op.GetName = [](const ort::CustomOp*) { return "MatMulW4A8"; };
  op.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* {
    return "CPUExecutionProvider";
  };
  op.GetInputTypeCount = [](const ort::CustomOp*) -> size_t { return kInputCount; };
  op.GetInputType = input_type;
  op.GetInputCharacteristic = input_characteristic;
  op.GetInputMemoryType = [](const ort::CustomOp*, size_t) { return ort::kMemDefault; };
  op.GetOutputTypeCount = [](const ort::CustomOp*) -> size_t { return 1; };
  op.GetOutputType = [](const ort::CustomOp* self, size_t) { return element_type(self); };
  op.GetOutputCharacteristic = [](const ort::CustomOp*, size_t) { return ort::kRequired; };
  op.GetVariadicInputMinArity = [](const ort::CustomOp*) { return 0; };
  op.GetVariadicInputHomogeneity = [](const ort::CustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = [](const ort::CustomOp*) { return 0; };
  op.GetVariadicOutputHomogeneity = [](const ort::CustomOp*) { return 0; };
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.KernelDestroy = destroy;
  op.InferOutputShapeFn = infer_shape;
  op.GetStartVersion = [](const ort::CustomOp*) { return 1; };
  op.GetEndVersion = [](const ort::CustomOp*) { return std::numeric_limits<int>::max(); };
  return op;
}

}  // namespace

const ort::CustomOp* matmul_w4a8_op(Element element) {
  static const Op single = make_op(Element::kFloat32);
  static const Op half = make_op(Element::kFloat16);
  return element == Element::kFloat16 ? &half : &single;
}

}  // namespace fptq
