// Reading a node: everything a model file says is checked here, before anything is computed.
#include <algorithm>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstdlib>

#include "dispatch.h"
#include "linear_op.h"
#include "node_info.h"

namespace fptq {

using ort::check;
using ort::error;

namespace {

constexpr const char* kInputNames[LinearOp::kInputs] = {"A", "B", "scales", "zero_points", "bias"};

// A node has one part per linear of its model; far more is a damaged file.
constexpr size_t kMaxParts = 64;

// A group's integers must fit int32: |x| is at most 128, code - zero at most 15 for 4 bits around
// their middle, and 255 for 8 bits and wherever zero points are given, whose bytes nobody looks at
// here.
constexpr int64_t max_group_length(int64_t bits, bool zero_points) {
  return int64_t{1} << (bits == 4 && !zero_points ? 20 : 16);
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

std::vector<int64_t> ints_attribute(const ort::Functions& f, const ort::KernelInfo* info,
                                    const char* name, const std::string& node) {
  int64_t values[kMaxParts];
  size_t count = kMaxParts;
  ort::Status* status = f.KernelInfoGetAttributeArray_int64(info, name, values, &count);
  if (status != nullptr) {
    f.ReleaseStatus(status);
    throw error("%s: the attribute %s must be a list of 1 to %zu integers", node.c_str(), name,
                kMaxParts);
  }
  return {values, values + count};
}

// Whether the node has an attribute, be it a text of any length, a number or integers.
bool has_attribute(const ort::Functions& f, const ort::KernelInfo* info, const char* name) {
  char text[1];
  size_t size = sizeof(text);
  float real = 0;
  int64_t integer = 0;
  int64_t integers[kMaxParts];
  size_t count = kMaxParts;
  bool found = false;
  for (ort::Status* status : {f.KernelInfoGetAttribute_string(info, name, text, &size),
                              f.KernelInfoGetAttribute_float(info, name, &real),
                              f.KernelInfoGetAttribute_int64(info, name, &integer),
                              f.KernelInfoGetAttributeArray_int64(info, name, integers, &count)}) {
    if (status == nullptr) {
      found = true;
    } else {
      f.ReleaseStatus(status);
    }
  }
  return found || size > sizeof(text);  // a text that does not fit tells its size
}

}  // namespace

LinearOp::LinearOp(const ort::Functions& f, const ort::KernelInfo* info, OpKind kind)
    : f_(f), kind_(kind), node_(node_name(f, info, kind.name())) {
  read_shape_attributes(info);
  read_activation_attributes(info);
  read_gate(info);
  read_weights(info);
  char message[512];
  kernel_ = choose_kernel(std::getenv("FPTQ_FORCE_KERNEL"), message, sizeof(message));
  if (kernel_ == nullptr) throw error("%s", message);
  matmul_ = matmul_of(*kernel_, kind.weight_bits);
  check(f_, f_.KernelInfoGetAllocator(info, ort::kMemDefault, &allocator_));
}

LinearOp::~LinearOp() { f_.ReleaseAllocator(allocator_); }

ort::ElementType LinearOp::input_type(size_t index, const OpKind& kind) {
  switch (index) {
    case 0: return kind.activation;
    case 1:
    case 3: return ort::kUint8;
    case 2: return kind.scales;
    default: return ort::kFloat;
  }
}

void LinearOp::read_shape_attributes(const ort::KernelInfo* info) {
  const char* node = node_.c_str();
  PackedWeights w{};
  w.bits = kind_.weight_bits;
  w.scale_bytes = kind_.scales == ort::kFloat16 ? 2 : 4;
  w.k = int_attribute(f_, info, "K", node_);
  const int64_t block = int_attribute(f_, info, "block_size", node_);
  const int64_t layout = int_attribute(f_, info, "layout", node_);
  if (w.k < 1 || w.k > INT_MAX) {
    throw error("%s: K = %lld must be between 1 and %d", node, static_cast<long long>(w.k),
                INT_MAX);
  }
  if (block != -1 && (block < kKr || block % kKr != 0)) {
    throw error("%s: block_size = %lld must be -1 or a positive multiple of 8", node,
                static_cast<long long>(block));
  }
  if (layout != 1) {
    throw error("%s: weight layout %lld is unknown to this library, which reads layout 1", node,
                static_cast<long long>(layout));
  }
  w.k_blocks = ceil_div(w.k, kKr);
  // A block longer than K is one group, like -1; so the cap loses nothing.
  w.group_k_blocks = block == -1 ? w.k_blocks : std::min(block / kKr, w.k_blocks);
  w.groups = ceil_div(w.k_blocks, w.group_k_blocks);
  const int64_t longest = max_group_length(w.bits, has_input(f_, info, 3));
  if (w.group_k_blocks * kKr > longest) {
    throw error(
        "%s: a group of more than %lld channels overflows 32-bit sums; use a smaller "
        "block_size",
        node, static_cast<long long>(longest));
  }
  int64_t columns = 0;
  for (const int64_t n : ints_attribute(f_, info, "N", node_)) {
    columns = n < 1 || n > INT_MAX ? INT64_MAX : columns + n;
    if (columns > INT_MAX) {
      throw error("%s: the columns N must be positive and together at most %d", node, INT_MAX);
    }
    w.n = n;
    w.panels = ceil_div(n, kNr);
    panels_ += w.panels;
    parts_.push_back(w);
  }
  if (parts_.empty()) throw error("%s: the attribute N is empty", node);
}

std::string LinearOp::string_attribute(const ort::KernelInfo* info, const char* name) const {
  char value[32] = "";
  size_t size = sizeof(value);
  ort::Status* status = f_.KernelInfoGetAttribute_string(info, name, value, &size);
  if (status == nullptr) return std::string(value, size - 1);  // the size counts the final 0
  f_.ReleaseStatus(status);  // absent, of another type or too long for any value we know
  return "";
}

void LinearOp::read_activation_attributes(const ort::KernelInfo* info) {
  const char* node = node_.c_str();
  const std::string scheme = string_attribute(info, "activation");
  if (scheme != "static" && scheme != "per_token") {
    throw error("%s: the attribute activation must be \"static\" or \"per_token\"", node);
  }
  per_token_ = scheme == "per_token";
  if (per_token_) return;
  ort::Status* status = f_.KernelInfoGetAttribute_float(info, "a_scale", &a_scale_);
  if (status != nullptr) {
    f_.ReleaseStatus(status);
    throw error("%s: static activations need the float attribute a_scale", node);
  }
  if (!std::isfinite(a_scale_) || !(a_scale_ >= FLT_MIN)) {
    throw error("%s: a_scale = %g must be a positive normal number", node,
                static_cast<double>(a_scale_));
  }
}

void LinearOp::read_gate(const ort::KernelInfo* info) {
  const char* node = node_.c_str();
  if (has_attribute(f_, info, "gate")) {
    const std::string gate = string_attribute(info, "gate");
    if (gate != "silu" && gate != "gelu_tanh") {
      throw error("%s: the attribute gate must be \"silu\" or \"gelu_tanh\"", node);
    }
    gate_ = gate == "silu" ? Gate::kSilu : Gate::kGeluTanh;
    if (parts_.size() != 2 || parts_[0].n != parts_[1].n) {
      throw error("%s: a gate needs N to be the same number twice", node);
    }
  }
  size_t outputs = 0;
  check(f_, f_.KernelInfo_GetOutputCount(info, &outputs));
  if (outputs != (gate_ == Gate::kNone ? parts_.size() : 1)) {
    throw error("%s: %zu outputs do not fit the attribute N of %zu columns counts", node, outputs,
                parts_.size());
  }
}

const void* LinearOp::constant(const ort::KernelInfo* info, size_t index, ort::ElementType type,
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
                type == ort::kUint8     ? "uint8"
                : type == ort::kFloat16 ? "float16"
                                        : "float32");
  }
  const bool empty = std::find(t.dims.begin(), t.dims.end(), 0) != t.dims.end();
  if (empty && may_be_empty) return nullptr;
  if (t.dims != dims) {
    throw error("%s: input %s has the shape %s where K, N and block_size call for %s",
                node_.c_str(), name, ort::shape_text(t.dims).c_str(),
                ort::shape_text(dims).c_str());
  }
  if (t.data == nullptr) throw error("%s: input %s has no data", node_.c_str(), name);
  return t.data;
}

void LinearOp::read_weights(const ort::KernelInfo* info) {
  const PackedWeights& shape = parts_[0];
  const int64_t block_bytes = kNr * shape.bits;
  const std::vector<int64_t> per_group = {panels_, shape.groups, kNr};
  int64_t columns = 0;
  for (const PackedWeights& part : parts_) columns += part.n;

  const auto* blocks = static_cast<const uint8_t*>(
      constant(info, 1, ort::kUint8, {panels_, shape.k_blocks, block_bytes}, false));
  const auto* scales =
      static_cast<const uint8_t*>(constant(info, 2, kind_.scales, per_group, false));
  const uint8_t* zero_points = nullptr;
  if (has_input(f_, info, 3)) {
    zero_points = static_cast<const uint8_t*>(constant(info, 3, ort::kUint8, per_group, true));
  }
  const float* bias = nullptr;
  if (has_input(f_, info, 4)) {
    bias = static_cast<const float*>(constant(info, 4, ort::kFloat, {columns}, true));
  }
  int64_t panel = 0;
  for (PackedWeights& part : parts_) {
    part.blocks = blocks + panel * shape.k_blocks * block_bytes;
    part.scales = scales + panel * shape.groups * kNr * shape.scale_bytes;
    if (zero_points != nullptr) part.zero_points = zero_points + panel * shape.groups * kNr;
    if (bias != nullptr) {
      part.bias = bias;
      bias += part.n;
    }
    panel += part.panels;
  }
  const auto bytes = static_cast<size_t>(panels_ * shape.k_blocks * block_bytes);
  prefer_huge_pages(blocks, bytes);
  moves_ = HugePages::wanted();
}

}  // namespace fptq
