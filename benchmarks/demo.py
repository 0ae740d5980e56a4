"""`make demo`: convert the embedded model, compare it with the original, and let it write."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from fptq_onnx.cli.main import main as fptq_onnx
from fptq_onnx.evaluation.perplexity import compare
from fptq_onnx.runtime.decoder import open_decoder
from fptq_onnx.text.windows import first_windows

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "tinystories-7m"
OUTPUT = ROOT / "demo-out"
WINDOWS, LENGTH = 32, 256
PROMPT = "Once upon a time, there was a little dog"


def main() -> int:
    """Run the demo; the exit code of the first step that fails, else 0."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    print(f"$ fptq-onnx convert {MODEL.relative_to(ROOT)} -o {OUTPUT.name}", flush=True)
    code = fptq_onnx(["convert", str(MODEL), "-o", str(OUTPUT)])
    if code:
        return code
    text = MODEL / "heldout.txt"
    print(f"\non {WINDOWS} windows of {LENGTH} tokens of {text.relative_to(ROOT)}:", flush=True)
    windows = first_windows(text, MODEL, count=WINDOWS, length=LENGTH)
    result = compare(open_decoder(MODEL), open_decoder(OUTPUT), windows)
    print(f"perplexity   {result.perplexity_reference:.4f} original, {result.perplexity:.4f} W4A8")
    print(f"KL           {result.kl:.5f} nats, top-1 agreement {result.top1:.1%}")
    print(f"\n$ fptq-onnx run {OUTPUT.name} {PROMPT!r}", flush=True)
    return fptq_onnx(["run", str(OUTPUT), PROMPT, "--max-tokens", "80"])


if __name__ == "__main__":
    sys.exit(main())
