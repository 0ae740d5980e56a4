// A thin C++ face on ort_abi.h: errors as exceptions inside the library (never across its C
// boundary: see guarded) and tensors as plain structs.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <vector>

#include "ort_abi.h"

namespace fptq::ort {

// What went wrong, one sentence for the user.
struct Error {
  std::string text;
};

[[gnu::format(printf, 1, 2)]] Error error(const char* format, ...);

// Reads the slots of the runtime's table that ort_abi.h names.
Functions load_functions(const Api* api);

// Throws the status as Error unless it is null, and releases it.
void check(const Functions& f, Status* status);

struct Tensor {
  ElementType type;
  std::vector<int64_t> dims;
  void* data;
};
Tensor tensor(const Functions& f, const Value* value);

// "[2, 3]", for messages.
std::string shape_text(const std::vector<int64_t>& dims);

// Runs `body` and turns whatever it throws into a status, so that nothing crosses the C boundary.
template <class Body>
Status* guarded(const Functions& f, Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Error& e) {
    return f.CreateStatus(kInvalidArgument, e.text.c_str());
  } catch (const std::exception& e) {
    return f.CreateStatus(kFail, e.what());
  } catch (...) {
    return f.CreateStatus(kFail, "fptq: an unknown error in the library");
  }
}

}  // namespace fptq::ort
