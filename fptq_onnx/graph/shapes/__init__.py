"""Shape inference with symbolic dimensions."""
