"""Make small random models and export them: what tools/models_table.py is run on.

    .venv-export/bin/python tools/make_exports.py EXPORTS [--only NAME...]

Each model of small_models.py goes through `fptq_onnx.exporting.export_model`, as `fptq-onnx export`
does it, and is compared with torch there. EXPORTS gets a folder MODEL-EXPORTER for each, and
not-exported.json with what no folder could be made of, and why. What is there already stays.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from small_models import MODELS, save_small_model

from fptq_onnx.errors import FptqError
from fptq_onnx.exporting.check_export import check_export
from fptq_onnx.exporting.export_model import export_model
from fptq_onnx.exporting.tasks import CAUSAL

NOT_EXPORTED = "not-exported.json"


def export_at_opset(source: Path, output: Path, opset: int) -> None:
    """The exporter dynamo at another opset than the command's.

    Raises:
        FptqError: what was exported differs from torch.
    """
    from fptq_onnx.exporting.dynamo_exporter import export_with_dynamo
    from fptq_onnx.exporting.torch_reference import load_torch_model, save_torch_reference

    output.mkdir()
    model = load_torch_model(source, CAUSAL)
    with tempfile.TemporaryDirectory() as scratch:
        reference = Path(scratch) / "reference.npz"
        export_with_dynamo(model, output, opset=opset)
        save_torch_reference(model, reference, CAUSAL.output)
        check_export(output / "model.onnx", reference, causal=True)
    shutil.copy(source / "config.json", output)


def jobs(only: list[str]) -> list[tuple[str, str, str, int | None]]:
    """Every export there is to make: its folder, the model, the exporter, the opset."""
    found: list[tuple[str, str, str, int | None]] = []
    for name, model in MODELS.items():
        found += [(f"{name}-{exporter}", name, exporter, None) for exporter in model.exporters]
        found += [(f"{name}-dynamo-{n}", name, "dynamo", n) for n in model.opsets]
    return [job for job in found if not only or job[0] in only or job[1] in only]


def main(arguments: list[str]) -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("exports", type=Path, help="the folder to fill")
    parser.add_argument("--only", nargs="+", default=[], help="models or exports by name")
    parser.add_argument("--verbose", action="store_true", help="show what the exporters print")
    options = parser.parse_args(arguments)
    options.exports.mkdir(parents=True, exist_ok=True)
    record = options.exports / NOT_EXPORTED
    failed = json.loads(record.read_text()) if record.is_file() else {}
    with tempfile.TemporaryDirectory() as work:
        for name, model, exporter, opset in jobs(options.only):
            output = options.exports / name
            if output.exists():
                continue
            source = Path(work) / model
            if not source.exists():
                save_small_model(MODELS[model], source)
            started, said = time.monotonic(), "exported"
            failed.pop(name, None)
            try:
                if opset is None:
                    export_model(str(source), output, exporter=exporter, verbose=options.verbose)
                else:
                    export_at_opset(source, output, opset)
            except FptqError as error:
                # Where the file was meanwhile tells nobody anything.
                said = failed[name] = re.sub(r"\S*/(\S+\.onnx)", r"\1", str(error))
                shutil.rmtree(output, ignore_errors=True)
            record.write_text(json.dumps(failed, indent=2) + "\n", encoding="utf-8")
            print(f"{name}: {said} ({time.monotonic() - started:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
