// The entry point ONNX Runtime looks up after loading the library.
#include <initializer_list>

#include "matmul_w4a8_op.h"
#include "ort_status.h"

namespace {

using fptq::ort::api;

fptq::ort::Status* add_domain(fptq::ort::SessionOptions* options) {
  fptq::ort::CustomOpDomain* domain = nullptr;
  FPTQ_RETURN_IF_ERROR(api().CreateCustomOpDomain("fptq", &domain));
  for (const auto element : {fptq::Element::kFloat32, fptq::Element::kFloat16}) {
    if (auto* failed = api().CustomOpDomain_Add(domain, fptq::matmul_w4a8_op(element))) {
      api().ReleaseCustomOpDomain(domain);
      return failed;
    }
  }
  // The session keeps a pointer to the domain: it must live as long as any session, so it is not
  // released here. It holds two pointers.
  return api().AddCustomOpDomain(options, domain);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) fptq::ort::Status* RegisterCustomOps(
    fptq::ort::SessionOptions* options, const fptq::ort::ApiBase* base) {
  if (fptq::ort::load_functions(base) == nullptr) {
    // Without the table there is no way to make a status; every runtime since 1.0 has slot 0.
    const auto* oldest = base->GetApi(1);
    if (oldest == nullptr) return nullptr;
    using CreateStatus = fptq::ort::Status* (*)(fptq::ort::ErrorCode, const char*);
    const auto create = *reinterpret_cast<const CreateStatus*>(oldest);
    return create(fptq::ort::kFail, "the fptq library needs ONNX Runtime 1.18 or newer");
  }
  return add_domain(options);
}
