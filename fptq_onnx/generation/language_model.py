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
from fptq_onnx.generation.kv.open import DEFAULT_LENGTH, GenerationModel, open_generation_model
from fptq_onnx.model_io.hf_config import SpecialIds, find_model_file, read_special_ids
from fptq_onnx.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model and what its folder says of text.

    Attributes:
        model: the session.
        texts: the tokenizer, and what it puts around a text.
        special: the ids that end a text, and the context length.
        template: for conversations; None for a model that is not made for them.
    """

    model: GenerationModel
    texts: TextTokenizer
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
        of_texts = tokenizer_folder or folder
        special = read_special_ids(folder, of_texts)
        # What is wrong with these files should not cost the time to open the model.
        texts, template = TextTokenizer.open(of_texts, None), load_chat_template(of_texts)
        model = open_generation_model(path, threads=threads)
        texts = texts.of_model(model.decoder.io.vocab_size or special.vocab_size)
        return cls(model, texts, special, template)

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The model's tokenizer."""
        return self.texts.tokenizer

    def engine(self, *, max_sequences: int = 1, max_length: int | None = None) -> Engine:
        """A new engine on this model; several may be in use at a time.

        Args:
            max_sequences: sequences at a time.
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
            self.model.cache(max_sequences=max_sequences, max_length=context),
            tokenizer=self.tokenizer, eos=self.special.eos, context_length=context,
        )  # fmt: skip

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text, with what the tokenizer puts around one.

        Raises:
            FptqError: the text is not valid Unicode, or has a token that the model does not know.
        """
        _check_prompt(text)
        return tuple(self.texts.encode(text))

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], **variables: Any
    ) -> tuple[int, ...]:
        """Ids of a conversation, up to where the answer begins.

        Args:
            messages: each {"role": ..., "content": ...}.
            variables: tools, documents and others; see `ChatTemplate.render`.

        Raises:
            FptqError: the model has no chat template, or that refuses the messages; or see
                `encode`.
        """
        if self.template is None:
            raise FptqError("the model has no chat template: give text to go on from")
        # The template writes BOS itself; the tokenizer knows special tokens by their text.
        text = self.template.render(messages, **variables)
        _check_prompt(text)
        return tuple(self.texts.ids(text))


def _check_prompt(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of a command line that are no text
        raise FptqError("the prompt is not valid UTF-8; give it as text") from None
