// The part of ONNX Runtime's C ABI that this library uses, declared by ourselves so that building
// needs no ONNX Runtime. The API is a table of function pointers that only ever grows at its end,
// so a function is named by its slot number; abi_check.cc proves slots, structs, enums and
// signatures against an official header where one is present.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fptq::ort {

// The lowest version that has all slots below: KernelInfoGetAllocator came with 18. Asking for the
// lowest keeps the library loadable by every later ONNX Runtime.
constexpr uint32_t kApiVersion = 18;

// Opaque types, only ever handled by pointer.
struct Api;
struct CustomOpDomain;
struct KernelContext;
struct KernelInfo;
struct OpAttr;
struct SessionOptions;
struct ShapeInferContext;
struct Status;
struct TensorInfo;  // OrtTensorTypeAndShapeInfo
struct Value;
struct MemoryInfo;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt32 = 6,
  kFloat16 = 10,
};
enum AttrType : int { kAttrInt = 1, kAttrInts = 2 };
enum Characteristic : int { kRequired = 0, kOptional = 1, kVariadic = 2 };
enum MemType : int { kMemDefault = 0 };

struct Allocator {
  uint32_t version;
  void* (*Alloc)(Allocator*, size_t);
  void (*Free)(Allocator*, void*);
  const MemoryInfo* (*Info)(const Allocator*);
};

struct ApiBase {
  const Api* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// What the runtime calls to create and run our nodes: OrtCustomOp as of API 18, 208 bytes.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  ElementType (*GetInputType)(const CustomOp*, size_t);
  size_t (*GetInputTypeCount)(const CustomOp*);
  ElementType (*GetOutputType)(const CustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, KernelContext*);
  void (*KernelDestroy)(void*);
  Characteristic (*GetInputCharacteristic)(const CustomOp*, size_t);
  Characteristic (*GetOutputCharacteristic)(const CustomOp*, size_t);
  MemType (*GetInputMemoryType)(const CustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*KernelComputeV2)(void*, KernelContext*);
  Status* (*InferOutputShapeFn)(const CustomOp*, ShapeInferContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  size_t (*GetMayInplace)(int**, int**);
  void (*ReleaseMayInplace)(int*, int*);
  size_t (*GetAliasMap)(int**, int**);
  void (*ReleaseAliasMap)(int*, int*);
};

// X(slot, name, return type, parameters)
#define FPTQ_ORT_API_17(X)                                                                        \
  X(0, CreateStatus, Status*, (ErrorCode, const char*))                                           \
  X(2, GetErrorMessage, const char*, (const Status*))                                             \
  X(26, CreateCustomOpDomain, Status*, (const char*, CustomOpDomain**))                           \
  X(27, CustomOpDomain_Add, Status*, (CustomOpDomain*, const CustomOp*))                          \
  X(28, AddCustomOpDomain, Status*, (SessionOptions*, CustomOpDomain*))                           \
  X(51, GetTensorMutableData, Status*, (Value*, void**))                                          \
  X(57, CreateTensorTypeAndShapeInfo, Status*, (TensorInfo**))                                    \
  X(58, SetTensorElementType, Status*, (TensorInfo*, ElementType))                                \
  X(59, SetDimensions, Status*, (TensorInfo*, const int64_t*, size_t))                            \
  X(60, GetTensorElementType, Status*, (const TensorInfo*, ElementType*))                         \
  X(61, GetDimensionsCount, Status*, (const TensorInfo*, size_t*))                                \
  X(62, GetDimensions, Status*, (const TensorInfo*, int64_t*, size_t))                            \
  X(63, GetSymbolicDimensions, Status*, (const TensorInfo*, const char**, size_t))                \
  X(65, GetTensorTypeAndShape, Status*, (const Value*, TensorInfo**))                             \
  X(85, KernelInfoGetAttribute_float, Status*, (const KernelInfo*, const char*, float*))          \
  X(86, KernelInfoGetAttribute_int64, Status*, (const KernelInfo*, const char*, int64_t*))        \
  X(87, KernelInfoGetAttribute_string, Status*, (const KernelInfo*, const char*, char*, size_t*)) \
  X(90, KernelContext_GetInput, Status*, (const KernelContext*, size_t, const Value**))           \
  X(91, KernelContext_GetOutput, Status*,                                                         \
    (KernelContext*, size_t, const int64_t*, size_t, Value**))                                    \
  X(93, ReleaseStatus, void, (Status*))                                                           \
  X(99, ReleaseTensorTypeAndShapeInfo, void, (TensorInfo*))                                       \
  X(132, ReleaseAllocator, void, (Allocator*))                                                    \
  X(163, KernelInfoGetAttributeArray_int64, Status*,                                              \
    (const KernelInfo*, const char*, int64_t*, size_t*))                                          \
  X(230, KernelInfo_GetInputCount, Status*, (const KernelInfo*, size_t*))                         \
  X(231, KernelInfo_GetOutputCount, Status*, (const KernelInfo*, size_t*))                        \
  X(232, KernelInfo_GetInputName, Status*, (const KernelInfo*, size_t, char*, size_t*))           \
  X(244, KernelInfo_GetNodeName, Status*, (const KernelInfo*, char*, size_t*))                    \
  X(249, KernelInfoGetConstantInput_tensor, Status*,                                              \
    (const KernelInfo*, size_t, int*, const Value**))                                             \
  X(268, ShapeInferContext_GetInputTypeShape, Status*,                                            \
    (const ShapeInferContext*, size_t, TensorInfo**))                                             \
  X(269, ShapeInferContext_GetAttribute, Status*,                                                 \
    (const ShapeInferContext*, const char*, const OpAttr**))                                      \
  X(270, ShapeInferContext_SetOutputTypeShape, Status*,                                           \
    (const ShapeInferContext*, size_t, const TensorInfo*))                                        \
  X(271, SetSymbolicDimensions, Status*, (TensorInfo*, const char**, size_t))                     \
  X(272, ReadOpAttr, Status*, (const OpAttr*, AttrType, void*, size_t, size_t*))                  \
  X(274, KernelContext_ParallelFor, Status*,                                                      \
    (const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*))
// Since API 18.
#define FPTQ_ORT_API_18(X) \
  X(278, KernelInfoGetAllocator, Status*, (const KernelInfo*, MemType, Allocator**))
#define FPTQ_ORT_API(X) FPTQ_ORT_API_17(X) FPTQ_ORT_API_18(X)

// The table, read once into typed pointers.
struct Functions {
#define X(slot, name, result, parameters) result(*name) parameters;
  FPTQ_ORT_API(X)
#undef X
};

}  // namespace fptq::ort
