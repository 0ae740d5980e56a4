"""The commands, one file each: arguments and printing, no decisions."""

from fptq_onnx.cli.main import entry_point, main

__all__ = ["entry_point", "main"]
