// ONNX Runtime's C API as far as the runner uses it: with FPTQ_OFFICIAL_HEADER the official header,
// otherwise the same names declared here, so that building needs no ONNX Runtime.
//
// OrtApi is a table of function pointers that only ever grows at its end, so a function keeps its
// place; the members called `skipN` stand for those that are not used.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef FPTQ_OFFICIAL_HEADER
#include "onnxruntime_c_api.h"
#else

constexpr uint32_t ORT_API_VERSION = 17;  // older than any ONNX Runtime that runs these models

struct OrtEnv;
struct OrtMemoryInfo;
struct OrtRunOptions;
struct OrtSession;
struct OrtSessionOptions;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;

enum OrtLoggingLevel : int { ORT_LOGGING_LEVEL_WARNING = 2, ORT_LOGGING_LEVEL_FATAL = 4 };
enum OrtAllocatorType : int { OrtArenaAllocator = 1 };
enum OrtMemType : int { OrtMemTypeDefault = 0 };
enum ONNXTensorElementDataType : int {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 = 3,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 = 6,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL = 9,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 = 10,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 = 16,
};

using Skipped = void (*)();

struct OrtApi {
  Skipped skip0[2];
  const char* (*GetErrorMessage)(const OrtStatus*);  // 2
  OrtStatus* (*CreateEnv)(OrtLoggingLevel, const char* name, OrtEnv**);
  Skipped skip4[3];
  OrtStatus* (*CreateSession)(const OrtEnv*, const char* path, const OrtSessionOptions*,
                              OrtSession**);  // 7
  Skipped skip8[1];
  OrtStatus* (*Run)(OrtSession*, const OrtRunOptions*, const char* const* input_names,
                    const OrtValue* const* inputs, size_t input_count,
                    const char* const* output_names, size_t output_count, OrtValue** outputs);
  OrtStatus* (*CreateSessionOptions)(OrtSessionOptions**);  // 10
  Skipped skip11[13];
  OrtStatus* (*SetIntraOpNumThreads)(OrtSessionOptions*, int);  // 24
  Skipped skip25[4];
  OrtStatus* (*RegisterCustomOpsLibrary)(OrtSessionOptions*, const char* path, void** handle);
  Skipped skip30[19];
  OrtStatus* (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo*, void* data, size_t bytes,
                                               const int64_t* shape, size_t rank,
                                               ONNXTensorElementDataType, OrtValue**);  // 49
  Skipped skip50[1];
  OrtStatus* (*GetTensorMutableData)(OrtValue*, void**);
  Skipped skip52[9];
  OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo*, size_t*);  // 61
  OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t);
  Skipped skip63[2];
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue*, OrtTensorTypeAndShapeInfo**);  // 65
  Skipped skip66[3];
  OrtStatus* (*CreateCpuMemoryInfo)(OrtAllocatorType, OrtMemType, OrtMemoryInfo**);  // 69
  Skipped skip70[22];
  void (*ReleaseEnv)(OrtEnv*);  // 92
  void (*ReleaseStatus)(OrtStatus*);
  void (*ReleaseMemoryInfo)(OrtMemoryInfo*);
  void (*ReleaseSession)(OrtSession*);
  void (*ReleaseValue)(OrtValue*);
  Skipped skip97[2];
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo*);  // 99
  void (*ReleaseSessionOptions)(OrtSessionOptions*);
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

#endif

// Proven whichever header is in use.
#define FPTQ_SLOT(slot, name) \
  static_assert(offsetof(OrtApi, name) == (slot) * sizeof(void*), "slot of " #name);
FPTQ_SLOT(2, GetErrorMessage)
FPTQ_SLOT(3, CreateEnv)
FPTQ_SLOT(7, CreateSession)
FPTQ_SLOT(9, Run)
FPTQ_SLOT(10, CreateSessionOptions)
FPTQ_SLOT(24, SetIntraOpNumThreads)
FPTQ_SLOT(29, RegisterCustomOpsLibrary)
FPTQ_SLOT(49, CreateTensorWithDataAsOrtValue)
FPTQ_SLOT(51, GetTensorMutableData)
FPTQ_SLOT(61, GetDimensionsCount)
FPTQ_SLOT(62, GetDimensions)
FPTQ_SLOT(65, GetTensorTypeAndShape)
FPTQ_SLOT(69, CreateCpuMemoryInfo)
FPTQ_SLOT(92, ReleaseEnv)
FPTQ_SLOT(93, ReleaseStatus)
FPTQ_SLOT(94, ReleaseMemoryInfo)
FPTQ_SLOT(95, ReleaseSession)
FPTQ_SLOT(96, ReleaseValue)
FPTQ_SLOT(99, ReleaseTensorTypeAndShapeInfo)
FPTQ_SLOT(100, ReleaseSessionOptions)
