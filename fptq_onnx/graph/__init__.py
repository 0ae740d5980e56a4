"""Read-only views of an ONNX graph: constants, linears, fold sites. Nothing here changes a model."""
