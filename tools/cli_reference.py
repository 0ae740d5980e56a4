"""Write docs/cli.md: every command of `fptq-onnx`, from the parsers themselves.

    python tools/cli_reference.py            # writes docs/cli.md
    python tools/cli_reference.py --check    # exit code 1 where docs/cli.md is not what it writes

The usage lines are made here and not by argparse, whose line breaks differ between Python versions.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from fptq_onnx.cli import build_parser

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
COMMAND = "python tools/cli_reference.py"

_HEAD = f"""# Command line

All commands and options of `fptq-onnx`, as `fptq-onnx COMMAND --help` prints them. This page is
generated: change the parser, then run `{COMMAND}`.

An option may stand before or after the positional arguments. A wrong argument ends the command with
one line on standard error and exit code 2; an interrupt (Ctrl-C, SIGTERM) with exit code 130.
"""
# A help text ends with the default in brackets where argparse cannot know it, or says it better.
_DEFAULT = re.compile(r"\s*\(([^()]*)\)$")


def reference(parser: argparse.ArgumentParser) -> str:
    """The page.

    Args:
        parser: the parser of the whole command line, with one subparser for each command.

    Returns:
        Markdown.
    """
    commands = list(_commands(parser))
    lines = [_HEAD, "| command | |", "|---|---|"]
    lines += [f"| [{name}](#{name}) | {_cell(about)} |" for name, about, _ in commands]
    for name, about, command in commands:
        lines += ["", f"## {name}", "", f"    {usage(command)}", "", _sentence(about)]
        for group in command._action_groups:
            lines += _table(group)
    return "\n".join(lines) + "\n"


def usage(parser: argparse.ArgumentParser) -> str:
    """One line: the command, its required options, its positional arguments."""
    shown = [
        action
        for action in parser._actions
        if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)
    ]
    optional = any(action.option_strings and not action.required for action in shown)
    words = [parser.prog, "[OPTIONS]"] if optional else [parser.prog]
    for action in shown:
        if action.option_strings and action.required:
            words += [action.option_strings[-1], _value(action)]
    for action in shown:
        if not action.option_strings:
            value = _value(action)
            words.append(f"[{value}]" if action.nargs in ("?", "*") else value)
    return " ".join(words)


def _commands(
    parser: argparse.ArgumentParser,
) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Name, description and parser of each command, in the order of `--help`."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                found: argparse.ArgumentParser = action.choices[choice.dest]
                if choice.help != argparse.SUPPRESS:
                    yield choice.dest, found.description or choice.help or "", found


def _table(group: argparse._ArgumentGroup) -> list[str]:
    """The arguments of one group of `--help`; nothing where all are hidden."""
    shown = [
        action
        for action in group._group_actions
        if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)
    ]
    if not shown:
        return []
    plain = group.title in ("positional arguments", "options", "optional arguments")
    head = "argument" if group.title == "positional arguments" else "option"
    lines = [] if plain else ["", f"Options of {group.title}:"]
    lines += ["", f"| {head} | default | |", "|---|---|---|"]
    return lines + [_row(action) for action in shown]


def _row(action: argparse.Action) -> str:
    text = (action.help or "") % {**vars(action), "prog": ""}
    name = ", ".join(f"`{option}`" for option in action.option_strings) or f"`{_value(action)}`"
    default = ""
    if action.option_strings and action.nargs != 0:
        name = f"{name[:-1]} {_value(action)}`"
        found = _DEFAULT.search(text)
        if found is not None:
            text, default = text[: found.start()], found[1]
        elif action.default is not None and action.default != []:
            default = f"{action.default}"
    return f"| {_cell(name)} | {_cell(default)} | {_cell(text)} |".replace("|  |", "| |")


def _value(action: argparse.Action) -> str:
    """What stands for the value of an option, or the name of a positional argument."""
    name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if action.nargs == "+":
        return f"{name}..." if action.option_strings else f"{name} [{name} ...]"
    return name


def _sentence(text: str) -> str:
    """With a capital at its start and a full stop at its end."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")


def main() -> int:
    """Write the page, or with --check compare it; 1 where it differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    options = parser.parse_args()
    text = reference(build_parser())
    if not options.check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE.name} is not what the parser gives: run {COMMAND}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
