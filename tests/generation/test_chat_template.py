from __future__ import annotations

import json
from pathlib import Path

import pytest

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.chat_template import ChatTemplate, load_chat_template

CHATML = """{{ bos_token }}{% for message in messages %}
<|{{ message['role'] }}|>
{{ message['content'] | trim }}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}"""
MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": " Hi <b> "}]


def test_renders_as_transformers_does() -> None:
    # Blocks leave no line behind (trim_blocks, lstrip_blocks), and nothing is escaped.
    expected = "<s><|system|>\nBe kind.\n<|user|>\nHi <b>\n<|assistant|>\n"
    assert ChatTemplate(CHATML, {"bos_token": "<s>"}).render(MESSAGES) == expected
    without = ChatTemplate(CHATML).render(MESSAGES, add_generation_prompt=False)
    assert without == "<|system|>\nBe kind.\n<|user|>\nHi <b>\n"


def test_what_the_model_wrote_may_be_marked() -> None:
    text = "{% for m in messages %}<{% generation %}{{ m.content }}{% endgeneration %}>{% endfor %}"
    marked = ChatTemplate(text).render(MESSAGES)
    plain = text.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    assert marked == ChatTemplate(plain).render(MESSAGES)
    assert marked.startswith("<Be kind.>")
    with pytest.raises(FptqError, match="not valid Jinja"):
        ChatTemplate("{% generation %}")


def test_functions_that_templates_call() -> None:
    text = "{% for m in messages %}{{ m | tojson }}{% break %}{% endfor %}"
    assert ChatTemplate(text).render(MESSAGES) == '{"role": "system", "content": "Be kind."}'
    assert len(ChatTemplate("{{ strftime_now('%Y') }}").render(MESSAGES)) == 4
    with pytest.raises(FptqError, match="only two roles"):
        ChatTemplate("{{ raise_exception('only two roles') }}").render(MESSAGES)


@pytest.mark.parametrize(
    "attack",
    ["{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ ''.__class__.__base__ }}"],
)
def test_a_template_reaches_nothing_else(attack: str) -> None:
    try:
        text = ChatTemplate(attack).render(MESSAGES)
    except FptqError:
        return
    assert "class" not in text


def test_where_it_is_found(tmp_path: Path) -> None:
    assert load_chat_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(
        json.dumps({"bos_token": {"content": "<s>"}, "chat_template": "a{{ bos_token }}"})
    )
    found = load_chat_template(tmp_path)
    assert found is not None
    assert found.render([]) == "a<s>"
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    config.write_text(json.dumps({"chat_template": named}))
    found = load_chat_template(tmp_path)
    assert found is not None
    assert found.render([]) == "d"
    assert found.render([], tools=[]) == "t"
    assert found.render([], documents=[]) == "d"
    (tmp_path / "chat_template.jinja").write_text("file")  # what newer exports write goes first
    found = load_chat_template(tmp_path)
    assert found is not None
    assert found.render([]) == found.render([], tools=[]) == "file"
    more = tmp_path / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("tools of {{ eos_token is defined }}")
    (more / "rag.jinja").write_text("r")
    found = load_chat_template(tmp_path)
    assert found is not None
    assert (found.render([]), found.render([], tools=[])) == ("file", "tools of False")
    (tmp_path / "chat_template.jinja").unlink()  # tokenizer_config.json has the default one still
    found = load_chat_template(tmp_path)
    assert found is not None
    assert (found.render([]), found.render([], tools=[])) == ("d", "tools of False")
    config.write_text("{}")
    with pytest.raises(FptqError, match=r"templates rag, tool_use and none by the name default"):
        load_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(FptqError, match="not valid Jinja"):
        load_chat_template(tmp_path)


def test_a_processor_brings_one_where_nothing_else_does(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text('{"chat_template": "older"}')
    found = load_chat_template(tmp_path)
    assert found is not None and found.render([]) == "older"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "p{{ tools is none }}"}')
    found = load_chat_template(tmp_path)
    assert found is not None and found.render([]) == "pTrue"
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "t"}')
    found = load_chat_template(tmp_path)
    assert found is not None and found.render([]) == "t"
