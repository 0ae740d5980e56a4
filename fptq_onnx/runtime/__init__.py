"""ONNX Runtime: sessions, our library of custom ops, decoders and their caches."""
