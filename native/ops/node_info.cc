#include "node_info.h"

namespace fptq {

using ort::check;
using ort::error;

namespace {

// Names longer than this are cut in messages, which are of limited length themselves.
constexpr size_t kShownName = 120;

}  // namespace

std::string node_name(const ort::Functions& f, const ort::KernelInfo* info, const char* op_type) {
  size_t size = 0;  // with the terminating zero
  check(f, f.KernelInfo_GetNodeName(info, nullptr, &size));
  std::string name(size, '\0');
  check(f, f.KernelInfo_GetNodeName(info, &name[0], &size));
  name.resize(size == 0 ? 0 : size - 1);
  if (name.size() > kShownName) {
    size_t end = kShownName;
    while (end > 0 && (name[end] & 0xc0) == 0x80) --end;  // between characters of UTF-8
    name = name.substr(0, end) + "...";
  }
  return std::string("fptq::") + op_type + " '" + name + "'";
}

int64_t int_attribute(const ort::Functions& f, const ort::KernelInfo* info, const char* name,
                      const std::string& node) {
  int64_t value = 0;
  ort::Status* status = f.KernelInfoGetAttribute_int64(info, name, &value);
  if (status != nullptr) {
    f.ReleaseStatus(status);
    throw error("%s: the integer attribute %s is missing", node.c_str(), name);
  }
  return value;
}

bool has_input(const ort::Functions& f, const ort::KernelInfo* info, size_t index) {
  size_t count = 0;
  check(f, f.KernelInfo_GetInputCount(info, &count));
  if (index >= count) return false;
  size_t size = 0;
  check(f, f.KernelInfo_GetInputName(info, index, nullptr, &size));
  return size > 1;  // the terminating zero counts
}

}  // namespace fptq
