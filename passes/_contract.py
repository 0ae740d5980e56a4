"""The contract of passes: what one is, what it returns, and how a list of them is run.

A pass is a function of a model. It changes the model in place, or makes a new one, and returns a
PassResult. What else it needs is bound beforehand, with functools.partial; a pass keeps nothing
from one call to the next. See docs/writing_passes.md.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from fptq_onnx.errors import FptqError
from fptq_onnx.graph.check_graph import graph_problems
from fptq_onnx.graph.declined import Declined

# Set to 1, graphs are not checked between passes.
NO_CHECK = "FPTQ_NO_GRAPH_CHECK"


@dataclass(frozen=True)
class PassResult:
    """What a pass did.

    changed: how many places were changed; 0 leaves the model as it was.
    declined: what looked like a match and was left alone, each with the reason.
    names: of what was changed, from passes whose callers report it.
    model: the result of a pass that makes a new model; None where it was changed in place.
    """

    changed: int = 0
    declined: tuple[Declined, ...] = ()
    names: tuple[str, ...] = ()
    model: ir.Model | None = None


Pass = Callable[[ir.Model], PassResult]


class PassError(Exception):
    """A pass failed, or left a graph that no runtime can load: a mistake in the pass."""


@dataclass(frozen=True)
class Applied:
    """What a list of passes did.

    model: after the last of them.
    results: of each pass by its name, in the order they ran.
    """

    model: ir.Model
    results: tuple[tuple[str, PassResult], ...]

    @property
    def changed(self) -> int:
        """Places changed by all passes together."""
        return sum(result.changed for _, result in self.results)

    @property
    def declined(self) -> tuple[Declined, ...]:
        """What was left alone, in the order of the passes."""
        return tuple(each for _, result in self.results for each in result.declined)

    def ran(self, name: str) -> bool:
        """Whether a pass of that name was in the list."""
        return any(who == name for who, _ in self.results)

    def changed_by(self, name: str) -> int:
        """Places changed by the passes of that name; 0 where none of them ran."""
        return sum(result.changed for who, result in self.results if who == name)


def apply(model: ir.Model, passes: Sequence[Pass], *, check: bool | None = None) -> Applied:
    """Run passes in the order given, and check the graph after each one.

    Args:
        model: changed in place, unless a pass makes a new one.
        passes: functions, or functools.partial of functions.
        check: whether the graph is checked after each pass; by default it is, unless the
            environment variable FPTQ_NO_GRAPH_CHECK is 1. Of a kind that was there before the
            first pass, no problem is looked for: ONNX Runtime runs models that are not quite sound.

    Raises:
        FptqError, OSError, MemoryError: as a pass raised it.
        PassError: a pass failed in another way, or left a graph with a new problem. It is named.
    """
    check = os.environ.get(NO_CHECK) != "1" if check is None else check
    known = {found.kind for found in graph_problems(model)} if check and passes else set()
    results = []
    for each in passes:
        name = pass_name(each)
        try:
            result = each(model)
        except (FptqError, PassError, OSError, MemoryError):  # the machine's troubles are no bugs
            raise
        except Exception as error:
            why = str(error) or type(error).__name__
            raise PassError(f"the pass {name} failed: {why}") from error
        if not isinstance(result, PassResult):
            raise PassError(f"the pass {name} returned {type(result).__name__}, not a PassResult")
        model = model if result.model is None else result.model
        if check:
            problems = [found for found in graph_problems(model) if found.kind not in known]
            if problems:
                more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
                raise PassError(f"the pass {name} broke the graph: {problems[0]}{more}")
        results.append((name, result))
    return Applied(model, tuple(results))


def pass_name(each: Pass) -> str:
    """The name of a pass: of its function, whatever is bound to it."""
    while isinstance(each, functools.partial):
        each = each.func
    return getattr(each, "__name__", type(each).__name__)


class Refusal(Exception):
    """Raised by a rule: the node looks like a match and must stay; the text says why."""


def rewrite_each(
    graph: ir.Graph | Iterable[ir.Node], rule: Callable[[ir.Node], bool], left: str = ""
) -> PassResult:
    """Offer each node of a graph to a rule: the loop of passes that look at one node at a time.

    Args:
        graph: its nodes are listed before the first is rewritten: new ones are not offered, and
            those that a rewrite removed are left out.
        rule: rewrites what belongs to a node and returns True, or returns False where it is no
            match; raises Refusal where it looks like one and must stay.
        left: what is not done to a node that was refused; goes before the reason. Not needed where
            the rule refuses none.

    Returns:
        How many nodes were rewritten, and those that were refused, by name.
    """
    changed, declined = 0, []
    for node in list(graph):
        if node.graph is None:
            continue
        try:
            changed += bool(rule(node))
        except Refusal as reason:
            declined.append(Declined(node.name or "", f"{left}: {reason}" if left else str(reason)))
    return PassResult(changed, tuple(declined))
