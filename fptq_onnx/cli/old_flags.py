"""Options by the names they had before: accepted until 0.2, and in neither help nor docs/cli.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from fptq_onnx.scheme.old_names import ACTIVATION_SCHEMES, TASKS, UNTIL

_USED = "old_names_used"  # where the namespace keeps a note for each


def add_old_flag(parser: argparse._ActionsContainer, old: str, now: argparse.Action) -> None:
    """Accept `old` with the meaning of `now`.

    Args:
        parser: a parser or one of its groups.
        old: with its dashes.
        now: what `add_argument` returned for the option of today.
    """
    parser.add_argument(
        old, action=_OldFlag, dest=now.dest, now=now, nargs=now.nargs, type=now.type or str,
        metavar=now.metavar, default=argparse.SUPPRESS, help=argparse.SUPPRESS,
    )  # fmt: skip


def rename_values(options: argparse.Namespace) -> None:
    """Put today's names in place of old values of options, and keep a note for each."""
    scheme = getattr(options, "activation_scheme", None)
    if scheme in ACTIVATION_SCHEMES:
        options.activation_scheme = ACTIVATION_SCHEMES[scheme]
        _keep(options, f"activation scheme {scheme}", options.activation_scheme)
    tasks = getattr(options, "tasks", None)
    if isinstance(tasks, str):
        options.tasks = ",".join(TASKS.get(task, task) for task in tasks.split(","))
        for task in TASKS.keys() & set(tasks.split(",")):
            _keep(options, f"task {task}", TASKS[task])


def old_name_notes(options: argparse.Namespace) -> list[str]:
    """A line for each old name that was used, in the order given."""
    notes: dict[str, str] = getattr(options, _USED, {})
    return [
        f"{old} is now {new}; the old name goes with version {UNTIL}" for old, new in notes.items()
    ]


class _OldFlag(argparse.Action):
    """Does what another action does, and keeps a note."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, now: Any, **rest: Any) -> None:
        super().__init__(option_strings, dest, **rest)
        self._now = now

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the value as the option of today does."""
        _keep(namespace, str(option_string), self._now.option_strings[0])
        self._now(parser, namespace, values, option_string)


def _keep(options: argparse.Namespace, old: str, new: str) -> None:
    setattr(options, _USED, {**getattr(options, _USED, {}), old: new})
