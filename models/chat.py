"""Chat templates: messages to the text that a model was trained to continue.

A template comes with a checkpoint and is not trusted: it runs in a sandbox with a budget, with the
settings and helpers that Hugging Face's `apply_chat_template` gives it. Tools, documents and images
are not passed to it. Control tokens inside a message are not escaped, as there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lpu_jax.errors import LpuError

from .template_sandbox import TemplateSandbox

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
            return TemplateSandbox().text(self.source, given)
        except Exception as problem:  # a template is a program: it may raise anything
            said = " ".join(str(problem).split())[:_SAID] or type(problem).__name__
            raise LpuError(f"the model's chat template failed: {said.rstrip('.')}.") from problem


def chat_prompt(
    template: ChatTemplate | None, prompt: str, system_prompt: str | None = None
) -> str:
    """Put a user's message, and the system message before it, into a model's chat format.

    Raises:
        LpuError: the model has no template, or as in `ChatTemplate.render`.
    """
    if template is None:
        raise LpuError("the model's files have no chat template; leave --chat out.")
    before = [] if system_prompt is None else [Message(role="system", content=system_prompt)]
    return template.render([*before, Message(role="user", content=prompt)])
