#include "ort_status.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace fptq::ort {

namespace {

Functions g_functions;

// A slot of the table holds a function pointer of a type that only its number tells.
template <class F>
void read_slot(const Api* api, size_t slot, F& function) {
  std::memcpy(&function, reinterpret_cast<const char*>(api) + slot * sizeof(void*), sizeof(F));
}

}  // namespace

const Functions* load_functions(const ApiBase* base) {
  const Api* api = base->GetApi(kApiVersion);
  if (api == nullptr) return nullptr;
  Functions functions;
#define X(slot, name, result, parameters) read_slot(api, slot, functions.name);
  FPTQ_ORT_API(X)
#undef X
  g_functions = functions;
  return &g_functions;
}

const Functions& api() { return g_functions; }

Status* error(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  return g_functions.CreateStatus(kInvalidArgument, text);
}

TensorInfoHolder::~TensorInfoHolder() {
  if (info_ != nullptr) g_functions.ReleaseTensorTypeAndShapeInfo(info_);
}

}  // namespace fptq::ort
