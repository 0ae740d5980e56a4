// A causal language model in an ONNX Runtime session: feed tokens, get the most likely next one.
#pragma once

#include <string>
#include <vector>

#include "description.h"
#include "ort_api.h"

class Decoder {
 public:
  // runtime: path of libonnxruntime.so, 1.20 or newer. portable: use that graph, and no library.
  // length: tokens the sequence may have, prompt included. Throws std::runtime_error.
  Decoder(const std::string& runtime, const Description& description, bool portable, int threads,
          int64_t length);
  ~Decoder();
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // Feeds tokens after those fed before; returns the most likely next one.
  int64_t feed(const std::vector<int64_t>& tokens);

 private:
  void check(OrtStatus* status) const;
  void open(bool portable, int threads);
  void reserve_cache(int64_t length);
  OrtValue* tensor(const std::string& type, const std::vector<int64_t>& shape, void* data) const;
  int64_t run(const int64_t* tokens, int64_t count);
  int64_t most_likely(OrtValue* logits) const;

  const OrtApi* api_ = nullptr;
  Description about_;
  OrtEnv* env_ = nullptr;
  OrtSession* session_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
  std::vector<OrtValue*> cache_;            // past of the next run
  std::vector<std::vector<char>> buffers_;  // what a shared cache lies in
  std::vector<int64_t> fed_;                // for a model without a cache: all tokens so far
  int64_t past_ = 0;
};
