"""Templates get contents in the form that they read."""

from __future__ import annotations

from typing import Any

import pytest

from fptq_onnx.generation.chat_template import ChatTemplate

TEXT = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}"
PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for p in m['content'] %}"
    "{% if p.type == 'text' %}{{ p.text }}{% elif p.type == 'image' %}[IMG]{% endif %}"
    "{% endfor %}{% endfor %}"
)
SET = PARTS.replace("{% for p in m['content'] %}", "{% set c = m.content %}{% for p in c %}")
FILTERED = PARTS.replace("m['content']", "m['content'] | selectattr('type', 'equalto', 'text')")
FIRST = "{% for m in messages %}<{{ m.role }}>{{ m.content[0].text }}{% endfor %}"
BOTH = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if 'text' in p %}{{ p['text'] }}{% else %}[IMG]{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)
MACRO = (
    "{% macro show(c) %}{% for p in c %}{{ p.text }}{% endfor %}{% endmacro %}"
    "{% for m in messages %}<{{ m.role }}>{{ show(m.content) }}{% endfor %}"
)
# A list is refused, and only the user's content is one.
MIXED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'user' %}"
    "{% if m.content is string %}{{ raise_exception('parts, please') }}{% endif %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}"
    "{% else %}{{ m.content + '' }}{% endif %}{% endfor %}"
)
# It wants a system message before anything else, and speaks in capitals.
STRICT = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    + PARTS.replace("p.text", "p.text | upper")
)
DUMPED = "{% for m in messages %}<{{ m.role }}>{{ m.content | tojson }}{% endfor %}"
ALL = {
    "text": TEXT, "parts": PARTS, "set": SET, "filtered": FILTERED, "first": FIRST, "both": BOTH,
    "macro": MACRO, "mixed": MIXED,
}  # fmt: skip


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("given", ["Hi 'you'", parts("Hi 'you'")], ids=["text", "parts"])
def test_the_text_comes_out_whichever_way_it_is_given(name: str, given: Any) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": given},
        {"role": "assistant", "content": "Hello."},
    ]
    rendered = ChatTemplate(ALL[name]).render(messages)
    assert rendered == "<system>Be kind.<user>Hi 'you'<assistant>Hello."
    assert messages[1]["content"] is given  # the caller's own stays


def test_several_parts_are_one_text_for_a_template_of_texts() -> None:
    message = {"role": "user", "content": parts("a ", "b")}
    assert ChatTemplate(TEXT).render([message]) == "<user>a b"
    assert ChatTemplate(DUMPED).render([message]) == '<user>"a b"'


def test_parts_that_are_no_text_stay() -> None:
    image: Any = [{"type": "image"}, *parts("a")]
    for template in (PARTS, BOTH):
        assert ChatTemplate(template).render([{"role": "user", "content": image}]) == "<user>[IMG]a"


def test_a_template_that_refuses_a_lone_user() -> None:
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    assert ChatTemplate(STRICT).render(messages) == "<system>BE<user>HI"


def test_contents_that_are_no_text_stay() -> None:
    template = (
        "{% for m in messages %}{{ m.content is none }}{{ m.content is defined }}{% endfor %}"
    )
    rendered = ChatTemplate(template).render([{"role": "assistant", "content": None}])
    assert rendered == "TrueTrue"
    assert ChatTemplate(template).render([{"role": "assistant"}]) == "FalseFalse"
