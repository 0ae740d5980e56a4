"""The arithmetic of FPTQ as NumPy functions. Nothing in this folder knows about ONNX.

These functions define what every other part must compute: passes call them, and each native kernel
is tested to give the same integers and the same last bit of every float.
"""
