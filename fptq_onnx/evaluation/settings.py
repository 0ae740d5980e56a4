"""What to evaluate on, and which tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fptq_onnx.errors import FptqError
from fptq_onnx.text.windows import TEXT_SUFFIXES

PERPLEXITY, LAMBADA = TASKS = ("perplexity", "lambada")


@dataclass(frozen=True)
class EvalSettings:
    """What to evaluate on.

    Attributes:
        data: .txt (documents separated by lines `<|endoftext|>`) or .jsonl.
        text_field: field of a .jsonl object that holds the text.
        tasks: of TASKS; empty for perplexity, and lambada too where the data are .jsonl passages.
        max_windows: windows, and passages of lambada, at most; None for all.
        window: tokens in a window, at least 2; fewer where the model's context is shorter.
        bos: put around each document what the tokenizer puts there, such as BOS before it.
        tokenizer_folder: holds tokenizer.json where neither the model's folder nor the reference's
            has one.
    """

    data: Path
    text_field: str = "text"
    tasks: tuple[str, ...] = ()
    max_windows: int | None = None
    window: int = 256
    bos: bool = True
    tokenizer_folder: Path | None = None

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            FptqError: a number is too small, a task unknown, or the data's name has another suffix.
        """
        if self.max_windows is not None and self.max_windows < 1:
            raise FptqError(f"--max-windows must be at least 1, got {self.max_windows}")
        if self.window < 2:
            raise FptqError(f"--window must be at least 2 tokens, got {self.window}")
        if unknown := [task for task in self.tasks if task not in TASKS]:
            raise FptqError(f"unknown task {unknown[0]!r}: the tasks are {' and '.join(TASKS)}")
        if self.data.suffix.lower() not in TEXT_SUFFIXES:
            raise FptqError(
                f"cannot evaluate on {self.data.name}: the name must end in .txt or .jsonl"
            )

    @property
    def chosen_tasks(self) -> tuple[str, ...]:
        """The tasks, in the order of TASKS."""
        passages = self.data.suffix.lower() == ".jsonl"
        chosen = self.tasks or (TASKS if passages else (PERPLEXITY,))
        return tuple(task for task in TASKS if task in chosen)
