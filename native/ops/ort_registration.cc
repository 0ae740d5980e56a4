// The entry point, and the callbacks through which ONNX Runtime reaches the ops.
#include <climits>
#include <mutex>

#include "attention_op.h"
#include "linear_op.h"
#include "ort_wrappers.h"

namespace fptq {

namespace {

constexpr const char* kDomain = "fptq";

// One op for one type of activations and of scales, or type of a cache. ONNX Runtime chooses among
// ops of one name by their types.
struct Op : ort::CustomOp {
  ort::Functions f;
  OpKind kind;
  ort::ElementType cache;  // of attention
};

const Op& self(const ort::CustomOp* op) { return *static_cast<const Op*>(op); }

struct Node {
  const ort::Functions& f;
  LinearOp op;
};

ort::Status* create_kernel(const ort::CustomOp* op, const ort::Api*, const ort::KernelInfo* info,
                           void** kernel) {
  const Op& o = self(op);
  return ort::guarded(o.f, [&] { *kernel = new Node{o.f, {o.f, info, o.kind}}; });
}

ort::Status* compute(void* kernel, ort::KernelContext* context) {
  const Node& node = *static_cast<const Node*>(kernel);
  return ort::guarded(node.f, [&] { node.op.compute(context); });
}

ort::Status* infer_shape(const ort::CustomOp* op, ort::ShapeInferContext* context) {
  const Op& o = self(op);
  return ort::guarded(o.f, [&] { LinearOp::infer_shape(o.f, o.kind, context); });
}

void fill(Op& op, const ort::Functions& f, OpKind kind) {
  op = Op{};
  op.f = f;
  op.kind = kind;
  op.version = ort::kApiVersion;
  op.CreateKernelV2 = create_kernel;
  op.KernelComputeV2 = compute;
  op.KernelDestroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
  op.InferOutputShapeFn = infer_shape;
  op.GetName = [](const ort::CustomOp* o) { return self(o).kind.name(); };
  op.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return nullptr; };
  op.GetInputTypeCount = [](const ort::CustomOp*) { return LinearOp::kInputs; };
  op.GetInputType = [](const ort::CustomOp* o, size_t index) {
    return LinearOp::input_type(index, self(o).kind);
  };
  op.GetInputCharacteristic = [](const ort::CustomOp*, size_t index) {
    return index < LinearOp::kRequiredInputs ? ort::kRequired : ort::kOptional;
  };
  op.GetInputMemoryType = [](const ort::CustomOp*, size_t) { return ort::kMemDefault; };
  op.GetOutputTypeCount = [](const ort::CustomOp*) { return size_t{1}; };
  op.GetOutputType = [](const ort::CustomOp* o, size_t) { return self(o).kind.activation; };
  // One output per linear of the node.
  op.GetOutputCharacteristic = [](const ort::CustomOp*, size_t) { return ort::kVariadic; };
  op.GetVariadicInputMinArity = [](const ort::CustomOp*) { return 0; };
  op.GetVariadicInputHomogeneity = [](const ort::CustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = [](const ort::CustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const ort::CustomOp*) { return 1; };
  op.GetStartVersion = [](const ort::CustomOp*) { return 1; };
  op.GetEndVersion = [](const ort::CustomOp*) { return INT_MAX; };
}

// Attention, in float32, with a cache of float32 or int8.
struct AttentionNode {
  const ort::Functions& f;
  AttentionOp op;
};

ort::Status* create_attention(const ort::CustomOp* op, const ort::Api*, const ort::KernelInfo* info,
                              void** kernel) {
  const Op& o = self(op);
  return ort::guarded(o.f, [&] { *kernel = new AttentionNode{o.f, {o.f, info, o.cache}}; });
}

ort::Status* compute_attention(void* kernel, ort::KernelContext* context) {
  const AttentionNode& node = *static_cast<const AttentionNode*>(kernel);
  return ort::guarded(node.f, [&] { node.op.compute(context); });
}

void fill_attention(Op& op, const ort::Functions& f, ort::ElementType cache) {
  fill(op, f, {});
  op.cache = cache;
  op.CreateKernelV2 = create_attention;
  op.KernelComputeV2 = compute_attention;
  op.KernelDestroy = [](void* kernel) { delete static_cast<AttentionNode*>(kernel); };
  op.InferOutputShapeFn = nullptr;  // what the exporter wrote about shapes holds
  op.GetName = [](const ort::CustomOp*) { return AttentionOp::kName; };
  op.GetInputTypeCount = [](const ort::CustomOp*) { return AttentionOp::kInputs; };
  op.GetInputType = [](const ort::CustomOp* o, size_t index) {
    return AttentionOp::input_type(index, self(o).cache);
  };
  op.GetInputCharacteristic = [](const ort::CustomOp*, size_t index) {
    return AttentionOp::required(index) ? ort::kRequired : ort::kOptional;
  };
  op.GetOutputTypeCount = [](const ort::CustomOp*) { return AttentionOp::kOutputs; };
  op.GetOutputType = [](const ort::CustomOp* o, size_t index) {
    return index == 0 ? ort::kFloat : self(o).cache;
  };
  op.GetOutputCharacteristic = [](const ort::CustomOp*, size_t) { return ort::kRequired; };
}

// The ops as one ONNX Runtime sees them. Sessions keep pointers to these, and no call tells when
// the last one is gone, so they live as long as the process; the list keeps them reachable. A
// process may hold several ONNX Runtimes, each with its own table of functions.
struct Runtime {
  const ort::Api* api;
  Op ops[10];
  ort::CustomOpDomain* domain;
  Runtime* next;
};

ort::CustomOpDomain* domain_for(const ort::Api* api, const ort::Functions& f) {
  static std::mutex mutex;
  static Runtime* runtimes = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  for (Runtime* r = runtimes; r != nullptr; r = r->next) {
    if (r->api == api) return r->domain;
  }
  auto* r = new Runtime{api, {}, nullptr, runtimes};
  Op* next = r->ops;
  for (const int64_t bits : {4, 8}) {
    for (const ort::ElementType activation : {ort::kFloat, ort::kFloat16}) {
      for (const ort::ElementType scales : {ort::kFloat, ort::kFloat16}) {
        fill(*next++, f, {bits, activation, scales});
      }
    }
  }
  fill_attention(*next++, f, ort::kFloat);
  fill_attention(*next++, f, ort::kInt8);
  ort::CustomOpDomain* domain = nullptr;
  ort::check(f, f.CreateCustomOpDomain(kDomain, &domain));
  for (const Op& op : r->ops) ort::check(f, f.CustomOpDomain_Add(domain, &op));
  r->domain = domain;
  runtimes = r;
  return domain;
}

}  // namespace

}  // namespace fptq

extern "C" __attribute__((visibility("default"))) fptq::ort::Status* RegisterCustomOps(
    fptq::ort::SessionOptions* options, const fptq::ort::ApiBase* base) {
  namespace ort = fptq::ort;
  const ort::Api* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) {
    // Version 1 has CreateStatus and every ONNX Runtime has version 1.
    using CreateStatus = decltype(ort::Functions::CreateStatus);
    const ort::Api* oldest = base->GetApi(1);
    if (oldest == nullptr) return nullptr;
    return (*reinterpret_cast<const CreateStatus*>(oldest))(
        ort::kFail, "fptq needs ONNX Runtime 1.18 or newer");
  }
  const ort::Functions f = ort::load_functions(api);
  return ort::guarded(
      f, [&] { ort::check(f, f.AddCustomOpDomain(options, fptq::domain_for(api, f))); });
}
