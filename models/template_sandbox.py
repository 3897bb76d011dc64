"""The sandbox of chat templates: what one may reach, and how much it may do.

A template is a program of whoever made the checkpoint. It cannot change what it is given, read
attributes that begin with `_`, or name a file; every loop, string and number that it makes is paid
from one budget. Not bounded: how much one filter copies from a list of long strings.
"""

import json
import re
from collections.abc import Callable, Mapping, Sized
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_format
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

#: What a template may spend: characters, entries of lists, bits of numbers. No context is as long.
_BUDGET = 100_000_000
#: Price of a turn of a loop and of a call of a macro, beside the characters written in it.
_TURN = 500
#: Methods of a text and filters that can make a text much longer.
_GROWING_METHODS = ("center", "ljust", "rjust", "zfill", "expandtabs", "replace", "join")
_GROWING_FILTERS = ("center", "indent", "wordwrap", "replace", "join", "tojson")
#: In a format: a width of five digits or more, or one that is taken from an argument.
_WIDE = re.compile(r"\d{5}|\*|\{[^{}]*\{")


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Jinja with the settings and helpers of Hugging Face's `apply_chat_template`, for one use."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            finalize=self._written,
        )
        self._left = _BUDGET
        self.filters["tojson"] = _to_json
        for name in _GROWING_FILTERS:
            self.filters[name] = self._paid_filter(name, self.filters[name])
        self.filters["format"] = _format
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def text(self, source: str, given: Mapping[str, Any]) -> str:
        """Run a template.

        Raises:
            TemplateError: it is not valid, refuses what it is given, or does too much. A template
                is a program, so it may raise anything else too.
        """
        pieces: list[str] = []
        for piece in self.from_string(source).generate(given):
            self.spend(len(piece))
            pieces.append(piece)
        return "".join(pieces)

    def spend(self, amount: int) -> None:
        """Pay for what is about to be made.

        Raises:
            TemplateError: there is less left.
        """
        self._left -= amount
        if self._left < 0:
            raise TemplateError("it loops too often, or makes strings or numbers that are too long")

    def concatenated(self, *parts: Any) -> str:
        """Join strings: what `a ~ b` is turned into."""
        texts = [str(part) for part in parts]
        self.spend(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute with two values, once the result is paid for."""
        if operator == "%" and isinstance(left, str):
            _refuse_wide(left)
        elif operator == "**":
            self.spend(_length(left) * (max(0, right) if isinstance(right, int) else 1))
        elif operator == "*" and isinstance(left, Sized) and isinstance(right, int):
            self.spend(_length(left) * max(0, right))
        elif operator == "*" and isinstance(left, int) and isinstance(right, Sized):
            self.spend(max(0, left) * _length(right))
        else:
            self.spend(_length(left) + _length(right))
        return super().call_binop(context, operator, left, right)

    def call(*args: Any, **named: Any) -> Any:
        """Call a function; what a method of a string makes is paid for first."""
        self, context, called, *given = args
        text, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
        if isinstance(text, str) and name in _GROWING_METHODS:
            given = self._paid(name, text, *given, *named.values())
            named = {}
        return super(TemplateSandbox, self).call(context, called, *given, **named)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Refuse formats that make a string much longer."""
        formatted = super().wrap_str_format(value)
        if formatted is not None:
            _refuse_wide(value.__self__)
        return formatted

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Metered().visit(super()._parse(source, name, filename))
        return tree.set_environment(self)  # type: ignore[return-value]

    def _written(self, value: Any) -> Any:
        if isinstance(value, str):
            self.spend(len(value))
        return value

    def _paid_filter(self, name: str, growing: Callable[..., Any]) -> Callable[..., Any]:
        n_before = int(hasattr(growing, "jinja_pass_arg"))  # of Jinja's own arguments

        @wraps(growing)  # keeps the mark
        def filtered(*args: Any, **named: Any) -> Any:
            value, *given = args[n_before:]
            if name == "join":
                value = list(value)
                self._paid("join", str(given[0]) if given else str(named.get("d", "")), value)
            else:
                self._paid(name, value, *given, *named.values())
            return growing(*args[:n_before], value, *given, **named)

        return filtered

    def _paid(self, name: str, text: Any, *given: Any) -> tuple[Any, ...]:
        """Pay for a growing text, at the most that it can be; return what else was given."""
        match name, given:
            case "join", (parts, *_):
                parts = list(parts)
                self.spend(sum(len(str(part)) + len(text) for part in parts))
                return (parts,)
            case "replace", (old, new, *_):
                self.spend(len(str(text)) + str(text).count(str(old)) * len(str(new)))
            case _:
                longest = _length(text)
                for value in given:
                    longest *= max(1, abs(value) if isinstance(value, int) else _length(value))
                self.spend(longest)
        return given


class _Metered(NodeTransformer):
    """Make loops and macros pay for every turn, and `~` for what it joins.

    Jinja finds a method by the name of the node that it visits.
    """

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._paying(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._paying(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._paying(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("concatenated", node.nodes, node.lineno)

    def _paying(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        written = sum(len(text.data) for text in node.find_all(nodes.TemplateData))
        price = nodes.Const(_TURN + written, lineno=node.lineno)
        call = _call("spend", [price], node.lineno)
        node.body.insert(0, nodes.ExprStmt(call, lineno=node.lineno))
        return node  # type: ignore[no-any-return]


def _call(method: str, arguments: list[Any], lineno: int) -> nodes.Call:
    function = nodes.EnvironmentAttribute(method, lineno=lineno)
    return nodes.Call(function, arguments, [], None, None, lineno=lineno)


class _Generation(Extension):
    """`{% generation %}` marks what an assistant said, for training: its content is kept as is."""

    tags = {"generation"}  # noqa: RUF012 (the attribute that Jinja reads)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _length(value: Any) -> int:
    """Characters, entries or bits."""
    if isinstance(value, int):
        return value.bit_length()
    return len(value) if isinstance(value, Sized) else 1


def _refuse_wide(text: str) -> None:
    if _WIDE.search(text):
        raise TemplateError("a format may not have widths above 9999 or from arguments")


def _format(value: Any, *args: Any, **named: Any) -> str:
    _refuse_wide(str(value))
    return do_format(value, *args, **named)


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
