// The API table of the running ONNX Runtime, and the few idioms every call needs.
#pragma once

#include "ort_abi.h"

namespace fptq::ort {

// Reads the slots this library uses; null when the runtime is older than kApiVersion.
const Functions* load_functions(const ApiBase* base);
// The table read by load_functions.
const Functions& api();

// A status with a printf-formatted message.
Status* error(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Hands a failed call's status on to our caller.
#define FPTQ_RETURN_IF_ERROR(call)                          \
  do {                                                      \
    if (::fptq::ort::Status* failed = (call)) return failed; \
  } while (false)

// Element type and shape of a tensor, released when it goes out of scope.
class TensorInfoHolder {
 public:
  TensorInfoHolder() = default;
  TensorInfoHolder(const TensorInfoHolder&) = delete;
  TensorInfoHolder& operator=(const TensorInfoHolder&) = delete;
  ~TensorInfoHolder();
  TensorInfo** out() { return &info_; }
  TensorInfo* get() const { return info_; }

 private:
  TensorInfo* info_ = nullptr;
};

}  // namespace fptq::ort
