"""What transformers makes of the texts and conversations that our tests are of.

    python tests/support/transformers_ids.py

writes tests/generation/transformers_ids.json anew, in an environment with the extra export (or with
transformers 4.57 alone: torch is not needed). Tests read that file; where transformers is installed
they ask it as well.
"""

from __future__ import annotations

import datetime
import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.conversations import CONVERSATIONS, PARTS, TEMPLATES, as_parts, chat_folder
from support.tokenizer_setups import SETUPS, TEXTS, setup_folder

STORED = Path(__file__).parents[1] / "generation" / "transformers_ids.json"
REFUSED = "refused"


class FixedDate(datetime.datetime):
    """The time that strftime_now shows in tests."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> FixedDate:
        return cls(2025, 3, 9, 14, 5, tzinfo=tz)


def chat_ids(folder: Path, template: str) -> dict[str, list[int] | str]:
    """Ids of each conversation by apply_chat_template, or REFUSED."""
    import transformers
    from transformers.utils import chat_template_utils

    chat_template_utils.datetime = FixedDate
    tokenizer = transformers.AutoTokenizer.from_pretrained(chat_folder(folder, template))
    ids: dict[str, list[int] | str] = {}
    for name, (messages, variables) in CONVERSATIONS.items():
        given = as_parts(messages, PARTS.get(template, ()))
        settings: dict[str, Any] = {"add_generation_prompt": True, **variables}
        try:
            text = tokenizer.apply_chat_template(given, tokenize=False, **settings)
        except Exception:  # templates raise what they like
            ids[name] = REFUSED
            continue
        ids[name] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def text_ids(folder: Path, setup: str) -> dict[str, list[int]]:
    """Ids of each of TEXTS by `tokenizer(text)`."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(setup_folder(folder, setup))
    return {text: tokenizer(text).input_ids for text in TEXTS}


def main() -> None:
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as work:
        templates = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
        stored: dict[str, Mapping[str, object]] = {
            "templates": {name: chat_ids(Path(work) / name, name) for name in templates},
            "setups": {name: text_ids(Path(work) / name, name) for name in SETUPS},
        }
    lines = []
    for kind, entries in stored.items():
        rows = [f"  {json.dumps(name)}: {json.dumps(ids)}" for name, ids in entries.items()]
        lines.append(f" {json.dumps(kind)}: {{\n" + ",\n".join(rows) + "\n }")
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    main()
