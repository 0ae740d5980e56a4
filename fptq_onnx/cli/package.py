"""`fptq-onnx package`: its options, and what it tells."""

from __future__ import annotations

import argparse
from pathlib import Path

from fptq_onnx.cli.console import Printer
from fptq_onnx.errors import FptqError


def add_package_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", type=Path, nargs="?", help="a folder that convert wrote")
    parser.add_argument("--for", dest="kind", help="kind of package: genai, triton or edge")
    parser.add_argument(
        "-o", "--output", type=Path,
        help="folder to write; for edge a .tar.gz or .zip file (a name beside MODEL)",
    )  # fmt: skip
    parser.add_argument("--target", help="platform: linux-x86_64 or linux-aarch64 (this machine's)")
    parser.add_argument(
        "--library", type=Path, metavar="FILE",
        help="the custom-op library for the platform, or a wheel that holds it (the installed one)",
    )  # fmt: skip
    parser.add_argument(
        "--no-fallback",
        action="store_true",
        help="leave out the portable model, which runs without the custom-op library",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier package")
    parser.add_argument(
        "--served-at", metavar="DIR",
        help="path of the model repository as Triton sees it (/models)",
    )  # fmt: skip
    parser.add_argument(
        "--check", type=Path, metavar="PACKAGE",
        help="check a package against its checksums; with -o, unpack it if they match",
    )  # fmt: skip


def run_package(options: argparse.Namespace) -> None:
    """Write a package, or check one.

    Raises:
        FptqError: see `package_model` and `check_package`; or options that contradict each other.
    """
    say = Printer()
    if options.check is not None:
        _check(options, say)
    else:
        _package(options, say)
    if say.failure is not None:
        raise FptqError(f"the work was done, but standard output failed: {say.failure.strerror}")


def _package(options: argparse.Namespace, say: Printer) -> None:
    from fptq_onnx.model_io.save import MODEL_FILE
    from fptq_onnx.packaging.manifest import sha256_of
    from fptq_onnx.packaging.package_model import KINDS, PackageOptions, package_model
    from fptq_onnx.progress import human_bytes

    if options.model is None or options.kind is None:
        raise FptqError(f"give MODEL and --for {', '.join(KINDS)}; or --check PACKAGE")
    if options.served_at is not None and options.kind != "triton":
        raise FptqError("--served-at is for --for triton: leave it out")
    wanted = PackageOptions(
        options.kind,
        target=options.target,
        library=options.library,
        fallback=not options.no_fallback,
        overwrite=options.overwrite,
        **({} if options.served_at is None else {"served_at": options.served_at}),
    )
    model = options.model
    if options.file is not None:
        model = options.model.parent
        if options.model.name != MODEL_FILE:
            raise FptqError(f"convert writes {MODEL_FILE}, and only what it wrote is packaged")
    place = package_model(model, options.output, wanted, say)
    if place.is_file():
        say(f"sha256       {sha256_of(place)}")
        say(f"size         {human_bytes(place.stat().st_size)}")
    say(f"output       {place} ({options.kind})")


def _check(options: argparse.Namespace, say: Printer) -> None:
    from fptq_onnx.packaging.check_package import check_package
    from fptq_onnx.packaging.manifest import sha256_of
    from fptq_onnx.progress import human_bytes

    if options.model is not None or options.kind is not None:
        raise FptqError("--check takes a package and nothing else but -o")
    found = check_package(options.check, options.output)
    if options.check.is_file():
        say(f"sha256       {sha256_of(options.check)}")
    manifest = found.manifest
    say(
        f"package      {manifest.get('name')} for {manifest.get('for')}, {manifest.get('target')}, "
        f"by fptq-onnx {manifest.get('fptq_onnx')}"
    )
    say(f"files        {found.files} as packaged, {human_bytes(found.bytes)}")
    if options.output is not None:
        say(f"output       {options.output}")
