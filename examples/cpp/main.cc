// Runs a converted model in C++: registers the custom-op library, opens a session, generates tokens.
//
//   fptq_example LIBONNXRUNTIME LIBFPTQ MODEL.ONNX TOKEN...
//
// Written for models/tinystories-7m: the constants below are its KV cache. To be short, the whole text
// is fed again for each token; `fptq-onnx package --for edge` writes a program that keeps the cache.
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_api.h"  // or, with FPTQ_OFFICIAL_HEADER, onnxruntime_c_api.h through it

namespace {

constexpr int kLayers = 6, kNewTokens = 8;
constexpr int64_t kHeads = 4, kHeadSize = 32;

const OrtApi* api = nullptr;

void check(OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = api->GetErrorMessage(status);
  api->ReleaseStatus(status);
  throw std::runtime_error(message);
}

// ONNX Runtime as a library that is loaded by path, so that building needs none.
const OrtApi* load(const char* path) {
  void* handle = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) throw std::runtime_error(dlerror());
  const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
  if (base == nullptr) throw std::runtime_error(std::string(path) + " is not ONNX Runtime");
  const OrtApi* found = base()->GetApi(ORT_API_VERSION);
  if (found == nullptr) throw std::runtime_error(std::string(path) + " is too old");
  return found;
}

OrtSession* open(OrtEnv* env, const char* library, const char* model) {
  OrtSessionOptions* options = nullptr;
  check(api->CreateSessionOptions(&options));
  void* handle = nullptr;  // stays loaded as long as the process
  check(api->RegisterCustomOpsLibrary(options, library, &handle));
  OrtSession* session = nullptr;
  check(api->CreateSession(env, model, options, &session));
  api->ReleaseSessionOptions(options);
  return session;
}

// A tensor over memory of the caller, which must outlive it.
OrtValue* tensor(const OrtMemoryInfo* memory, void* data, size_t bytes, std::vector<int64_t> shape,
                 ONNXTensorElementDataType type) {
  OrtValue* value = nullptr;
  check(api->CreateTensorWithDataAsOrtValue(memory, data, bytes, shape.data(), shape.size(), type,
                                            &value));
  return value;
}

// The most likely token after `ids`, by one run with an empty KV cache.
int64_t next_token(OrtSession* session, const OrtMemoryInfo* memory, std::vector<int64_t> ids) {
  const auto length = static_cast<int64_t>(ids.size());
  std::vector<int64_t> mask(ids.size(), 1);
  const size_t bytes = ids.size() * sizeof(int64_t);
  std::vector<std::string> names = {"input_ids", "attention_mask"};
  std::vector<OrtValue*> inputs = {
      tensor(memory, ids.data(), bytes, {1, length}, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64),
      tensor(memory, mask.data(), bytes, {1, length}, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64)};
  float nothing = 0;  // a tensor of no elements must have an address, too
  for (int layer = 0; layer < kLayers; ++layer) {
    for (const char* part : {".key", ".value"}) {
      names.push_back("past_key_values." + std::to_string(layer) + part);
      inputs.push_back(tensor(memory, &nothing, 0, {1, kHeads, 0, kHeadSize},
                              ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT));
    }
  }
  std::vector<const char*> pointers;
  for (const std::string& name : names) pointers.push_back(name.c_str());
  const char* output = "logits";
  OrtValue* logits = nullptr;
  check(api->Run(session, nullptr, pointers.data(), inputs.data(), inputs.size(), &output, 1,
                 &logits));

  OrtTensorTypeAndShapeInfo* info = nullptr;  // float32 [1, length, vocabulary]
  check(api->GetTensorTypeAndShape(logits, &info));
  int64_t shape[3] = {};
  check(api->GetDimensions(info, shape, 3));
  void* data = nullptr;
  check(api->GetTensorMutableData(logits, &data));
  const float* last = static_cast<float*>(data) + (length - 1) * shape[2];
  const int64_t best = std::max_element(last, last + shape[2]) - last;

  api->ReleaseTensorTypeAndShapeInfo(info);
  api->ReleaseValue(logits);
  for (OrtValue* input : inputs) api->ReleaseValue(input);
  return best;
}

void run(int count, char** words) {
  if (count < 5) {
    throw std::runtime_error("usage: fptq_example LIBONNXRUNTIME LIBFPTQ MODEL.ONNX TOKEN...");
  }
  api = load(words[1]);
  OrtEnv* env = nullptr;
  check(api->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "fptq_example", &env));
  OrtMemoryInfo* memory = nullptr;
  check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  OrtSession* session = open(env, words[2], words[3]);

  std::vector<int64_t> ids;
  for (int i = 4; i < count; ++i) ids.push_back(std::strtoll(words[i], nullptr, 10));
  for (int i = 0; i < kNewTokens; ++i) {
    ids.push_back(next_token(session, memory, ids));
    std::printf("%lld ", static_cast<long long>(ids.back()));
  }
  std::printf("\n");

  api->ReleaseSession(session);
  api->ReleaseMemoryInfo(memory);
  api->ReleaseEnv(env);
}

}  // namespace

int main(int count, char** words) {
  try {
    run(count, words);
  } catch (const std::runtime_error& error) {
    std::fprintf(stderr, "fptq_example: error: %s\n", error.what());
    return 1;
  }
  return 0;
}
