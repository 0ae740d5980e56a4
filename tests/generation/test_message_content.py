"""Templates get contents in the form that they read."""

from __future__ import annotations

from typing import Any

import pytest

from fptq_onnx.errors import FptqError
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


EACH = "{% for m in messages %}{{ m.role }}:{% for p in m.content %}PART{% endfor %};{% endfor %}"
QUOTED = {
    "JSON": "{% if p.type == 'text' %}{{ p.text | tojson }}{% endif %}",
    "quotes": "{% if p['type'] == 'text' %}\"{{ p['text'] }}\"{% endif %}",
    "single quotes": "{% if p.type == 'text' %}'{{ p.text }}'{% endif %}",
    "a field": "{% if p.type == 'text' %}{\"text\": {{ p.text | tojson }}}{% endif %}",
    "JSON of JSON": "{% if p.type == 'text' %}{{ p.text | tojson | tojson }}{% endif %}",
    "an own dictionary": "{% if p.type %}{{ {'type': 'text', 'text': p.text} }}{% endif %}",
    "cut": "{% if p.type == 'text' %}\"{{ p.text[:6] }}\"{% endif %}",
}
WANTED = {
    "JSON": '"France"', "quotes": '"France"', "single quotes": "'France'",
    "a field": '{"text": "France"}', "JSON of JSON": r'"\"France\""',
    "an own dictionary": "{'type': 'text', 'text': 'France'}", "cut": '"France"',
}  # fmt: skip


@pytest.mark.parametrize("name", QUOTED)
@pytest.mark.parametrize("given", ["France", parts("France")], ids=["text", "parts"])
def test_each_part_in_quotes(name: str, given: Any) -> None:
    template = ChatTemplate(EACH.replace("PART", QUOTED[name]))
    assert template.render([{"role": "user", "content": given}]) == f"user:{WANTED[name]};"


@pytest.mark.parametrize(
    ("printed", "wanted"),
    [("m.content", "a b"), ("m.content | string", "a b"), ("m.content | tojson", '"a b"'),
     ("m.content | tojson | tojson", r'"\"a b\""'), ("m.content | tojson(indent=2)", '"a b"')],
)  # fmt: skip
def test_a_list_that_would_be_printed_as_it_stands_is_one_text(printed: str, wanted: str) -> None:
    template = ChatTemplate("{% for m in messages %}{{ " + printed + " }}{% endfor %}")
    assert template.render([{"role": "user", "content": parts("a ", "b")}]) == wanted


def test_parts_printed_as_they_stand_where_a_text_is_not() -> None:
    template = ChatTemplate(EACH.replace("PART", "{{ p | tojson }}"))
    for given in ("ab", parts("ab")):
        rendered = template.render([{"role": "user", "content": given}])
        assert rendered == 'user:{"type": "text", "text": "ab"};'


@pytest.mark.parametrize("given", ["France", parts("France")], ids=["text", "parts"])
@pytest.mark.parametrize(
    "template",
    ["{% for m in messages %}<{{ m.role }}>{{ m.value }}{% endfor %}", EACH.replace("PART", ""),
     "{% for m in messages %}{% if m.role == 'human' %}{{ m.content }}{% endif %}{% endfor %}A:"],
)  # fmt: skip
def test_a_template_that_leaves_out_what_users_say_is_refused(template: str, given: Any) -> None:
    with pytest.raises(FptqError, match="leaves out the text of user messages"):
        ChatTemplate(template).render([{"role": "user", "content": given}])


def test_what_names_no_messages_leaves_nothing_out() -> None:
    assert ChatTemplate("hello").render([{"role": "user", "content": "x"}]) == "hello"
