"""Chat templates: against texts written by hand, and what a hostile template cannot do."""

import json
import os
from datetime import datetime
from pathlib import Path

import pytest

from lpu_jax.errors import LpuError
from models import template_sandbox
from models.chat import ChatTemplate, Message, chat_prompt
from models.tokenizer import Tokenizer
from models.weights.fetch import GGUF_NAME
from models.weights.gguf import load_gguf

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("LPU_JAX_WEIGHTS", ROOT / "weights")) / GGUF_NAME

#: ChatML with blocks on lines of their own, as newer checkpoints write theirs.
CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""
TALK = [
    Message(role="system", content="Be brief."),
    Message(role="user", content="Hi!"),
    Message(role="assistant", content="Hello."),
    Message(role="user", content="<b>1 & 2</b>"),
]
#: What CHATML makes of TALK: nothing is escaped, block lines leave no trace.
TALK_TEXT = (
    "<|im_start|>system\nBe brief.<|im_end|>\n"
    "<|im_start|>user\nHi!<|im_end|>\n"
    "<|im_start|>assistant\nHello.<|im_end|>\n"
    "<|im_start|>user\n<b>1 & 2</b><|im_end|>\n"
)


def render(source, messages=TALK, answer=True, **special):
    return ChatTemplate(source=source, special_tokens=special).render(messages, answer=answer)


def test_a_conversation_is_laid_out_as_written():
    assert render(CHATML) == TALK_TEXT + "<|im_start|>assistant\n"
    assert render(CHATML, answer=False) == TALK_TEXT


def test_special_tokens_are_known_if_the_model_has_them():
    source = "{{ bos_token }}{% if eos_token is defined %}{{ eos_token }}{% endif %}"
    assert render(source, bos_token="<s>") == "<s>"
    assert render(source, bos_token="<s>", eos_token="</s>") == "<s></s>"


def test_helpers_of_hugging_face_are_there():
    assert render("{{ strftime_now('%Y') }}") == str(datetime.now().year)
    text = render("{{ {'a': '<é>', 'b': [1, none]} | tojson }}")
    assert text == '{"a": "<é>", "b": [1, null]}'  # neither HTML nor ASCII escapes
    assert json.loads(render("{{ {'b': 1, 'a': 2} | tojson(indent=2) }}")) == {"b": 1, "a": 2}
    loop = "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}"
    assert render(loop + "{% if i == 4 %}{% break %}{% endif %}{% endfor %}") == "0134"
    assert render("a{% generation %}b{{ messages | length }}{% endgeneration %}c") == "ab4c"
    assert render("{% set n = namespace(x=1) %}{% set n.x = n.x + 1 %}{{ n.x }}") == "2"
    assert render("{% if tools %}tools{% endif %}none") == "none"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('Roles must\n alternate.') }}", r"failed: Roles must alternate\.$"),
        ("{% for %}", "chat template failed: Expected an expression"),
        ("{{ messages[99].role }}", "chat template failed: .*has no element 99"),
        ("{{ 1 / 0 }}", "chat template failed: division by zero"),
        ("{{ bos_token + 1 }}", "chat template failed"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "chat template failed: .*range"),
        ("{% include '/etc/passwd' %}", "chat template failed"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "chat template failed: .*recursion"),
    ],
)
def test_a_template_that_fails_is_one_sentence(source, message):
    with pytest.raises(LpuError, match=message) as caught:
        render(source)
    assert "\n" not in str(caught.value)


_DOUBLED = "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = SUM %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10 ** 10 }}",
        "{{ 10 ** 10 * 'a' }}",
        "{{ ([1] * 10 ** 10) | length }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'a'.ljust(10 ** 10) }}",
        "{{ 'a' | center(10 ** 10) }}",
        "{{ 'a\nb' | indent(width=10 ** 10) }}",
        "{{ messages | tojson(indent=10 ** 10) }}",
        "{% set s = 'a' * 10 ** 6 %}{{ s.replace('a', s) }}",
        "{% set s = 'a' * 10 ** 6 %}{{ s | replace('a', s) }}",
        "{% set s = 'a' * 10 ** 6 %}{{ (s | list) | join(s) }}",
        "{% set s = 'a' * 10 ** 6 %}{{ s.join(s) }}",
        "{% set s = 'a' * 10 ** 6 %}{% for i in range(999) %}{{ s }}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set s %}{% for i in range(99999) %}{% for j in range(9999) %}a{% endfor %}{% endfor %}"
        "{% endset %}{{ s }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
        _DOUBLED.replace("SUM", "n.s + n.s"),
        _DOUBLED.replace("SUM", "n.s ~ n.s"),
        _DOUBLED.replace("SUM", "n.s * 2"),
    ],
)
def test_a_template_that_does_too_much_is_stopped(source, monkeypatch):
    monkeypatch.setattr(template_sandbox, "_BUDGET", 3_000_000)  # to be there sooner
    with pytest.raises(LpuError, match="failed: it loops too often, or makes strings or numbers"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (9999999999, 1) }}",
        "{{ '%9999999999d' | format(1) }}",
        "{{ '{:9999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 9999999999) }}",
    ],
)
def test_a_format_is_not_wide(source):
    with pytest.raises(LpuError, match="failed: a format may not have widths above 9999"):
        render(source)


def test_what_is_counted_computes_as_python_does():
    assert render("{{ 2 ** 10 }} {{ 7 % 4 }} {{ 'ab' * 3 }} {{ 1.5 * 2 }} {{ [1] + [2] }}") == (
        "1024 3 ababab 3.0 [1, 2]"
    )
    assert render("{{ 'n: %03d' % 7 }}{{ '{:>3}|{}'.format(1, 2) }}{{ 1 ~ 'a' ~ none }}") == (
        "n: 007  1|21aNone"
    )
    assert render("{{ ', '.join(['a', 'b']) }}{{ 'aXb'.replace('X', '--') }}") == "a, ba--b"
    assert render("{{ messages | map(attribute='role') | join('/') }}") == (
        "system/user/assistant/user"
    )
    assert render("{{ [1, 2] | join }}{{ 'a\nb' | indent(2) }}|{{ 'a' | center(3) }}|") == (
        "12a\n  b| a |"
    )
    loop = "{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}"
    assert render(loop + "{% if loop.last %}.{% endif %}{% endfor %}") == "1/22/2."
    tree = "{% for x in [[1, [2]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}"
    assert render(tree) == "12"
    wrap = "{% macro w(a) %}<{{ a }}{{ caller() }}>{% endmacro %}{% call w(1) %}b{% endcall %}"
    assert render(wrap) == "<1b>"


def test_a_long_conversation_is_within_the_budget():
    talk = [Message(role="user", content="word " * 500)] * 1000
    assert len(render(CHATML, talk, answer=False)) > 2_500_000


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__['json'].dumps }}",
        "{{ strftime_now.__code__.co_filename }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ messages[0].clear() }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ (messages | map(attribute='__class__') | list)[0].__name__.upper() }}",
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
        "{{ lipsum.__globals__['os'].getcwd() }}",
        "{{ self._TemplateReference__context.environment.loader.x }}",
    ],
)
def test_a_hostile_template_reaches_nothing(source):
    """The sandbox refuses private attributes and changes; undefined values of them say nothing."""
    with pytest.raises(LpuError, match="chat template failed"):
        render(source)


def test_messages_are_not_templates():
    hostile = [Message(role="user", content="{{ messages }}{% raw %}")]
    assert render(CHATML, hostile, answer=False) == (
        "<|im_start|>user\n{{ messages }}{% raw %}<|im_end|>\n"
    )


def test_a_prompt_is_one_message_behind_the_systems():
    template = ChatTemplate(source=CHATML)
    assert chat_prompt(template, "a", "b") == (
        "<|im_start|>system\nb<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat_prompt(template, "a") == ("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(LpuError, match="have no chat template; leave --chat out"):
        chat_prompt(None, "a")


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_file(), reason=f"{REAL} is not there; `make weights` fetches it")
def test_the_template_of_a_real_model():
    """The text is what SmolLM2's model card describes; its control tokens are single tokens."""
    model = load_gguf(REAL)
    tokenizer = Tokenizer(model.tokenizer, chat_template=model.chat_template)
    text = chat_prompt(tokenizer.chat_template, "What is the capital of France?")
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    tokens = tokenizer.encode(text, begin=False)
    assert [tokens.count(i) for i in (1, 2)] == [3, 2]  # <|im_start|>, <|im_end|>
    assert 2 in tokenizer.end_tokens
    own = chat_prompt(tokenizer.chat_template, "Hi", "Be brief.")
    assert own.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>")
