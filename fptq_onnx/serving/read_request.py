"""The fields of OpenAI's requests, checked: what is not understood is refused, not passed over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.sampling import SEEDS, SamplingSettings
from fptq_onnx.serving.api_error import ApiError, wrong
from fptq_onnx.serving.read_messages import read_messages

_MAX_STOPS = 16
# 64 bits, as most programs that read JSON have.
_COUNTS = range(1 << 63)
_ALL_OR_COUNT = range(-1, 1 << 63)  # of top_k: -1 is other servers' word for all tokens
# Fields that say nothing about the answer's text.
_IGNORED = {
    "metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user",
}  # fmt: skip
_COMMON = {
    "model", "stream", "stream_options", "temperature", "top_p", "seed", "stop", "max_tokens",
    "top_k", "repetition_penalty", "ignore_eos", "return_token_ids",
}  # fmt: skip
_COMPLETION = {"prompt"}
_CHAT = {"messages", "max_completion_tokens"}
# Fields that may be there, on either route, with these values alone: any other would change the
# answer.
_ONLY: dict[str, tuple[object, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logit_bias": ({},),
    "presence_penalty": (0,), "frequency_penalty": (0,), "logprobs": (False,),
    "top_logprobs": (0,), "response_format": ({"type": "text"},), "tools": ([],),
    "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False), "modalities": (["text"],),
}  # fmt: skip
_STREAM_OPTIONS = {"include_usage", "include_obfuscation"}


@dataclass(frozen=True)
class Asked:
    """What a request asks for, apart from the prompt.

    Attributes:
        sampling: how tokens are chosen.
        max_tokens: tokens at most, 0 for none; None for what the context holds.
        stop: strings that end the text.
        stream: piece by piece.
        include_usage: a last piece with the counts.
        ignore_eos: go on after the end token.
        token_ids: the answer's ids, beside its text.
    """

    sampling: SamplingSettings
    max_tokens: int | None
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    ignore_eos: bool
    token_ids: bool


def read_completion(fields: Mapping[str, Any]) -> tuple[Asked, str | tuple[int, ...]]:
    """What /v1/completions is asked for, and the prompt: text or token ids.

    Raises:
        ApiError: 400.
    """
    _check_names(fields, _COMMON | _COMPLETION)
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        (prompt,) = prompt
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return _asked(fields, default_tokens=16), tuple(prompt)
    if not isinstance(prompt, str):
        raise wrong("prompt", "prompt must be one text, or the token ids of one")
    return _asked(fields, default_tokens=16), prompt


def read_chat(fields: Mapping[str, Any]) -> tuple[Asked, list[dict[str, str]]]:
    """What /v1/chat/completions is asked for, and the messages for the chat template.

    Raises:
        ApiError: 400.
    """
    _check_names(fields, _COMMON | _CHAT)
    messages = read_messages(fields.get("messages"))
    return _asked(fields, default_tokens=None), messages


def _check_names(fields: Mapping[str, Any], known: set[str]) -> None:
    for name, value in fields.items():
        if name in _IGNORED or value is None:
            continue
        if name not in known and name not in _ONLY:
            raise ApiError(
                400, f"the field {name[:64]!r} is not supported: leave it out", param=name[:64],
                code="unknown_parameter",
            )  # fmt: skip
        allowed = _ONLY.get(name)
        if allowed is not None and not any(_same(value, one) for one in allowed):
            raise wrong(name, f"{name} can only be {json.dumps(allowed[0])} here")


def _check_stream_options(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name not in _STREAM_OPTIONS and value is not None:
            full = f"stream_options.{name[:64]}"
            raise ApiError(
                400, f"the field {full} is not supported: leave it out", param=full,
                code="unknown_parameter",
            )  # fmt: skip
    if _flag(options, "include_obfuscation"):
        raise wrong("include_obfuscation", "include_obfuscation can only be false here")


def _same(value: object, other: object) -> bool:
    """Equality of JSON, where true is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def _asked(fields: Mapping[str, Any], *, default_tokens: int | None) -> Asked:
    stream = _flag(fields, "stream")
    options = fields.get("stream_options")
    if options is not None and not (isinstance(options, dict) and stream):
        raise wrong("stream_options", "stream_options must be an object, with stream: true")
    _check_stream_options(options or {})
    temperature = _number(fields, "temperature", 1.0)
    if temperature > 100:
        raise wrong("temperature", f"temperature must be at most 100, got {temperature:g}")
    try:
        sampling = SamplingSettings(
            temperature=temperature,
            top_p=_number(fields, "top_p", 1.0),
            top_k=max(0, _integer(fields, "top_k", _ALL_OR_COUNT) or 0),
            repetition_penalty=_number(fields, "repetition_penalty", 1.0),
            seed=_integer(fields, "seed", SEEDS),
        )
    except FptqError as error:
        raise ApiError(400, str(error), code="invalid_value") from error
    names = ("max_completion_tokens", "max_tokens")
    limits = [_integer(fields, name, _COUNTS) for name in names]
    given = {limit for limit in limits if limit is not None}
    if len(given) > 1:
        raise wrong("max_tokens", "max_tokens and max_completion_tokens contradict each other")
    limit = next(iter(given), default_tokens)
    return Asked(
        sampling=sampling, max_tokens=limit, stop=_stops(fields), stream=stream,
        include_usage=_flag(options or {}, "include_usage"), ignore_eos=_flag(fields, "ignore_eos"),
        token_ids=_flag(fields, "return_token_ids"),
    )  # fmt: skip


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise wrong(name, f"{name} must be true or false")
    return bool(value)


def _number(fields: Mapping[str, Any], name: str, default: float) -> float:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e9:
        raise wrong(name, f"{name} must be a number")
    return float(value)


def _integer(fields: Mapping[str, Any], name: str, allowed: range) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not int:
        raise wrong(name, f"{name} must be an integer")
    if value not in allowed:
        raise wrong(name, f"{name} must be from {allowed[0]} to {allowed[-1]}")
    return value


def _stops(fields: Mapping[str, Any]) -> tuple[str, ...]:
    stops = fields.get("stop")
    if stops is None:
        return ()
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops):
        raise wrong("stop", "stop must be a text, or a list of texts")
    stops = [one for one in stops if one]  # an empty one is how some clients say that there is none
    if len(stops) > _MAX_STOPS:
        raise wrong("stop", f"stop has {len(stops)} texts: {_MAX_STOPS} at most")
    return tuple(stops)
