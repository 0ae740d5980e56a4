"""What a chat template sees of the messages that official clients send."""

from __future__ import annotations

from openai.types.chat import ChatCompletionMessage

from fptq_onnx.serving.read_messages import read_messages


def test_roles_names_and_parts() -> None:
    read = read_messages(
        [
            {"role": "developer", "content": "Be brief"},
            {"role": "user", "name": "Tim",
             "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "name": None},
        ]
    )  # fmt: skip
    assert read == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "ab", "name": "Tim"},
        {"role": "assistant", "content": "c"},
    ]


def test_an_answer_is_taken_back_as_the_client_holds_it() -> None:
    answer = ChatCompletionMessage(role="assistant", content="Yes", refusal=None, annotations=[])
    assert read_messages([answer.model_dump()]) == [{"role": "assistant", "content": "Yes"}]
    assert read_messages([{**answer.model_dump(), "tool_calls": []}])
