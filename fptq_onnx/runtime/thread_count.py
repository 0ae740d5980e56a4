"""How many threads may be asked for."""

from __future__ import annotations

import os

from fptq_onnx.errors import FptqError

# More threads than CPUs only wait for each other, and each costs memory: a hundred thousand took
# 17 GB. A few for each CPU are let pass, to try what a larger machine would do.
THREADS_PER_CPU = 4


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that makes no sense on this machine.

    Args:
        threads: 0 or None for ONNX Runtime's choice.

    Raises:
        FptqError: below 0, or more than THREADS_PER_CPU for each logical CPU.
    """
    cpus = os.cpu_count() or 1
    most = THREADS_PER_CPU * cpus
    if threads is not None and not 0 <= threads <= most:
        raise FptqError(
            f"--threads must be from 0, for the default, to {most} ({THREADS_PER_CPU} for each of "
            f"the {cpus} CPUs here), got {threads}"
        )
