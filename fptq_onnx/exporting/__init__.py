"""From a Hugging Face model to ONNX. torch is imported in a process of its own, never here."""
