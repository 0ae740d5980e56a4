"""The errors a user is meant to read."""

from __future__ import annotations

# What to do about a model that is no decoder: it depends on what was wanted of it.
FOR_CONVERSION = "give calibration samples as .npz files"
FOR_TEXT = (
    "only an export with token ids as input and logits as output can be run, served or measured"
)


class FptqError(Exception):
    """Something the user gave, or the machine lacks, stops the work.

    The message is one sentence that says what is wrong and what to do about it. The command line
    prints it on stderr and exits with 2; anything else that escapes is a bug in this project.
    """


class NoDecoderError(FptqError):
    """A model whose inputs and outputs are not those of a decoder, or not known to be."""

    def __init__(self, wrong: str, advice: str = FOR_CONVERSION) -> None:
        """Join both to one sentence.

        Args:
            wrong: what is wrong.
            advice: what to do; conversion can do without a decoder.
        """
        super().__init__(f"{wrong}; {advice}")
        self._wrong = wrong

    def advised(self, advice: str) -> NoDecoderError:
        """The same error with advice for something other than conversion."""
        return NoDecoderError(self._wrong, advice)
