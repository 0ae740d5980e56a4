"""Graph passes, imported as fptq_onnx.passes (fptq_onnx/passes links here)."""

if __name__ != "fptq_onnx.passes":
    raise ImportError("import fptq_onnx.passes, not passes")
