#include "decoder.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>

namespace {

// A longer prompt is fed in pieces: the logits of all its tokens need not be in memory at once.
constexpr int64_t kPiece = 128;

struct Type {
  ONNXTensorElementDataType type;
  size_t bytes;
};

Type type_of(const std::string& name) {
  static const std::map<std::string, Type> types = {
      {"float32", {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4}},
      {"float16", {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2}},
      {"bfloat16", {ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, 2}},
      {"int8", {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, 1}},
      {"int64", {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 8}},
      {"int32", {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, 4}},
      {"bool", {ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, 1}}};
  const auto found = types.find(name);
  if (found == types.end()) throw std::runtime_error("cannot feed the type " + name);
  return found->second;
}

size_t byte_count(const std::string& type, const std::vector<int64_t>& shape) {
  size_t count = type_of(type).bytes;
  for (const int64_t size : shape) count *= static_cast<size_t>(size);
  return count;
}

float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  uint32_t exponent = (half >> 10) & 31, fraction = half & 1023, bits = 0;
  if (exponent == 31) {
    bits = 0x7f800000 | (fraction << 13);
  } else if (exponent != 0) {
    bits = ((exponent + 112) << 23) | (fraction << 13);
  } else if (fraction != 0) {
    for (exponent = 113; (fraction & 1024) == 0; --exponent) fraction <<= 1;
    bits = (exponent << 23) | ((fraction & 1023) << 13);
  }
  bits |= sign;
  float value = 0;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Integers as the model wants them.
std::vector<char> integers(const std::string& type, const std::vector<int64_t>& values) {
  const size_t bytes = type_of(type).bytes;
  std::vector<char> raw(values.size() * bytes);
  for (size_t i = 0; i < values.size(); ++i) {
    const float real = static_cast<float>(values[i]);
    const int32_t narrow = static_cast<int32_t>(values[i]);
    const uint16_t half = values[i] != 0 ? 0x3c00 : 0;  // a mask of halves: 1 or 0
    const char flag = values[i] != 0;
    const void* from = &values[i];
    if (type == "int32") from = &narrow;
    if (type == "float32") from = &real;
    if (type == "float16") from = &half;
    if (type == "bool") from = &flag;
    std::memcpy(&raw[i * bytes], from, bytes);
  }
  return raw;
}

const OrtApi* load_runtime(const std::string& path) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) throw std::runtime_error(std::string("ONNX Runtime: ") + dlerror());
  using GetApiBase = const OrtApiBase* (*)();
  const auto get = reinterpret_cast<GetApiBase>(dlsym(handle, "OrtGetApiBase"));
  if (get == nullptr) throw std::runtime_error(path + " is not ONNX Runtime's library");
  const OrtApi* api = get()->GetApi(ORT_API_VERSION);
  if (api == nullptr) throw std::runtime_error(path + " is too old: 1.20 or newer is needed");
  return api;
}

}  // namespace

Decoder::Decoder(const std::string& runtime, const Description& description, bool portable,
                 int threads, int64_t length)
    : api_(load_runtime(runtime)), about_(description) {
  check(api_->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "fptq_run", &env_));
  check(api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_));
  open(portable, threads);
  reserve_cache(length);
}

Decoder::~Decoder() {
  for (OrtValue* value : cache_) api_->ReleaseValue(value);
  if (session_ != nullptr) api_->ReleaseSession(session_);
  if (memory_ != nullptr) api_->ReleaseMemoryInfo(memory_);
  if (env_ != nullptr) api_->ReleaseEnv(env_);
}

void Decoder::check(OrtStatus* status) const {
  if (status == nullptr) return;
  const std::string message = api_->GetErrorMessage(status);
  api_->ReleaseStatus(status);
  throw std::runtime_error(message);
}

void Decoder::open(bool portable, int threads) {
  OrtSessionOptions* options = nullptr;
  check(api_->CreateSessionOptions(&options));
  struct Release {
    const OrtApi* api;
    OrtSessionOptions* options;
    ~Release() { api->ReleaseSessionOptions(options); }
  } release{api_, options};
  check(api_->SetIntraOpNumThreads(options, threads));
  if (!portable && !about_.library.empty()) {
    void* handle = nullptr;
    const std::string path = about_.folder + "/" + about_.library;
    check(api_->RegisterCustomOpsLibrary(options, path.c_str(), &handle));
  }
  const std::string path = about_.folder + "/" + (portable ? about_.portable : about_.graph);
  check(api_->CreateSession(env_, path.c_str(), options, &session_));
}

void Decoder::reserve_cache(int64_t length) {
  for (const CacheTensor& tensor_of : about_.cache) {
    std::vector<int64_t> shape = tensor_of.shape;
    if (about_.shared_cache) shape[tensor_of.sequence_axis] = length;
    // One byte more: an empty tensor must have an address, too.
    buffers_.emplace_back(byte_count(tensor_of.type, shape) + 1);
    cache_.push_back(tensor(tensor_of.type, shape, buffers_.back().data()));
  }
}

OrtValue* Decoder::tensor(const std::string& type, const std::vector<int64_t>& shape,
                          void* data) const {
  OrtValue* value = nullptr;
  check(api_->CreateTensorWithDataAsOrtValue(memory_, data, byte_count(type, shape), shape.data(),
                                             shape.size(), type_of(type).type, &value));
  return value;
}

int64_t Decoder::feed(const std::vector<int64_t>& tokens) {
  if (about_.cache.empty()) {
    fed_.insert(fed_.end(), tokens.begin(), tokens.end());
    return run(fed_.data(), static_cast<int64_t>(fed_.size()));
  }
  int64_t next = 0;
  const auto count = static_cast<int64_t>(tokens.size());
  for (int64_t start = 0; start < count; start += kPiece) {
    const int64_t piece = std::min(kPiece, count - start);
    next = run(tokens.data() + start, piece);
    past_ += piece;
  }
  return next;
}

int64_t Decoder::run(const int64_t* tokens, int64_t count) {
  std::vector<std::vector<char>> data;
  std::vector<OrtValue*> owned;  // by this call
  struct Release {
    const OrtApi* api;
    std::vector<OrtValue*>& values;
    ~Release() {
      for (OrtValue* value : values) api->ReleaseValue(value);
    }
  } release{api_, owned};
  std::vector<const char*> input_names, output_names = {about_.logits.name.c_str()};
  std::vector<const OrtValue*> inputs;
  const auto give = [&](const Role& role, std::vector<int64_t> values,
                        const std::vector<int64_t>& shape) {
    if (role.name.empty()) return;
    data.push_back(integers(role.type, values));
    owned.push_back(tensor(role.type, shape, data.back().data()));
    input_names.push_back(role.name.c_str());
    inputs.push_back(owned.back());
  };
  std::vector<int64_t> positions(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) positions[static_cast<size_t>(i)] = past_ + i;
  const int64_t total = past_ + count;
  give(about_.input_ids, {tokens, tokens + count}, {1, count});
  give(about_.attention_mask, std::vector<int64_t>(static_cast<size_t>(total), 1), {1, total});
  give(about_.position_ids, positions, {1, count});
  give(about_.cache_position, positions, {count});
  std::vector<OrtValue*> outputs = {nullptr};
  for (size_t i = 0; i < cache_.size(); ++i) {
    input_names.push_back(about_.cache[i].past.c_str());
    inputs.push_back(cache_[i]);
    output_names.push_back(about_.cache[i].present.c_str());
    outputs.push_back(about_.shared_cache ? cache_[i] : nullptr);
  }
  check(api_->Run(session_, nullptr, input_names.data(), inputs.data(), inputs.size(),
                  output_names.data(), outputs.size(), outputs.data()));
  owned.push_back(outputs[0]);
  if (!about_.shared_cache) {
    for (size_t i = 0; i < cache_.size(); ++i) {
      owned.push_back(cache_[i]);
      cache_[i] = outputs[i + 1];
    }
  }
  return most_likely(outputs[0]);
}

int64_t Decoder::most_likely(OrtValue* logits) const {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api_->GetTensorTypeAndShape(logits, &info));
  int64_t shape[3] = {};
  size_t rank = 0;
  OrtStatus* status = api_->GetDimensionsCount(info, &rank);
  if (status == nullptr && rank == 3) status = api_->GetDimensions(info, shape, rank);
  api_->ReleaseTensorTypeAndShapeInfo(info);
  check(status);
  if (rank != 3 || shape[1] < 1 || shape[2] < 1) throw std::runtime_error("unexpected logits");
  void* raw = nullptr;
  check(api_->GetTensorMutableData(logits, &raw));
  const size_t vocabulary = static_cast<size_t>(shape[2]);
  const size_t last = static_cast<size_t>(shape[1] - 1) * vocabulary;
  const bool halves = about_.logits.type == "float16";
  size_t best = 0;
  float highest = 0;
  for (size_t i = 0; i < vocabulary; ++i) {
    const float value = halves ? half_to_float(static_cast<const uint16_t*>(raw)[last + i])
                               : static_cast<const float*>(raw)[last + i];
    if (value != value) throw std::runtime_error("the model gave NaN");
    if (i == 0 || value > highest) {
      best = i;
      highest = value;
    }
  }
  return static_cast<int64_t>(best);
}
