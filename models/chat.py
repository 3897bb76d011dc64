"""Chat templates: messages to the text that a model was trained to continue.

A template comes with a checkpoint and is not trusted: it runs in Jinja's sandbox with the settings
and helpers that Hugging Face's `apply_chat_template` gives it. Tools, documents and images are not
passed to it. Control tokens inside a message are not escaped, as there.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lpu_jax.errors import LpuError

#: Characters of a template's complaint that are repeated.
_SAID = 200


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str  #: "system", "user" or "assistant"
    content: str


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A chat template and the special tokens it may name, such as `bos_token`."""

    source: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """Lay messages out as text.

        Args:
            messages: the conversation, oldest first.
            answer: end with what begins the assistant's turn (`add_generation_prompt`).

        Raises:
            LpuError: the template is not valid, refuses these messages, or fails.
        """
        conversation = [{"role": one.role, "content": one.content} for one in messages]
        # Templates test whether special tokens are defined, so absent ones are left out.
        given: dict[str, Any] = dict(self.special_tokens)
        given |= {"messages": conversation, "add_generation_prompt": answer}
        given |= {"tools": None, "documents": None}
        try:
            return _environment().from_string(self.source).render(given)
        except Exception as problem:  # a template is a program: it may raise anything
            said = " ".join(str(problem).split())[:_SAID] or type(problem).__name__
            raise LpuError(f"the model's chat template failed: {said.rstrip('.')}.") from problem


def chat_prompt(
    template: ChatTemplate | None, prompt: str, system_prompt: str | None = None
) -> str:
    """Put one user's message, and what the system says before it, into a model's chat format.

    Raises:
        LpuError: the model has no template, or as in `ChatTemplate.render`.
    """
    if template is None:
        raise LpuError("the model's files have no chat template; leave --chat out.")
    before = [] if system_prompt is None else [Message(role="system", content=system_prompt)]
    return template.render([*before, Message(role="user", content=prompt)])


class _Generation(Extension):
    """`{% generation %}` marks what an assistant said, for training: its content is kept as is."""

    tags = {"generation"}  # noqa: RUF012 (the attribute that Jinja reads)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """The sandbox: nothing can be changed, and no attribute that begins with `_` be read."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    return made


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON; Jinja's own filter escapes what is special in HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
