"""Attention as nodes: scores, softmax, and the path of the values."""
