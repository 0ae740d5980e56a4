"""`python -m fptq_onnx`."""

from fptq_onnx.cli.main import entry_point

if __name__ == "__main__":
    entry_point()
