"""Packages of a converted model: for onnxruntime-genai, for Triton, and for the edge."""
