"""Jinja's sandbox with a bound on what a template builds: it comes from whoever made the model.

What a rendering builds is counted against one allowance: results of + and *, of filters and calls,
pieces of output, turns of loops. What can grow by a factor is counted before it is built.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Callable, Iterator, Sized
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

_LEAST, _PER_INPUT = 1 << 25, 128  # characters and bytes: at all, and for each of the messages
_ITEM, _VALUE, _STEP = 8, 56, 4  # for an item of a list, a value, and a look at a value
_INTEGER_BITS, _INDENT = 1 << 16, 100
_VIEWS: tuple[type[Any], ...] = (type({}.keys()), type({}.values()), type({}.items()))
_HOLDERS: tuple[type[Any], ...] = (list, tuple, *_VIEWS)
# Filters that hand on what they get, and make no text of it.
_HANDING = {
    "attr", "count", "counted", "d", "default", "first", "items", "last", "length", "list", "map",
    "reject", "rejectattr", "reverse", "select", "selectattr",
}  # fmt: skip
_NO_FILTERS = {"batch", "pprint", "slice", "sum", "urlize", "wordwrap", "xmlattr"}
_NO_METHODS = {"encode", "expandtabs", "translate"}
# What may stand in a text that values are put into, by its sign, and how wide a number gets there.
_FIELDS = {
    "%": re.compile(r"%(\(\w+\))?[-+ 0#]*\d{0,3}(\.\d{0,3})?[a-zA-Z%]"),
    "{": re.compile(r"\{\w*(:[<>^]?\d{0,3}(\.\d{1,3})?[a-z]?)?\}|\{\{"),
}
_WIDEST = 2000


class TooMuchError(Exception):
    """A template builds more than it may."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Templates compiled by `bounded_template`; each thread has its own allowance."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        """With the settings of transformers' apply_chat_template, which templates are made for."""
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols],
            finalize=_written, optimized=False,
        )  # fmt: skip
        self._left = threading.local()
        self.globals.pop("lipsum")
        self.globals["namespace"] = _Namespace
        given = {"join": self._join, "tojson": self._to_json, "counted": lambda value: value}
        filters = {**self.filters, **given}
        self.filters = {
            name: self._filter(name, filters[name]) for name in filters.keys() - _NO_FILTERS
        }

    def bounded_template(self, source: str) -> jinja2.Template:
        """Compile a template; raises what Jinja and Python do."""
        return self.from_string(_Counted().visit(self.parse(source)).set_environment(self))

    def bounded_render(self, template: jinja2.Template, variables: dict[str, Any]) -> str:
        """Render a template; raises TooMuchError, or anything that a template can do wrong."""
        self._left.count = 1 << 62
        self._left.count = _LEAST + _PER_INPUT * self.size(variables)
        return template.render(variables)

    def take(self, count: int) -> None:
        """Count what is built."""
        self._check(count)
        self._left.count -= count

    def size(self, value: Any) -> int:
        """At least the characters of a value as text; TooMuchError if that is more than is left."""
        if isinstance(value, str):
            self._check(len(value))
            return len(value)
        left, total, values, todo = self._left.count, 0, 0, [value]
        while todo:
            one = todo.pop()
            values += 1
            total += _VALUE
            if isinstance(one, str):
                total += len(one)
            elif isinstance(one, dict):
                todo += [*one, *one.values()]
            elif isinstance(one, _HOLDERS):
                todo += one
            if total > left:
                raise TooMuchError
        self.take(_STEP * values)  # this takes time, and a template may ask for it again and again
        return total

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Jinja's, of the operators above."""
        whole = isinstance(left, int) and isinstance(right, int)
        if operator == "%" and isinstance(left, str):
            self._check_fields("%", left, right)
        elif whole and operator in ("*", "**"):
            bits = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
            if bits > _INTEGER_BITS:
                raise TooMuchError
        elif operator == "*":
            for number, other in ((left, right), (right, left)):
                if isinstance(number, int):
                    self._check(number * _shallow(other))
        result = super().call_binop(context, operator, left, right)
        self.take(_shallow(result))
        return result

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Jinja's; an undefined value tells what was looked for."""
        self.size(argument)
        return super().getitem(obj, argument)

    def call(__self, __context: Any, __called: Any, *args: Any, **kwargs: Any) -> Any:
        """Jinja's, of functions, macros and methods."""
        method = getattr(__called, "__wrapped__", __called)  # str.format is wrapped by Jinja
        owner = getattr(method, "__self__", None)
        if not isinstance(owner, str):
            if not isinstance(__called, Macro):  # list.index tells what it has not found, and such
                __self._check_growth("", args, kwargs)
            result = super().call(__context, __called, *args, **kwargs)
            __self.take(_shallow(result))
            return result
        name = method.__name__
        if name in _NO_METHODS:
            raise SecurityError(f"str.{name} is not safe")
        if name in ("format", "format_map"):
            __self._check_fields("{", owner, (args, kwargs))
        elif name == "join":
            __self._check_join(owner, list(*args))
        else:
            __self._check_growth(name, (owner, *args), kwargs)
        result = super().call(__context, __called, *args, **kwargs)
        __self.take(__self.size(result))
        return result

    def _filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            given = args[1:] if hasattr(function, "jinja_pass_arg") else args
            self._check_growth(name, given, kwargs)
            if name == "format":
                self._check_fields("%", str(given[0]), (given[1:], kwargs))
            result = function(*args, **kwargs)
            if isinstance(result, Iterator):  # of map, select and others
                result = list(result)
            self.take(_shallow(result))
            return result

        return bounded

    def _check(self, count: int) -> None:
        if count > self._left.count:
            raise TooMuchError

    def _check_growth(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):  # a whole number may be a width
            if isinstance(value, int):
                self._check(abs(value))
            elif name not in _HANDING:
                self.size(value)
        if name == "replace":
            texts = [str(value) for value in (*args[1:], *kwargs.values())]
            counts = [str(args[0]).count(old) * len(new) for old in texts for new in texts]
            self._check(max(counts, default=0))
        elif name == "indent":
            width = max([4, *(_width(value) for value in (*args[1:], *kwargs.values()))])
            self._check(len(str(args[0]).splitlines()) * width)

    def _check_fields(self, sign: str, text: str, values: Any) -> None:
        if sign in _FIELDS[sign].sub("", text):
            raise SecurityError(f"the format {text[:80]!r} is not safe")
        self._check(text.count(sign) * (_WIDEST + self.size(values)))

    def _check_join(self, between: str, items: list[Any]) -> None:
        self._check(self.size(items) + len(items) * len(between))

    def _join(self, value: Any, d: Any = "", attribute: Any = None) -> str:
        items = list(value)
        if attribute is not None:
            items = list(map(make_attrgetter(self, attribute), items))
        self._check_join(str(d), items)
        return str(d).join(map(str, items))

    def _to_json(self, value: Any, indent: Any = None, **_: Any) -> str:
        # Jinja's own escapes characters of HTML, which a prompt is not.
        if _width(indent) > _INDENT:
            raise TooMuchError
        pieces = []
        for piece in json.JSONEncoder(ensure_ascii=False, indent=indent).iterencode(value):
            self.take(len(piece))
            pieces.append(piece)
        return "".join(pieces)


class _Counted(NodeTransformer):
    """Filters in the place of what Jinja hands to nobody; no text is output past `_written`."""

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return nodes.Const(node.data, lineno=node.lineno)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "join")

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "counted")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "counted") if isinstance(node.arg, nodes.Slice) else node


class _Namespace(Namespace):
    """Jinja's, without its values in its text."""

    def __repr__(self) -> str:
        return "namespace"


@jinja2.pass_context  # so that nothing is output while a template is compiled
def _written(context: Any, value: Any) -> Any:
    context.environment.take(context.environment.size(value))
    return value


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _shallow(value: Any) -> int:
    """What a new value takes, without that of the values in it."""
    if isinstance(value, int):
        return _VALUE + value.bit_length() // 8
    if isinstance(value, Sized):
        return _VALUE + len(value) * (1 if isinstance(value, str) else _ITEM)
    return _VALUE


def _width(indent: Any) -> int:
    return indent if isinstance(indent, int) else len(indent or "")
