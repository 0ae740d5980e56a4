"""A sysroot in which ONNX Runtime for Arm starts under qemu-user.

qemu before 8 shows the host's /proc/cpuinfo, from which ONNX Runtime for Arm cannot make out a
processor, and crashes. Files below the prefix of `qemu-aarch64 -L` come before the host's. What the
file says must be what the emulated CPU has: ONNX Runtime chooses its own kernels by it.
"""

from __future__ import annotations

from pathlib import Path

# Name for qemu: features and number of the part, as a core of that kind shows them.
_CPUS = {
    "max": ("fp asimd asimdhp asimddp", "0xd0b"),
    "cortex-a76": ("fp asimd asimdhp asimddp", "0xd0b"),
    "cortex-a72": ("fp asimd", "0xd08"),
}
CPUS = tuple(_CPUS)  # with i8mm, with dot products alone, with neither


def make_sysroot(
    folder: Path, cpu: str = "max", libraries: Path = Path("/usr/aarch64-linux-gnu")
) -> Path:
    """Links to the cross compiler's libraries, and the /proc/cpuinfo of an Arm core."""
    features, part = _CPUS[cpu]
    (folder / "proc").mkdir(parents=True)
    (folder / "proc" / "cpuinfo").write_text(
        f"processor\t: 0\nFeatures\t: {features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {part}\nCPU revision\t: 1\n"
    )
    for path in libraries.iterdir():
        (folder / path.name).symlink_to(path)
    return folder
