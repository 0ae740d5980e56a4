// Proves ort_abi.h against an official onnxruntime_c_api.h: slots, signatures, structs, enums.
// Compiled, never linked, and only when CMake is given -DORT_INCLUDE_DIR=<folder of that header>.
//
// The two sets of declarations name the same opaque structs differently, so signatures are compared
// after every pointer has become void* and every enum int.
#include <type_traits>

#include "onnxruntime_c_api.h"
#include "ort_abi.h"

namespace fptq::ort {

template <class T>
using Canonical =
    std::conditional_t<std::is_pointer_v<T>, void*, std::conditional_t<std::is_enum_v<T>, int, T>>;

template <class F>
struct Signature;
template <class R, class... A>
struct Signature<R (*)(A...)> {
  using type = Canonical<R>(Canonical<A>...);
};
template <class R, class... A>
struct Signature<R (*)(A...) noexcept> {
  using type = Canonical<R>(Canonical<A>...);
};
template <class A, class B>
constexpr bool kSameCall = std::is_same_v<typename Signature<A>::type, typename Signature<B>::type>;

#define CHECK_FUNCTION(slot, name, result, parameters)                              \
  static_assert(offsetof(::OrtApi, name) == (slot) * sizeof(void*), "slot " #name); \
  static_assert(kSameCall<decltype(::OrtApi::name), result(*) parameters>, "signature " #name);
FPTQ_ORT_API_17(CHECK_FUNCTION)
#if ORT_API_VERSION >= 18
FPTQ_ORT_API_18(CHECK_FUNCTION)
#endif

#define CHECK_FIELD(ours, theirs, field) \
  static_assert(offsetof(ours, field) == offsetof(::theirs, field), #theirs "::" #field);
#define CHECK_CALLBACK(ours, theirs, field) \
  CHECK_FIELD(ours, theirs, field)          \
  static_assert(kSameCall<decltype(ours::field), decltype(::theirs::field)>, "signature " #field);

CHECK_CALLBACK(ApiBase, OrtApiBase, GetApi)
CHECK_CALLBACK(ApiBase, OrtApiBase, GetVersionString)

CHECK_FIELD(Allocator, OrtAllocator, version)
CHECK_CALLBACK(Allocator, OrtAllocator, Alloc)
CHECK_CALLBACK(Allocator, OrtAllocator, Free)
CHECK_CALLBACK(Allocator, OrtAllocator, Info)

CHECK_FIELD(CustomOp, OrtCustomOp, version)
CHECK_CALLBACK(CustomOp, OrtCustomOp, CreateKernel)
CHECK_CALLBACK(CustomOp, OrtCustomOp, GetName)
CHECK_CALLBACK(CustomOp, OrtCustomOp, GetExecutionProviderType)
CHECK_CALLBACK(CustomOp, OrtCustomOp, GetInputType)
CHECK_CALLBACK(CustomOp, OrtCustomOp, GetInputTypeCount)
CHECK_CALLBACK(CustomOp, OrtCustomOp, GetOutputType)
CHECK_CALLBACK(CustomOp, OrtCustomOp, GetOutputTypeCount)
CHECK_CALLBACK(CustomOp, OrtCustomOp, KernelCompute)
CHECK_CALLBACK(CustomOp, OrtCustomOp, KernelDestroy)
CHECK_CALLBACK(CustomOp, OrtCustomOp, GetInputCharacteristic)
CHECK_CALLBACK(CustomOp, OrtCustomOp, GetOutputCharacteristic)
CHECK_CALLBACK(CustomOp, OrtCustomOp, GetInputMemoryType)
CHECK_CALLBACK(CustomOp, OrtCustomOp, GetVariadicInputMinArity)
CHECK_CALLBACK(CustomOp, OrtCustomOp, GetVariadicInputHomogeneity)
CHECK_CALLBACK(CustomOp, OrtCustomOp, GetVariadicOutputMinArity)
CHECK_CALLBACK(CustomOp, OrtCustomOp, GetVariadicOutputHomogeneity)
CHECK_CALLBACK(CustomOp, OrtCustomOp, CreateKernelV2)
CHECK_CALLBACK(CustomOp, OrtCustomOp, KernelComputeV2)
CHECK_CALLBACK(CustomOp, OrtCustomOp, InferOutputShapeFn)
CHECK_CALLBACK(CustomOp, OrtCustomOp, GetStartVersion)
CHECK_CALLBACK(CustomOp, OrtCustomOp, GetEndVersion)
#if ORT_API_VERSION >= 18
CHECK_CALLBACK(CustomOp, OrtCustomOp, GetMayInplace)
CHECK_CALLBACK(CustomOp, OrtCustomOp, ReleaseMayInplace)
CHECK_CALLBACK(CustomOp, OrtCustomOp, GetAliasMap)
CHECK_CALLBACK(CustomOp, OrtCustomOp, ReleaseAliasMap)
#endif

// A later API may add fields to OrtCustomOp; `version` tells the runtime which of them we have.
#if ORT_API_VERSION == 18
static_assert(sizeof(CustomOp) == sizeof(::OrtCustomOp), "size of OrtCustomOp");
#endif

#define CHECK_ENUM(ours, theirs)                                       \
  static_assert(sizeof(ours) == sizeof(::theirs), "size of " #theirs); \
  static_assert(static_cast<int>(ours) == static_cast<int>(::theirs), #theirs);
CHECK_ENUM(kFail, ORT_FAIL)
CHECK_ENUM(kInvalidArgument, ORT_INVALID_ARGUMENT)
CHECK_ENUM(kUndefined, ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED)
CHECK_ENUM(kFloat, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
CHECK_ENUM(kUint8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8)
CHECK_ENUM(kInt32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32)
CHECK_ENUM(kFloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16)
CHECK_ENUM(kAttrInt, ORT_OP_ATTR_INT)
CHECK_ENUM(kAttrInts, ORT_OP_ATTR_INTS)
CHECK_ENUM(kRequired, INPUT_OUTPUT_REQUIRED)
CHECK_ENUM(kOptional, INPUT_OUTPUT_OPTIONAL)
CHECK_ENUM(kVariadic, INPUT_OUTPUT_VARIADIC)
CHECK_ENUM(kMemDefault, OrtMemTypeDefault)

}  // namespace fptq::ort
