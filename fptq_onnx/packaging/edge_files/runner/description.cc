#include "description.h"

#include <fstream>
#include <sstream>
#include <stdexcept>

namespace {

std::runtime_error damaged(const std::string& line) {
  return std::runtime_error("decoder.txt has a line that this runner does not know: " + line);
}

CacheTensor read_cache(std::istringstream& words, const std::string& line) {
  CacheTensor tensor;
  if (!(words >> tensor.past >> tensor.present >> tensor.type >> tensor.sequence_axis)) {
    throw damaged(line);
  }
  int64_t size = 0;
  while (words >> size) tensor.shape.push_back(size);
  if (tensor.sequence_axis >= tensor.shape.size()) throw damaged(line);
  return tensor;
}

}  // namespace

Description read_description(const std::string& folder) {
  std::ifstream file(folder + "/decoder.txt");
  if (!file) throw std::runtime_error("no decoder.txt in " + folder + ": give --model DIR");
  Description d;
  d.folder = folder;
  const std::map<std::string, Role*> roles = {{"input_ids", &d.input_ids},
                                              {"attention_mask", &d.attention_mask},
                                              {"position_ids", &d.position_ids},
                                              {"cache_position", &d.cache_position},
                                              {"logits", &d.logits}};
  const std::map<std::string, std::string*> files = {
      {"graph", &d.graph}, {"portable", &d.portable}, {"library", &d.library}};
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string key;
    if (!(words >> key)) continue;
    if (roles.count(key) != 0) {
      if (!(words >> roles.at(key)->name >> roles.at(key)->type)) throw damaged(line);
    } else if (files.count(key) != 0) {
      if (!(words >> *files.at(key))) throw damaged(line);
    } else if (key == "cache") {
      d.cache.push_back(read_cache(words, line));
    } else if (key == "shared_cache") {
      d.shared_cache = true;
    } else if (key == "context_length") {
      if (!(words >> d.context_length)) throw damaged(line);
    } else if (key == "vocabulary") {
      if (!(words >> d.vocabulary)) throw damaged(line);
    } else if (key == "end") {
      int64_t token = 0;
      while (words >> token) d.end_tokens.push_back(token);
    } else if (key == "beyond") {
      int64_t token = 0;
      std::string text;
      if (!(words >> token >> text)) throw damaged(line);
      d.beyond[token] = text;
    } else {
      throw damaged(line);
    }
  }
  if (d.graph.empty() || d.input_ids.name.empty() || d.logits.name.empty()) {
    throw std::runtime_error("decoder.txt is cut short");
  }
  return d;
}
