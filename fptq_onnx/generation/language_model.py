"""A model folder ready for text: session, tokenizer, special ids and chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.chat_template import ChatTemplate, load_chat_template
from fptq_onnx.generation.engine import Engine
from fptq_onnx.generation.open_rows import DEFAULT_LENGTH, GenerationModel, open_generation_model
from fptq_onnx.model_configs import SpecialIds, find_model_file, read_special_ids
from fptq_onnx.text import check_bos, check_vocabulary, load_tokenizer


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model and what its folder says of text.

    Attributes:
        model: the session.
        tokenizer: the model's.
        special: BOS, EOS and the context length.
        template: for conversations; None for a model that is not made for them.
    """

    model: GenerationModel
    tokenizer: tokenizers.Tokenizer
    special: SpecialIds
    template: ChatTemplate | None

    @classmethod
    def open(
        cls, path: Path, *, tokenizer_folder: Path | None = None, threads: int | None = None
    ) -> LanguageModel:
        """Open a model folder.

        Args:
            path: the folder, or the .onnx file in it.
            tokenizer_folder: with tokenizer.json, where it is not beside the model; its chat
                template is taken as well.
            threads: intra-op threads, None for onnxruntime's choice.

        Raises:
            FptqError: no model or tokenizer there, one that does not suit the other, or see
                `open_generation_model`.
        """
        folder = find_model_file(path).parent
        texts = tokenizer_folder or folder
        tokenizer, special = load_tokenizer(texts), read_special_ids(folder)
        template = load_chat_template(texts)
        model = open_generation_model(path, threads=threads)
        vocabulary = model.decoder.io.vocab_size or special.vocab_size
        check_vocabulary(tokenizer, vocabulary, "the model")
        check_bos(special.bos, vocabulary)
        return cls(model, tokenizer, special, template)

    def engine(self, *, max_rows: int = 1, max_length: int | None = None) -> Engine:
        """A new engine on this model; several may be in use at a time.

        Args:
            max_rows: sequences at a time.
            max_length: tokens in a sequence at most, prompt included; by default the model's
                context.
        """
        context = self.special.context_length
        shared = self.model.shares
        if max_length is not None or context is not None:
            context = min(length for length in (max_length, context) if length is not None)
        elif shared:
            context = DEFAULT_LENGTH
        return Engine(
            self.model.rows(max_rows=max_rows, max_length=context),
            tokenizer=self.tokenizer, eos=self.special.eos, context_length=context,
        )  # fmt: skip

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text, with BOS in front where the model has one."""
        ids = self._ids(text)
        return (*(() if self.special.bos is None else (self.special.bos,)), *ids)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """Ids of a conversation, up to where the answer begins.

        Args:
            messages: each {"role": ..., "content": ...}.

        Raises:
            FptqError: the model has no chat template, or that refuses the messages.
        """
        if self.template is None:
            raise FptqError("the model has no chat template: give text to go on from")
        # The template writes BOS itself; the tokenizer knows special tokens by their text.
        return tuple(self._ids(self.template.render(messages)))

    def _ids(self, text: str) -> list[int]:
        # `encode` alone would keep the interpreter's lock: seconds for a text of a megabyte, in
        # which a server could answer nobody.
        try:
            text.encode()
        except UnicodeEncodeError:  # bytes of a command line that are no text
            raise FptqError("the prompt is not valid UTF-8; give it as text") from None
        ids: list[int] = self.tokenizer.encode_batch([text], add_special_tokens=False)[0].ids
        return ids
