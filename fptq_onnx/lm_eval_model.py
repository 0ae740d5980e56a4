"""lm-evaluation-harness on our models, and on any other ONNX decoder.

    python -m fptq_onnx.lm_eval_model --model fptq-onnx --model_args pretrained=DIR --tasks ...

takes all of `lm_eval`'s own arguments. lm_eval 0.4.13 looks for models of other packages nowhere,
so plain `lm_eval` does not know this one; from Python, importing this module registers it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from fptq_onnx.errors import FptqError
from fptq_onnx.evaluation.loglikelihood import score_continuations
from fptq_onnx.generation.greedy import generate
from fptq_onnx.model_io.hf_config import find_model_file, read_special_ids
from fptq_onnx.model_io.tokenizer_files import folder_of_tokenizer
from fptq_onnx.runtime.decoder import open_decoder
from fptq_onnx.runtime.install_advice import install_advice
from fptq_onnx.text.detokenizer import StreamingDetokenizer
from fptq_onnx.text.tokenizer import TextTokenizer

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ImportError as error:
    if __name__ != "__main__":
        raise
    print(f"fptq-onnx: error: {error}; {install_advice('lm-eval')}", file=sys.stderr)
    sys.exit(2)

_NO_LIMIT = 2048  # lm_eval's own assumption where nothing says how long the context is
_GENERATED = 256  # tokens where a task does not say how many, as lm_eval's other models

_Request = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("fptq-onnx")
class FptqOnnxLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """An ONNX decoder, fed one text at a time."""

    def __init__(
        self,
        pretrained: str,
        tokenizer: str | None = None,
        add_bos_token: bool = True,
        max_length: int | None = None,
        threads: int = 0,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        """Open a model.

        Args:
            pretrained: a .onnx file or a folder with one, converted or not.
            tokenizer: tokenizer.json or its folder, where the model's folder has none.
            add_bos_token: put before each text what the tokenizer puts there (BOS, or nothing).
            max_length: tokens the model can be fed; by default what the files beside it say.
            threads: intra-op threads, 0 lets ONNX Runtime choose.
            batch_size: not used: texts are fed one at a time.
            max_batch_size: not used.
            device: not used: the CPU.

        Raises:
            FptqError: the model or its tokenizer cannot be used, or a number is too small.
        """
        super().__init__()
        file = find_model_file(Path(pretrained))
        folder = file.parent if tokenizer is None else folder_of_tokenizer(Path(tokenizer))
        special = read_special_ids(file.parent, folder)
        texts = TextTokenizer.open(folder, None)
        self._decoder = open_decoder(file, threads=threads)
        texts = texts.of_model(self._decoder.io.vocab_size or special.vocab_size)
        self._texts = texts if add_bos_token else texts.alone()
        self._eos = special.eos
        # As lm_eval's own models: the BOS that is named stands before a text without context, even
        # where no text gets one.
        starts = [*texts.prefix, *([] if special.bos is None else [special.bos]), *self._eos]
        if not starts:
            raise FptqError(
                f"{file.parent} names neither a beginning nor an end token, and lm_eval needs one; "
                "put the model's config.json beside it"
            )
        (self._prefix,) = texts.known(starts[:1])
        self.max_length = max_length or special.context_length or _NO_LIMIT
        if self.max_length < 2:
            raise FptqError(f"max_length must be at least 2 tokens, got {max_length}")

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return self._eos[0] if self._eos else self._prefix

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: BOS, or EOS where there is none."""
        return self._prefix

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Ids of a text, with what stands before one as the model was opened; False leaves it out.

        What the tokenizer puts after a text is left out: a continuation follows.
        """
        ids, prefix = self._texts.ids(string), list(self._texts.prefix)
        if add_special_tokens is False or ids[: len(prefix)] == prefix:
            return ids
        return self._texts.known([*prefix, *ids])

    def _loglikelihood_tokens(
        self, requests: Sequence[_Request], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        results = []
        bar = tqdm(requests, desc="fptq-onnx: continuations", disable=disable_tqdm)
        for context, group in groupby(bar, key=lambda request: request[1]):
            texts, _same, continuations = zip(*group, strict=True)
            scores = score_continuations(self._decoder, context, continuations, self.max_length)
            for text, score in zip(texts, scores, strict=True):
                results.append((score.log_likelihood, score.greedy))
                if text is not None:
                    self.cache_hook.add_partial("loglikelihood", text, results[-1])
        return results

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts, nats, in windows that predict each token once."""
        results = []
        for (text,) in tqdm(
            [request.args for request in requests], desc="fptq-onnx: texts", disable=disable_tqdm
        ):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self._prefix,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [(None, *make_disjoint_window(window)) for window in windows]
            results.append(sum(p for p, _ in self._loglikelihood_tokens(pairs, disable_tqdm=True)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), results[-1])
        return results

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy text after each context, up to a stop string or the end token.

        Raises:
            FptqError: a task that samples, no room for what is to be generated, or no KV cache.
        """
        results = []
        for context, settings in tqdm(
            [request.args for request in requests], desc="fptq-onnx: writing", disable=disable_tqdm
        ):
            results.append(self._generate(context, settings))
            self.cache_hook.add_partial("generate_until", (context, settings), results[-1])
        return results

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        chosen = normalize_gen_kwargs(settings, min(_GENERATED, self.max_length // 2))
        if chosen["do_sample"]:
            raise FptqError("fptq-onnx generates greedily only; set do_sample to false in the task")
        room = self.max_length - chosen["max_gen_toks"]
        if room < 1:
            raise FptqError(
                f"max_gen_toks {chosen['max_gen_toks']} leaves no room for a context of the "
                f"model's {self.max_length} tokens; lower it with --gen_kwargs"
            )
        prompt = self.tok_encode(context)[-room:] or [self._prefix]
        stops = [stop for stop in chosen["until"] if stop]
        detokenizer = StreamingDetokenizer(self._texts.tokenizer, prompt)
        text = ""
        for token in generate(self._decoder, prompt, chosen["max_gen_toks"], eos=self._eos):
            text += detokenizer.push(token)
            if any(stop in text for stop in stops):
                break
        text += detokenizer.finish()
        return text[: min([place for s in stops if (place := text.find(s)) >= 0] or [len(text)])]


def main() -> int:
    """lm_eval's command line with this model known to it; its exit code, or 2 for an FptqError."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except FptqError as error:
        print(f"fptq-onnx: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
