#include "matmul_w4a8_op.h"

#include <algorithm>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstdlib>

#include "dispatch.h"

namespace fptq {

using ort::check;
using ort::error;

namespace {

constexpr const char* kInputNames[MatMulW4A8::kInputs] = {"A", "B", "scales", "zero_points", "bias"};

// A group's integers must fit int32: |code - zero| <= 15 times |x| <= 128 times the channels.
constexpr int64_t kMaxGroupLength = int64_t{1} << 20;

// Rows a task takes: a multiple of every kernel's tile height, and few enough that their codes stay
// in the second-level cache while panel after panel passes by.
constexpr int64_t kRowQuantum = 12;
constexpr int64_t kRowsPerTask = 96;
// A task smaller than this (some microseconds) costs more to hand to a thread than it saves.
constexpr int64_t kTaskMultiplies = int64_t{1} << 18;
constexpr int64_t kTaskConversions = int64_t{1} << 14;
// Enough tasks for any number of threads to finish together; the API does not tell that number.
constexpr int64_t kTasks = 64;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Calls fn(i) for i in 0..count-1 on the session's threads.
template <class Fn>
void parallel_for(const ort::Functions& f, const ort::KernelContext* context, int64_t count,
                  const Fn& fn) {
  if (count <= 1) {
    if (count == 1) fn(size_t{0});
    return;
  }
  const auto call = [](void* data, size_t index) { (*static_cast<const Fn*>(data))(index); };
  check(f, f.KernelContext_ParallelFor(context, call, static_cast<size_t>(count), 0,
                                       const_cast<Fn*>(&fn)));
}

// Memory for one call, from the session's own allocator: its arena makes that cheap.
class Workspace {
 public:
  Workspace(ort::Allocator* allocator, size_t bytes)
      : allocator_(allocator), data_(static_cast<uint8_t*>(allocator->Alloc(allocator, bytes))) {
    if (data_ == nullptr) throw error("fptq: out of memory for %zu bytes of activations", bytes);
  }
  ~Workspace() { allocator_->Free(allocator_, data_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  uint8_t* data() const { return data_; }

 private:
  ort::Allocator* allocator_;
  uint8_t* data_;
};

std::string node_name(const ort::Functions& f, const ort::KernelInfo* info) {
  char name[128] = "";
  size_t size = sizeof(name);
  // A name longer than the buffer is an error status: do without it.
  ort::Status* status = f.KernelInfo_GetNodeName(info, name, &size);
  if (status != nullptr) {
    f.ReleaseStatus(status);
    name[0] = '\0';
  }
  return std::string("fptq::MatMulW4A8 '") + name + "'";
}

int64_t int_attribute(const ort::Functions& f, const ort::KernelInfo* info, const char* name,
                      const std::string& node) {
  int64_t value = 0;
  ort::Status* status = f.KernelInfoGetAttribute_int64(info, name, &value);
  if (status != nullptr) {
    f.ReleaseStatus(status);
    throw error("%s: the integer attribute %s is missing", node.c_str(), name);
  }
  return value;
}

// Whether the node has input `index`: trailing ones may be left out, others have an empty name.
bool has_input(const ort::Functions& f, const ort::KernelInfo* info, size_t index) {
  size_t count = 0;
  check(f, f.KernelInfo_GetInputCount(info, &count));
  if (index >= count) return false;
  size_t size = 0;
  check(f, f.KernelInfo_GetInputName(info, index, nullptr, &size));
  return size > 1;  // the terminating zero counts
}

}  // namespace

MatMulW4A8::MatMulW4A8(const ort::Functions& f, const ort::KernelInfo* info,
                       ort::ElementType activation)
    : f_(f), activation_(activation), node_(node_name(f, info)) {
  read_attributes(info);
  read_weights(info);
  char message[256];
  kernel_ = choose_kernel(std::getenv("FPTQ_FORCE_KERNEL"), message, sizeof(message));
  if (kernel_ == nullptr) throw error("%s", message);
  check(f_, f_.KernelInfoGetAllocator(info, ort::kMemDefault, &allocator_));
}

MatMulW4A8::~MatMulW4A8() { f_.ReleaseAllocator(allocator_); }

ort::ElementType MatMulW4A8::input_type(size_t index, ort::ElementType activation) {
  switch (index) {
    case 0: return activation;
    case 1:
    case 3: return ort::kUint8;
    default: return ort::kFloat;
  }
}

void MatMulW4A8::read_attributes(const ort::KernelInfo* info) {
  const char* node = node_.c_str();
  PackedWeights& w = weights_;
  w.k = int_attribute(f_, info, "K", node_);
  w.n = int_attribute(f_, info, "N", node_);
  const int64_t block = int_attribute(f_, info, "block_size", node_);
  const int64_t layout = int_attribute(f_, info, "layout", node_);
  if (w.k < 1 || w.k > INT_MAX || w.n < 1 || w.n > INT_MAX) {
    throw error("%s: K = %lld and N = %lld must be between 1 and %d", node,
                static_cast<long long>(w.k), static_cast<long long>(w.n), INT_MAX);
  }
  if (block != -1 && (block < kStepChannels || block % kStepChannels != 0)) {
    throw error("%s: block_size = %lld must be -1 or a positive multiple of 8", node,
                static_cast<long long>(block));
  }
  if (layout != 1) {
    throw error("%s: weight layout %lld is unknown to this library, which reads layout 1", node,
                static_cast<long long>(layout));
  }
  w.steps = ceil_div(w.k, kStepChannels);
  w.panels = ceil_div(w.n, kPanelColumns);
  // A block longer than K is one group, like -1; so the cap loses nothing.
  w.group_steps = block == -1 ? w.steps : std::min(block / kStepChannels, w.steps);
  w.groups = ceil_div(w.steps, w.group_steps);
  if (w.group_steps * kStepChannels > kMaxGroupLength) {
    throw error("%s: a group of more than %lld channels overflows 32-bit sums; use a smaller "
                "block_size", node, static_cast<long long>(kMaxGroupLength));
  }

  char activation[32] = "";
  size_t size = sizeof(activation);
  ort::Status* status = f_.KernelInfoGetAttribute_string(info, "activation", activation, &size);
  if (status != nullptr) {
    f_.ReleaseStatus(status);
    activation[0] = '\0';
  }
  const std::string scheme = activation;
  if (scheme != "static" && scheme != "per_token") {
    throw error("%s: the attribute activation must be \"static\" or \"per_token\"", node);
  }
  per_token_ = scheme == "per_token";
  if (!per_token_) {
    status = f_.KernelInfoGetAttribute_float(info, "a_scale", &a_scale_);
    if (status != nullptr) {
      f_.ReleaseStatus(status);
      throw error("%s: static activations need the float attribute a_scale", node);
    }
    if (!std::isfinite(a_scale_) || !(a_scale_ >= FLT_MIN)) {
      throw error("%s: a_scale = %g must be a positive normal number", node,
                  static_cast<double>(a_scale_));
    }
  }
}

const void* MatMulW4A8::constant(const ort::KernelInfo* info, size_t index, ort::ElementType type,
                                 const std::vector<int64_t>& dims, bool may_be_empty) const {
  const char* name = kInputNames[index];
  int is_constant = 0;
  const ort::Value* value = nullptr;
  check(f_, f_.KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value));
  if (!is_constant || value == nullptr) {
    throw error("%s: input %s must be a constant initializer", node_.c_str(), name);
  }
  const ort::Tensor t = ort::tensor(f_, value);
  if (t.type != type) {
    throw error("%s: input %s must be %s", node_.c_str(), name,
                type == ort::kUint8 ? "uint8" : "float32");
  }
  const bool empty = std::find(t.dims.begin(), t.dims.end(), 0) != t.dims.end();
  if (empty && may_be_empty) return nullptr;
  if (t.dims != dims) {
    throw error("%s: input %s has the shape %s where K, N and block_size call for %s",
                node_.c_str(), name, ort::shape_text(t.dims).c_str(), ort::shape_text(dims).c_str());
  }
  if (t.data == nullptr) throw error("%s: input %s has no data", node_.c_str(), name);
  return t.data;
}

void MatMulW4A8::read_weights(const ort::KernelInfo* info) {
  PackedWeights& w = weights_;
  const std::vector<int64_t> per_group = {w.panels, w.groups, kPanelColumns};
  w.lines = static_cast<const uint8_t*>(
      constant(info, 1, ort::kUint8, {w.panels, w.steps, kLineBytes}, false));
  w.scales = static_cast<const float*>(constant(info, 2, ort::kFloat, per_group, false));
  if (has_input(f_, info, 3)) {
    w.zero_points = static_cast<const uint8_t*>(constant(info, 3, ort::kUint8, per_group, true));
  }
  if (has_input(f_, info, 4)) {
    w.bias = static_cast<const float*>(constant(info, 4, ort::kFloat, {w.n}, true));
  }
}

void MatMulW4A8::compute(ort::KernelContext* context) const {
  const ort::Value* value = nullptr;
  check(f_, f_.KernelContext_GetInput(context, 0, &value));
  if (value == nullptr) throw error("%s: input A is absent", node_.c_str());
  ort::Tensor a = ort::tensor(f_, value);
  if (a.type != activation_) throw error("%s: input A changed its type", node_.c_str());
  const PackedWeights& w = weights_;
  if (a.dims.empty() || a.dims.back() != w.k) {
    throw error("%s: the last dimension of A must be K = %lld, but A has the shape %s",
                node_.c_str(), static_cast<long long>(w.k), ort::shape_text(a.dims).c_str());
  }
  // A exists in memory, so the product of its dimensions cannot overflow unless one is 0.
  int64_t rows = 1;
  if (std::find(a.dims.begin(), a.dims.end(), 0) != a.dims.end()) rows = 0;
  for (size_t i = 0; rows != 0 && i + 1 < a.dims.size(); ++i) rows *= a.dims[i];

  a.dims.back() = w.n;
  ort::Value* output = nullptr;
  check(f_, f_.KernelContext_GetOutput(context, 0, a.dims.data(), a.dims.size(), &output));
  if (rows == 0) return;
  void* y = nullptr;
  check(f_, f_.GetTensorMutableData(output, &y));

  // Rows whose distance is a multiple of a page compete for the same cache sets.
  int64_t stride = round_up(w.steps * kStepChannels, 64);
  if (stride % 1024 == 0) stride += 64;
  const int64_t code_bytes = rows * stride;
  const int64_t sum_bytes = rows * w.groups * static_cast<int64_t>(sizeof(int32_t));
  const int64_t scale_bytes = rows * static_cast<int64_t>(sizeof(float));
  const Workspace workspace(allocator_, static_cast<size_t>(code_bytes + sum_bytes + scale_bytes));
  uint8_t* memory = workspace.data();
  const QuantizedRows quantized = {reinterpret_cast<int8_t*>(memory),
                                   reinterpret_cast<int32_t*>(memory + code_bytes),
                                   reinterpret_cast<float*>(memory + code_bytes + sum_bytes),
                                   stride};
  const Element element =
      activation_ == ort::kFloat16 ? Element::kFloat16 : Element::kFloat32;
  const QuantizeArgs quantize = {a.data,        element,    w.k,      w.steps,  w.groups,
                                 w.group_steps, per_token_, a_scale_, quantized};
  run(context, quantize, {w, quantized, y, element}, rows);
}

void MatMulW4A8::run(const ort::KernelContext* context, const QuantizeArgs& quantize,
                     const MatMulArgs& matmul, int64_t rows) const {
  const PackedWeights& w = weights_;
  // First every row becomes int8, once; then the tiles, which all threads read it for.
  const int64_t quantize_rows = ceil_div(kTaskConversions, w.k);
  parallel_for(f_, context, ceil_div(rows, quantize_rows), [&](size_t index) {
    const int64_t begin = static_cast<int64_t>(index) * quantize_rows;
    kernel_->quantize(quantize, {begin, std::min(begin + quantize_rows, rows)});
  });

  const int64_t row_parts = ceil_div(rows, kRowsPerTask);
  const int64_t task_rows = round_up(ceil_div(rows, row_parts), kRowQuantum);
  const int64_t panel_multiplies = std::min(rows, task_rows) * w.k * kPanelColumns;
  const int64_t task_panels =
      std::max(ceil_div(w.panels, kTasks), ceil_div(kTaskMultiplies, panel_multiplies));
  const int64_t row_tasks = ceil_div(rows, task_rows);
  const int64_t tasks = row_tasks * ceil_div(w.panels, task_panels);
  parallel_for(f_, context, tasks, [&](size_t index) {
    // Neighbouring tasks share panels, so that these are still in a shared cache.
    const int64_t row = static_cast<int64_t>(index) % row_tasks * task_rows;
    const int64_t panel = static_cast<int64_t>(index) / row_tasks * task_panels;
    kernel_->matmul(matmul, {row, std::min(row + task_rows, rows)},
                    {panel, std::min(panel + task_panels, w.panels)});
  });
}

void MatMulW4A8::infer_shape(const ort::Functions& f, ort::ShapeInferContext* context) {
  const auto attribute = [&](const char* name) -> int64_t {
    const ort::OpAttr* attr = nullptr;
    int64_t value = 0;
    size_t size = 0;
    ort::Status* status = f.ShapeInferContext_GetAttribute(context, name, &attr);
    if (status == nullptr) {
      status = f.ReadOpAttr(attr, ort::kAttrInt, &value, sizeof(value), &size);
    }
    if (status == nullptr) return value;
    f.ReleaseStatus(status);  // the kernel's constructor reports it, with the node's name
    return 0;
  };
  const int64_t k = attribute("K");
  const int64_t n = attribute("N");
  if (k < 1 || n < 1) return;

  ort::TensorInfo* a = nullptr;  // belongs to the context
  check(f, f.ShapeInferContext_GetInputTypeShape(context, 0, &a));
  size_t rank = 0;
  check(f, f.GetDimensionsCount(a, &rank));
  if (rank == 0) return;  // an unknown rank looks like this, too
  std::vector<int64_t> dims(rank);
  std::vector<const char*> symbols(rank);
  check(f, f.GetDimensions(a, dims.data(), rank));
  check(f, f.GetSymbolicDimensions(a, symbols.data(), rank));
  if (dims.back() >= 0 && dims.back() != k) {
    throw error("fptq::MatMulW4A8: the last dimension of A must be K = %lld, but A has the shape %s",
                static_cast<long long>(k), ort::shape_text(dims).c_str());
  }
  dims.back() = n;
  symbols.back() = "";
  for (size_t i = 0; i < rank; ++i) {
    // The API cannot say "unknown and nameless"; it would write the dimension -1. No shape is better.
    if (dims[i] < 0 && (symbols[i] == nullptr || symbols[i][0] == '\0')) return;
  }

  ort::TensorInfo* y = nullptr;
  check(f, f.CreateTensorTypeAndShapeInfo(&y));
  struct Release {
    const ort::Functions& f;
    ort::TensorInfo* info;
    ~Release() { f.ReleaseTensorTypeAndShapeInfo(info); }
  } release{f, y};
  ort::ElementType type = ort::kUndefined;
  check(f, f.GetTensorElementType(a, &type));
  check(f, f.SetTensorElementType(y, type));
  check(f, f.SetDimensions(y, dims.data(), rank));
  check(f, f.SetSymbolicDimensions(y, symbols.data(), rank));
  check(f, f.ShapeInferContext_SetOutputTypeShape(context, 0, y));
}

}  // namespace fptq
