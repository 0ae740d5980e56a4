// What the ops read of a node when it is created.
#pragma once

#include <string>

#include "ort_wrappers.h"

namespace fptq {

// "fptq::OpType 'name of the node'", for messages.
std::string node_name(const ort::Functions& f, const ort::KernelInfo* info, const char* op_type);

// Throws ort::Error where the attribute is missing.
int64_t int_attribute(const ort::Functions& f, const ort::KernelInfo* info, const char* name,
                      const std::string& node);

// Whether the node has input `index`: trailing ones may be left out, others have an empty name.
bool has_input(const ort::Functions& f, const ort::KernelInfo* info, size_t index);

}  // namespace fptq
