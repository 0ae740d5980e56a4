"""A sysroot in which ONNX Runtime for Arm starts under qemu-user.

qemu before 8 shows the host's /proc/cpuinfo, from which ONNX Runtime for Arm cannot make out a
processor, and crashes. Files below the prefix of `qemu-aarch64 -L` come before the host's.
"""

from __future__ import annotations

from pathlib import Path

_PROCESSOR = """processor\t: 0
Features\t: fp asimd asimdhp asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1
"""


def make_sysroot(folder: Path, libraries: Path = Path("/usr/aarch64-linux-gnu")) -> Path:
    """Links to the cross compiler's libraries, and a /proc/cpuinfo of an Arm core."""
    (folder / "proc").mkdir(parents=True)
    (folder / "proc" / "cpuinfo").write_text(_PROCESSOR)
    for path in libraries.iterdir():
        (folder / path.name).symlink_to(path)
    return folder
