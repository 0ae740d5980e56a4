"""Conversations that chat templates are tried on, and folders with such a template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from support.command_line import MODEL

TEMPLATES = Path(__file__).parents[1] / "generation" / "chat_templates"
# Templates that go over the parts of a content, in the messages of these roles: transformers has to
# be given parts, while our caller gives a text.
EVERY = ("system", "user", "assistant", "tool")
PARTS = {
    "smolvlm": EVERY, "idefics2": EVERY, "llava_next": EVERY, "pixtral_macro": ("user",),
    "json_parts": EVERY, "quoted_parts": EVERY,
}  # fmt: skip

_SPECIAL = (
    "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
    "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "<start_of_turn>", "<end_of_turn>", "<|system|>",
    "<|user|>", "<|assistant|>", "<|end|>", "<|User|>", "<|Assistant|>", "<|endoftext|>",
    "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>", "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "[gMASK]",
    "<sop>", "<|observation|>", "<|end_of_turn|>", "<|start|>", "<|message|>", "<|channel|>",
    "<|call|>", "<|return|>", "<end_of_utterance>", "<image>", "[|endofturn|]", "[CLS]", "<sep>",
)  # fmt: skip
_THINKING = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>")

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a <place>, in \u00b0C.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "A town & its country"},
                "days": {"type": "integer", "default": 1},
                "hours": {"type": "array", "items": {"type": "number"}},
            },
            "required": ["place"],
        },
    },
}
DOCUMENTS = [
    {"title": "Dogs", "text": "A dog runs."},
    {"title": "Cats", "text": "A cat sleeps, \u00e9t\u00e9."},
]
_SYSTEM = {"role": "system", "content": "Be kind & short."}
_USER = {"role": "user", "content": " What is the <b>sun</b>? </s> It's hot. "}
_ANSWER = {"role": "assistant", "content": "A star.\n\nIt is far away."}
_MORE = {"role": "user", "content": "Who saw it?"}
_CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "type": "function",
            "id": "abcdefghi",
            "function": {"name": "get_weather", "arguments": {"place": "Malm\u00f6", "days": 2}},
        }
    ],
}
_RESULT = {
    "role": "tool", "name": "get_weather", "tool_call_id": "abcdefghi",
    "content": '{"degrees": 3.5}',
}  # fmt: skip
_THOUGHT = {**_ANSWER, "reasoning_content": "The sun is a star.", "thinking": "A star?"}

# Name: messages, and what else the template is given.
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "user": ([_USER], {}),
    "system": ([_SYSTEM, _USER], {}),
    "turns": ([_SYSTEM, _USER, _ANSWER, _MORE], {}),
    "no system": ([_USER, _ANSWER, _MORE], {}),
    "answered": ([_USER, _ANSWER], {"add_generation_prompt": False}),
    "tools": ([_SYSTEM, _USER], {"tools": [WEATHER, WEATHER]}),
    "no tools": ([_USER], {"tools": []}),
    "tool result": ([_USER, _CALL, _RESULT], {"tools": [WEATHER]}),
    "tool answer": ([_USER, {**_CALL, "content": ""}, _RESULT, _ANSWER, _MORE], {}),
    "documents": ([_MORE], {"documents": DOCUMENTS}),
    "thinking": ([_USER, _THOUGHT, _MORE], {"enable_thinking": False, "thinking": True}),
    "thought last": ([_USER, _THOUGHT], {"add_generation_prompt": False}),
    "date": ([_USER], {"date_string": "26 Jul 2024"}),
    "two users": ([_USER, _MORE], {}),
}


def as_parts(messages: list[dict[str, Any]], roles: tuple[str, ...]) -> list[dict[str, Any]]:
    """The messages with contents as lists of parts, in these roles."""
    return [
        {**one, "content": [{"type": "text", "text": one["content"]}]}
        if one["role"] in roles and isinstance(one["content"], str)
        else one
        for one in messages
    ]


def chat_tokenizer() -> tokenizers.Tokenizer:
    """The embedded model's tokenizer with the special tokens of many families."""
    tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in _THINKING])
    return tokenizer


def chat_config() -> dict[str, Any]:
    """tokenizer_config.json of such a folder, without a template."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False},
        "eos_token": "</s>",
        "unk_token": {"__type": "AddedToken", "content": "<unk>"},
        "pad_token": "</s>",
        "cls_token": "[CLS]",
        "sep_token": "<sep>",
        "mask_token": None,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "extra_special_tokens": {"image_token": "<image>"},
    }


def chat_folder(folder: Path, template: str) -> Path:
    """A folder with the tokenizer, its configuration and one of TEMPLATES."""
    folder.mkdir(parents=True, exist_ok=True)
    chat_tokenizer().save(str(folder / "tokenizer.json"))
    text = (TEMPLATES / f"{template}.jinja").read_text("utf-8").removesuffix("\n")
    config = {**chat_config(), "chat_template": text}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder
