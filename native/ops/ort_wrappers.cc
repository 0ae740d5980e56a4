#include "ort_wrappers.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace fptq::ort {

Error error(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  return {text};
}

Functions load_functions(const Api* api) {
  Functions f;
  // The table is function pointers only, so slot i lies i pointers from its start.
#define X(slot, name, result, parameters) \
  std::memcpy(&f.name, reinterpret_cast<const char*>(api) + (slot) * sizeof(void*), sizeof(f.name));
  FPTQ_ORT_API(X)
#undef X
  return f;
}

void check(const Functions& f, Status* status) {
  if (status == nullptr) return;
  Error e{f.GetErrorMessage(status)};
  f.ReleaseStatus(status);
  throw e;
}

Tensor tensor(const Functions& f, const Value* value) {
  TensorInfo* info = nullptr;
  check(f, f.GetTensorTypeAndShape(value, &info));
  struct Release {
    const Functions& f;
    TensorInfo* info;
    ~Release() { f.ReleaseTensorTypeAndShapeInfo(info); }
  } release{f, info};

  Tensor t{};
  check(f, f.GetTensorElementType(info, &t.type));
  size_t rank = 0;
  check(f, f.GetDimensionsCount(info, &rank));
  t.dims.resize(rank);
  check(f, f.GetDimensions(info, t.dims.data(), rank));
  // The API has no accessor for const tensors; nothing here writes to one.
  check(f, f.GetTensorMutableData(const_cast<Value*>(value), &t.data));
  return t;
}

std::string shape_text(const std::vector<int64_t>& dims) {
  std::string text = "[";
  for (size_t i = 0; i < dims.size(); ++i) {
    if (i != 0) text += ", ";
    text += std::to_string(dims[i]);
  }
  return text + "]";
}

}  // namespace fptq::ort
