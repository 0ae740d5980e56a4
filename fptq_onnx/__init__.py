"""W4A8 quantization of exported ONNX language models, and the library that runs them."""

__version__ = "0.1.0"
