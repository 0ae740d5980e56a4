"""Load `fptq-onnx serve` and check every text against what the server writes for it alone.

    python benchmarks/serve_load.py MODEL [--clients 32] [--seconds 120] [--idle 1000]

Each client streams one completion after the other, greedy ones and drawn ones with a seed, of
different prompts and lengths. One more client leaves in the middle of every answer. Idle
connections, half of them in the middle of a request's head, are open all the while, and at the end
each must get an answer. Prints a table; exits with 1 if any text, count or answer is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import re
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sse_client import Connection, Streamed, get

PROMPTS = (
    "Once upon a time", "The little dog ran to the park and", "Tim", "One day a girl saw a big",
    "Mom said", "The sun was hot. Lily wanted", "There was an old man who", "A bird and a cat",
)  # fmt: skip
LENGTHS = (8, 30, 60, 100)


@dataclass
class Found:
    """What the clients saw.

    answers: of clients that stayed, each with its lone answer's text and tokens.
    wrong: lines for people.
    memory: resident bytes of the server, once a second.
    """

    answers: list[Streamed] = field(default_factory=list)
    left: int = 0
    wrong: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    idle_answered: int = 0


def requests(model: str) -> list[dict[str, Any]]:
    """The requests that clients take turns with."""
    found = []
    for number, (prompt, length) in enumerate(itertools.product(PROMPTS, LENGTHS)):
        drawn = {"temperature": 0.8, "seed": number} if number % 4 == 3 else {"temperature": 0}
        found.append({"model": model, "prompt": prompt, "max_tokens": length, **drawn})
    return found


@contextmanager
def serving(options: argparse.Namespace) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The server's process and port; it must end with 0 when told to."""
    arguments = [
        "serve", options.model, "--port", "0", "--model-name", "model",
        "--max-running", options.max_running, "--threads", options.threads,
        "--max-waiting", 4 * options.clients,
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "fptq_onnx", *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        found = re.search(r":(\d+)$", process.stdout.readline().strip())
        if found is None:
            sys.exit("the server did not start")
        yield process, int(found[1])
        process.send_signal(signal.SIGTERM)
        if process.wait(60) != 0:
            sys.exit(f"the server ended with {process.returncode}")
    finally:
        process.kill()


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024  # type: ignore[index]


def check(found: Found, answer: Streamed, alone: Streamed, fields: dict[str, Any]) -> None:
    """Compare an answer with the lone one."""
    found.answers.append(answer)
    same = (answer.text, answer.tokens, answer.finish_reason) == (
        alone.text, alone.tokens, alone.finish_reason,
    )  # fmt: skip
    if not same or len(answer.ids) != 1:
        found.wrong.append(f"{fields}: {answer.text!r} instead of {alone.text!r}")


async def client(
    number: int, port: int, until: float, asked: list[dict[str, Any]], alone: list[Streamed],
    found: Found,
) -> None:  # fmt: skip
    """One completion after the other, until the time is up."""
    connection = Connection(port)
    for place in itertools.count(
        number * 7
    ):  # 7 and the number of requests have no smoothing scale
        if time.perf_counter() > until:
            break
        fields = asked[place % len(asked)]
        try:
            check(found, await connection.stream(fields), alone[place % len(asked)], fields)
        except (OSError, EOFError, RuntimeError) as error:
            found.wrong.append(f"{fields}: {error}")
            connection.close()
    connection.close()


async def leaver(port: int, until: float, asked: list[dict[str, Any]], found: Found) -> None:
    """Leaves every answer in the middle."""
    for fields in itertools.cycle(asked):
        if time.perf_counter() > until:
            return
        connection = Connection(port)
        await connection.stream({**fields, "max_tokens": 200, "ignore_eos": True}, leave_after=3)
        found.left += 1
        await asyncio.sleep(0.05)


async def watch(pid: int, until: float, found: Found) -> None:
    """Memory, once a second."""
    while time.perf_counter() < until:
        found.memory.append(resident(pid))
        await asyncio.sleep(1)


async def metrics(connection: Connection) -> dict[str, float]:
    """The server's own numbers."""
    lines = (await connection.get("/metrics")).splitlines()
    numbers = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in numbers.items()}


async def load(options: argparse.Namespace, pid: int, port: int) -> tuple[Found, dict[str, float]]:
    """All of it; also the growth of the server's own numbers meanwhile."""
    found = Found()
    asked = requests("model")
    first = Connection(port)
    alone = [await first.stream(fields) for fields in asked]
    idle = [Connection(port) for _ in range(options.idle)]
    question = get("/health")
    for number, connection in enumerate(idle):
        await connection.write(question[: 9 * (number % 2)])
    before = await metrics(first)
    until = time.perf_counter() + options.seconds
    await asyncio.gather(
        *(client(n, port, until, asked, alone, found) for n in range(options.clients)),
        leaver(port, until, asked, found),
        watch(pid, until, found),
    )
    for number, connection in enumerate(idle):
        await connection.write(question[9 * (number % 2) :])
        status, headers = await connection.head()
        await connection.body(headers)
        found.idle_answered += status == 200
    await asyncio.sleep(0.5)  # who left last is noticed
    first.close()
    after = await metrics(first)
    return found, {name: after[name] - before.get(name, 0) for name in after}


def quantiles(values: list[float]) -> str:
    """Median and 95th percentile in milliseconds."""
    cuts = statistics.quantiles(values, n=20)
    return f"{1e3 * cuts[9]:.0f}, {1e3 * cuts[18]:.0f} ms"


def table(options: argparse.Namespace, found: Found, numbers: dict[str, float]) -> list[str]:
    """The metrics for people."""
    tokens = sum(answer.tokens for answer in found.answers)
    firsts = [answer.times[0] - answer.sent for answer in found.answers if answer.times]
    gaps = [b - a for one in found.answers for a, b in itertools.pairwise(one.times)]
    steps = numbers["fptq_decode_step_requests_count"]
    rows = {
        "clients, idle connections": f"{options.clients}, {options.idle}",
        "seconds": f"{options.seconds:g}",
        "answers compared": f"{len(found.answers)}",
        "wrong": f"{len(found.wrong)}",
        "left in the middle": f"{found.left}",
        "idle connections answered at the end": f"{found.idle_answered}",
        "tokens per second": f"{tokens / options.seconds:.0f}",
        "requests in a decode step, mean": (
            f"{numbers['fptq_decode_step_requests_sum'] / steps:.1f}"
        ),
        "first token, median, 95 %": quantiles(firsts),
        "between events, median, 95 %": quantiles(gaps),
        "server's memory after 1/4, 1/2, all": ", ".join(
            f"{found.memory[place] / 1e6:.1f}" for place in quarters(found)
        ) + " MB",
        "running, waiting at the end": (
            f"{numbers['fptq_requests_running']:.0f}, {numbers['fptq_requests_waiting']:.0f}"
        ),
    }  # fmt: skip
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]


def quarters(found: Found) -> tuple[int, int, int]:
    """Places in `memory`: a quarter, half, the end."""
    last = len(found.memory) - 1
    return last // 4, last // 2, last


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--max-running", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--growth", type=float, default=0.05, help="of memory after the first quarter, at most"
    )
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with serving(options) as (process, port):
        found, numbers = asyncio.run(load(options, process.pid, port))
    print("\n".join(table(options, found, numbers)))
    for line in found.wrong[:10]:
        print(line, file=sys.stderr)
    early, _, late = (found.memory[place] for place in quarters(found))
    steady = late <= early * (1 + options.growth)
    at_rest = numbers["fptq_requests_running"] == numbers["fptq_requests_waiting"] == 0
    if found.wrong or not steady or not at_rest or found.idle_answered != options.idle:
        sys.exit("not as it should be: see above")


if __name__ == "__main__":
    main()
