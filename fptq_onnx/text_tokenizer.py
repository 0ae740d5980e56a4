"""A model's text to its token ids: the one place that decides what is put around a text.

What is put there is what transformers' `tokenizer(text).input_ids` has: BOS, several ids, EOS, or
nothing. An id named in config.json says nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import tokenizers

from fptq_onnx.downloaded_file import check_downloaded
from fptq_onnx.errors import FptqError
from fptq_onnx.model_configs import SpecialIds
from fptq_onnx.model_folder import side_file
from fptq_onnx.text_encoding import read_text
from fptq_onnx.tokenizer_settings import TokenizerSettings

TOKENIZER_FILE = "tokenizer.json"

# A tokenizer may have a few ids that its model has not (image tokens, padding). With more than a
# share of the vocabulary, or of this many, it is another model's.
_SHARE, _FEW = 1 / 8, 64
# Any text with tokens shows what is put around one.
_SAMPLE = "a b"


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer and the vocabulary of the model that reads its ids.

    Attributes:
        tokenizer: as `load_tokenizer` gives it.
        vocab_size: ids the model knows, None where nothing says.
        prefix: ids before each text.
        suffix: ids after each text.
    """

    tokenizer: tokenizers.Tokenizer
    vocab_size: int | None = None
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: tokenizers.Tokenizer, vocab_size: int | None = None) -> TextTokenizer:
        """With what the tokenizer's post-processor puts around a text."""
        encoding = tokenizer.encode(_SAMPLE)
        own = [place for place, put in enumerate(encoding.special_tokens_mask) if not put]
        first, last = (own[0], own[-1] + 1) if own else (len(encoding.ids), len(encoding.ids))
        ids = tuple(encoding.ids)
        return cls(tokenizer, vocab_size, ids[:first], ids[last:])

    @classmethod
    def open(cls, folder: Path, vocab_size: int | None) -> TextTokenizer:
        """The tokenizer of a folder, for a model of a vocabulary.

        Raises:
            FptqError: no tokenizer.json, one that cannot be read, or one of another model.
        """
        tokenizer = load_tokenizer(folder)
        check_vocabulary(tokenizer, vocab_size, "the model")
        return cls.of(tokenizer, vocab_size)

    def of_model(self, vocab_size: int | None) -> TextTokenizer:
        """The same, for a model of another vocabulary.

        Raises:
            FptqError: the tokenizer is of another model.
        """
        check_vocabulary(self.tokenizer, vocab_size, "the model")
        return replace(self, vocab_size=vocab_size)

    def alone(self) -> TextTokenizer:
        """The same, with nothing put around texts."""
        return replace(self, prefix=(), suffix=())

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with what stands around one.

        Raises:
            FptqError: see `ids`.
        """
        return self.known([*self.prefix, *self._plain(text), *self.suffix])

    def ids(self, text: str) -> list[int]:
        """Ids of a text alone; special tokens that are written in it are ids of their own.

        Raises:
            FptqError: the text is not valid Unicode, or has a token that the model does not know.
        """
        return self.known(self._plain(text))

    def known(self, ids: list[int]) -> list[int]:
        """The same ids, if the model knows all of them.

        Raises:
            FptqError: one is not below `vocab_size`.
        """
        if self.vocab_size is not None and max(ids, default=-1) >= self.vocab_size:
            token = next(token for token in ids if token >= self.vocab_size)
            raise FptqError(self.unknown(token))
        return ids

    def beyond(self) -> dict[int, str]:
        """Tokens that the tokenizer has and the model has not, by their ids."""
        return {} if self.vocab_size is None else _beyond(self.tokenizer, self.vocab_size)

    def unknown(self, token: int) -> str:
        """What to say of an id that the model does not know."""
        name = self.tokenizer.id_to_token(token)
        which = f"the token {token}" if name is None else f"the token {name!r} (id {token})"
        limit = f"is beyond the model's {self.vocab_size} tokens"
        if token in (*self.prefix, *self.suffix):
            return (
                f"{which}, which the tokenizer puts around each text, {limit}: put the model's own "
                "tokenizer.json and tokenizer_config.json beside it"
            )
        if name is None:
            return f"{which} {limit}: use the model's own tokenizer"
        return (
            f"{which} {limit}, though the tokenizer has it: take it out of the text, or put the "
            "model's own tokenizer.json beside it"
        )

    def _plain(self, text: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
            raise FptqError("the text is not valid UTF-8: it has half a character in it") from None
        # `encode` alone would keep the interpreter's lock: seconds for a text of a megabyte, in
        # which a server could answer nobody.
        ids: list[int] = self.tokenizer.encode_batch([text], add_special_tokens=False)[0].ids
        return ids


def load_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a folder, set up as transformers does.

    Raises:
        FptqError: no tokenizer.json, or one that cannot be read.
    """
    path = side_file(folder, TOKENIZER_FILE)
    check_downloaded(path)
    if not path.is_file():
        raise FptqError(
            f"no tokenizer.json in {folder}, and text cannot be read without it; copy the model's "
            "there, or name it with --tokenizer"
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_str(read_text(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise FptqError(f"cannot read {path}: {error}") from error
    # Both may be stored in the file, and either would change what a text's tokens are.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    TokenizerSettings.read(folder).apply(tokenizer)
    return tokenizer


def check_vocabulary(tokenizer: tokenizers.Tokenizer, vocab_size: int | None, what: str) -> None:
    """Refuse a tokenizer of another model; a few ids that the model has not are no reason.

    Args:
        tokenizer: the tokenizer.
        vocab_size: ids the model knows; None skips the check.
        what: the model, for the message.

    Raises:
        FptqError: too many of the tokenizer's ids are not below vocab_size.
    """
    if vocab_size is None:
        return
    beyond = _beyond(tokenizer, vocab_size)
    if len(beyond) > max(_FEW, vocab_size * _SHARE):
        raise FptqError(
            f"the tokenizer has ids up to {max(beyond)} but {what} knows only {vocab_size}; "
            "put the model's own tokenizer.json beside it"
        )


def _beyond(tokenizer: tokenizers.Tokenizer, vocab_size: int) -> dict[int, str]:
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return {token: text for text, token in vocabulary.items() if token >= vocab_size}


def prefix_of(folder: Path, special: SpecialIds, vocab_size: int | None) -> tuple[int, ...]:
    """Ids that a text for the model begins with.

    They are the tokenizer's; of a folder without one, which feeds no text, the BOS that the
    configuration files name is the only word there is.

    Args:
        folder: of the tokenizer.
        special: of the model.
        vocab_size: ids the model knows, None where nothing says.

    Raises:
        FptqError: a tokenizer that cannot be read, or an id that is not below vocab_size.
    """
    if side_file(folder, TOKENIZER_FILE).is_file():
        texts = TextTokenizer.of(load_tokenizer(folder), vocab_size)
        return tuple(texts.known(list(texts.prefix)))
    if special.bos is None:
        return ()
    if vocab_size is not None and special.bos >= vocab_size:
        raise FptqError(
            f"the beginning-of-sequence token {special.bos} is beyond the model's {vocab_size} "
            "tokens: correct bos_token_id in the config.json (or genai_config.json) beside it"
        )
    return (special.bos,)
