"""Chat templates that would take all memory are refused; what real ones do still works."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from fptq_onnx.errors import FptqError
from fptq_onnx.generation.chat_template import ChatTemplate

MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi\n<b> 'you'"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello "},
    {"role": "user", "content": "Bye"},
]

DOUBLE = (
    "{%% set n = namespace(x='ab') %%}{%% for i in range(60) %%}{%% set n.x = %s %%}{%% endfor %%}"
)
NEST = (
    "{%% set n = namespace(x=['ab']) %%}{%% for i in range(60) %%}"
    "{%% set n.x = [n.x, n.x] %%}{%% endfor %%}%s"
)
LONG = "{%% set a = 'a' * 10000000 %%}{%% set n = namespace(l=[], x=a) %%}%s"
KEEP = LONG.replace("%s", "{%% for i in range(9999) %%}{%% set n.l = n.l + [%s] %%}{%% endfor %%}")
TOO_MUCH = [
    "{{ 'a' * 10**11 }}", "{{ 10**11 * 'a' }}", "{{ ['a'] * 10**11 }}", "{{ (1,) * 10**11 }}",
    "{% set x = 'a' * 10**11 %}", "{{ 7**(10**9) }}",
    "{% for i in range(10**9) %}x{% endfor %}", "{{ range(10**9)|list }}",
    "{{ 'a'|center(10**11) }}", "{{ 'a'.center(10**11) }}", "{{ 'a'.ljust(10**11) }}",
    "{{ 'a'.rjust(10**11) }}", "{{ 'a'.zfill(10**11) }}", "{{ ['a']|map('center', 10**11)|list }}",
    "{{ ('a'|attr('center'))(10**11) }}", "{{ 'a'['center'](10**11) }}",
    "{% filter center(10**11) %}a{% endfilter %}", "{{ (1).to_bytes(10**11) }}",
    "{{ 'a'|center('100000000000'|int) }}", "{{ 'a\nb'|indent(10**11) }}",
    "{{ [1]|tojson(indent=10**9) }}", "{{ [1]|tojson(indent=5000) }}",
    DOUBLE % "n.x + n.x", DOUBLE % "n.x ~ n.x", DOUBLE % "n.x * 2", DOUBLE % "[n.x, n.x]|join",
    DOUBLE % "'%s%s' % (n.x, n.x)", DOUBLE % "'{}{}'.format(n.x, n.x)",
    DOUBLE % "'{x}{x}'.format(x=n.x)", DOUBLE % "'{x}{x}'.format_map({'x': n.x})",
    DOUBLE % "'%(x)s%(x)s' % {'x': n.x}", DOUBLE % "'%s%s'|format(n.x, n.x)",
    DOUBLE % "n.x.replace('a', n.x)", DOUBLE % "n.x|replace('a', n.x)", DOUBLE % "n.x.join(n.x)",
    DOUBLE % "n.x|replace(old='a', new=n.x)", DOUBLE % "n.x|replace(new=n.x, old='a')",
    DOUBLE % "n.x|join(n.x)", DOUBLE % "''.join([n.x, n.x])",
    DOUBLE.replace("'ab'", "[1]") % "n.x + n.x", DOUBLE.replace("'ab'", "3") % "n.x * n.x",
    DOUBLE.replace("{%% endfor", "{{ n.x }}{%% endfor") % "n.x + n.x",
    NEST % "{{ n.x }}", NEST % "{{ n.x|tojson }}", NEST % "{{ n.x|string }}",
    NEST % "{{ n.x|join }}", NEST % "{{ '' ~ n.x }}", NEST % "{{ '%s' % n.x }}",
    NEST % "{{ '%s' % [n.x] }}", NEST % "{{ '{}'.format(n.x) }}", NEST % "{{ n.x|e }}",
    NEST % "{{ {'a': n.x}.values() }}", NEST % "{{ {'a': n.x}.items()|string }}",
    NEST % "{{ n.x|upper }}", NEST % "{{ raise_exception(n.x) }}", NEST % "{{ [].index(n.x) }}",
    NEST % "{{ {}[n.x].y }}", NEST % "{{ [1]|map(attribute=n.x)|first }}",
    "{% macro f(n) %}x{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxx{% endfor %}{% endfor %}",
    "{% set r = range(99999)|list %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "{% set x %}{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endset %}",
    KEEP % "a ~ i", KEEP % "a[1:]", KEEP % "a.split('b')", KEEP % "[a]|map('lower')|list",
    KEEP % "a|upper", LONG % "{{ a.replace('', a) }}", LONG % "{{ ([a] * 9999)|join }}",
    LONG % "{{ ([n] * 9999)|map(attribute='x')|join }}",
    LONG % "{{ ([n] * 9999)|join(attribute='x') }}",
    LONG % "{{ '{0}{0}{0}{0}{0}{0}{0}{0}{0}'.format(a) }}",
]  # fmt: skip
NOT_SAFE = [
    "{{ '%100000000000d' % 1 }}", "{{ '%.100000000000f' % 1 }}", "{{ '%9999d' % 1 }}",
    "{{ '%100000000000d'|format(1) }}", '{{ "{:100000000000}".format(1) }}',
    '{{ "{0:{1}}".format(1, "100000000000") }}', '{{ "{0.x}".format(namespace(x=1)) }}',
    '{{ "{0[0]}".format([1]) }}', "{{ '%*d' % (10**11, 1) }}", "{{ 'a'.encode() }}",
    "{{ '\t'.expandtabs(10) }}", "{{ 'a'.translate({97: 'aa'}) }}",
]  # fmt: skip
LEFT_OUT = [
    "{{ [1]|batch(10**9, 1) }}", "{{ [1]|slice(10**9) }}", "{{ ([[1]] * 9)|sum(start=[]) }}",
    "{{ 'a b'|wordwrap(1, wrapstring='x') }}",
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def no_more_than_a_gigabyte() -> Iterator[None]:
    """More than is there already: a mistake here must not take the machine's memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


HOSTILE = {
    "builds far more text than a prompt can be: mend or remove it": TOO_MUCH,
    "refuses the messages: .* is not safe": NOT_SAFE,
    "refuses the messages: Range too big": ["{% for i in range(10**6) %}{% endfor %}"],
    "refuses the messages: 'lipsum' is undefined": ["{{ lipsum() }}"],
    "is not valid Jinja: No filter named": LEFT_OUT,
}


@pytest.mark.parametrize(
    ("template", "saying"),
    [(template, saying) for saying, templates in HOSTILE.items() for template in templates],
)
def test_what_would_take_all_memory(template: str, saying: str) -> None:
    with pytest.raises(FptqError, match=saying) as caught:
        ChatTemplate(template, file="a.jinja").render(MESSAGES)
    assert str(caught.value).startswith("the model's chat template (a.jinja) ")
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)
