"""What the chat templates of today's models do, as Jinja without bounds does it."""

from __future__ import annotations

import json

import jinja2
import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fptq_onnx.generation.chat_template import ChatTemplate

MESSAGES = [
    {"role": "system", "content": "Be kind.\nBe brief."},
    {"role": "user", "content": "Hi\n<b> 'you' \u00e9 {x} 100%"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello "},
    {"role": "user", "content": " Bye\n"},
]
TURNS = [
    # A header for each, the first message apart, a date (LLaMA).
    """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start|>system<|end|>\n\n" + system_message + "<|eot|>" }}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if tools is not none %}{{- tools | tojson(indent=4) }}{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '<|end|>\n\n'+ message['content'] | trim + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\n\n' }}{%- endif %}""",
    # Backwards to the last question, thoughts cut out (Qwen).
    """{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string
        and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.multi_step = false %}{%- set ns.last = index %}
    {%- endif %}{%- endfor %}{{ ns.last }}
{%- for message in messages %}{%- set content = message.content %}{%- set thought = '' %}
    {%- if '</think>' in content %}
        {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1] %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}
    {{- '<|im_start|>' + message.role + '\n' + thought.strip('\n') + '|' + content + '<|im_end|>' }}
{%- endfor %}""",
    # Roles in turn, macros, a message before each (Mistral, Gemma).
    """{%- macro turn(role, text, end='') -%}<turn>{{ role | replace('assistant', 'model') }}
{{ text | trim }}{{ end }}{%- endmacro -%}
{%- set loop_messages = messages[1:] %}
{%- set users = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}{%- endif %}
    {%- if message is sameas(users[-1]) or loop.last %}{{ messages[0].content + '\n\n' }}{% endif %}
    {{- turn(message.role, message.content, end=eos_token if not loop.last else '') }}
{%- endfor %}""",
    # Joined pieces, filters of lists, a text built up, dicts and their items (DeepSeek, others).
    """{% set ns = namespace(system='', is_first=true, roles=[]) %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- set ns.system = ns.system + '\n' + message['content'] %}
    {%- else %}{%- set ns.roles = ns.roles + [message.role] %}{%- endif %}{%- endfor -%}
{{ ns.system ~ '|' ~ ns.roles|join(', ') ~ loop_count|default(3) }}
{{ ns.roles|unique|sort|map('upper')|join('+') }} {{ messages|map(attribute='role')|list|tojson }}
{{ (messages|rejectattr('role', 'equalto', 'user')|map(attribute='content')|list)[0]|indent(2) }}
{% for key, value in messages[0].items() %}{{ key }}={{ value|tojson }} {% endfor %}
{{ '%s has %d' % (messages[0].role, messages|length) }} {{ '%s-%s'|format('a', 2) }}
{{ '{} {:.2f} {name}'.format('a', 1.5, name='b') }} {{ ', '.join(ns.roles) }}
{{ messages[0].content.replace('kind', 'good') }} {{ 'a,b'.split(',') }} {{ '-' * 10 }}
{{ range(3)|list }} {{ dict(a=1)|tojson }} {{ [1, 'a', none, {'b': 2.5}] }} {{ nothing }}{{ none }}
{{ messages|groupby('role')|length }} {{ messages|first|items|list }} {{ "x"|e }} {{ ns.roles[:2] }}
{% set block %}a {{ 1 + 2 }} b{% endset %}{{ block|upper }} {% filter upper %}q{% endfilter %}
{% for m in messages if m.role == 'user' %}{% if loop.index > 1 %}{% break %}{% endif %}
{{ loop.previtem is defined }}{{ loop.cycle('a', 'b') }}{{ m.content }}{% else %}none{% endfor %}
{{ 7 // 2 }} {{ 2 ** 10 }} {{ 7 % 4 }} {{ 1.5 * 2 }} {{ [1] * 3 }} {{ -3|abs }} {{ true + 1 }}
{% for m in messages recursive %}{{ m.role }}{% if loop.first and loop.depth0 < 2 %}
{{ loop(messages[:1]) }}{% endif %}{% endfor %}""",
    # A chain without line ends between (ChatML, Zephyr).
    """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% else %}
{{ '<|assistant|>\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
]


def unbounded(source: str, messages: list[dict[str, str]]) -> str:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    environment.filters["tojson"] = plain_json
    environment.globals["raise_exception"] = jinja2.Undefined
    template = environment.from_string(source)
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    return template.render(messages=messages, add_generation_prompt=True, **tokens)


def plain_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


@pytest.mark.parametrize("source", TURNS)
def test_the_same_text_as_without_bounds(source: str) -> None:
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    expected = unbounded(source, MESSAGES)
    assert len(expected) > 100
    assert template.render(MESSAGES) == expected


@pytest.mark.parametrize("source", TURNS)
@pytest.mark.parametrize(("count", "length"), [(2001, 50), (5, 1_000_000)])
def test_long_conversations(source: str, count: int, length: int) -> None:
    roles = ["system", *["user", "assistant"] * (count // 2)]
    messages = [{"role": role, "content": f"{role} % " * (length // 8)} for role in roles]
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    assert template.render(messages) == unbounded(source, messages)
