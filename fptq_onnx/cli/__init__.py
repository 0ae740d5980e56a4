"""The commands, one file each: arguments and printing, no decisions."""

from fptq_onnx.cli.main import build_parser, entry_point, main

__all__ = ["build_parser", "entry_point", "main"]
