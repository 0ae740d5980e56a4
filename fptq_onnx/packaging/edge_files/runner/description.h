// model/decoder.txt: how the model is fed, one thing per line, words separated by spaces.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

struct CacheTensor {
  std::string past;     // input
  std::string present;  // output: the next step's past
  std::string type;
  std::vector<int64_t> shape;  // of an empty cache: 1 at the batch axis, 0 at the sequence axis
  size_t sequence_axis;
};

struct Role {
  std::string name;  // "" where the model has no such input
  std::string type;
};

struct Description {
  std::string folder;    // where decoder.txt lies; what follows is relative to it
  std::string graph;     // the model with our ops, or a model that needs none
  std::string portable;  // the same model for any ONNX Runtime; "" for none
  std::string library;   // our ops; "" where the graph needs none
  Role input_ids, attention_mask, position_ids, cache_position, logits;
  std::vector<CacheTensor> cache;
  bool shared_cache = false;   // past and present may be one buffer
  int64_t context_length = 0;  // 0: not known
  int64_t vocabulary = 0;      // tokens; 0: not known
  std::vector<int64_t> end_tokens;
  std::map<int64_t, std::string> beyond;  // tokens of the tokenizer that the model has not
};

// Throws std::runtime_error.
Description read_description(const std::string& folder);
