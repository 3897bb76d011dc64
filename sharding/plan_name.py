"""A plan's name is its syntax: what a plan is called, and which plan a name means.

`61x32 a:16t·2r f:32t m:2e·16t row` is 61 stages of 32 chips: attention 16 ways over `tensor`, in 2
copies, and so on. Equal plans have one name, different plans different names; the grammar is in
`docs/notation.md`. Whether the degrees fill a group is `legal`'s question. The classes of a plan
are arguments here: they lie above, so that every plan has its name.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from lpu_jax.arguments import described
from lpu_jax.datapath.axis import ALGORITHM_NAMES, PIPELINED
from lpu_jax.errors import LpuError, PlanError, unknown
from models.layers.linear import Split

Parts = Mapping[str, Any]  #: the classes of a plan's parts, by name

#: Python neither writes nor reads longer whole numbers.
_WHOLE = "[0-9]{1,4300}"
_DIGITS: Mapping[type, str] = MappingProxyType(
    {int: _WHOLE, float: r"([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?"}
)
_GROUP = re.compile(rf"({_WHOLE})x({_WHOLE})(?: |$)")
_DEGREE = re.compile(rf"({_WHOLE})([A-Za-z])")
#: Between degrees in the usual order of axes, as written and as read.
_USUAL, _ANY_USUAL = "·", re.compile("[·.*]")
#: Between degrees in another order: outermost first.
_ORDERED = ">"
#: Between the pool of attention and that of FFNs.
_THEN = "+"
#: What may have spaces around it where a name is read.
_JOINS = re.compile(r"\s*([:·*>/]|\bx\b)\s*|(?<=[0-9][a-z])\s*([.])\s*")


@dataclass(frozen=True, kw_only=True)
class _Option:
    """A field that one of the parts has, and the words around its value."""

    field: str
    before: str = ""
    after: str = ""
    takes: type[int] | type[float] | None = None  #: None: the words of the field's enumeration

    def of(self, part: Any) -> Iterator[str]:
        """Say the value of a part, unless it has none or the default."""
        value = getattr(part, self.field, None)
        if value != getattr(type(part), self.field, None):
            # The shortest digits that are read as the same float.
            yield self.said(repr(value) if self.takes is float else str(value))

    def said(self, value: str) -> str:
        """Put the words around a value."""
        return " ".join(filter(None, (self.before, value, self.after)))

    def owner(self, parts: Parts) -> str:
        """Name the part that has the field."""
        return next(name for name, part in parts.items() if hasattr(part, self.field))

    def words(self, parts: Parts) -> Any:
        """Return the enumeration that its value is of; none for numbers."""
        (kind,) = (f.type for f in fields(parts[self.owner(parts)]) if f.name == self.field)
        return () if self.takes is not None else kind

    def pattern(self, parts: Parts) -> str:
        """Make what reads it; the value is the group."""
        if self.takes is not None:
            return rf"{self.before}(?: (\S+))?"
        return self.said(f"({'|'.join(self.words(parts))})")

    def value(self, text: str | None, parts: Parts) -> Any:
        """Read the value as the field takes it."""
        if self.takes is None:
            return self.words(parts)(text)
        if text is None or re.fullmatch(_DIGITS[self.takes], text) is None:
            kind = "a whole number" if self.takes is int else "a number"
            given = "nothing" if text is None else described(text)
            raise PlanError(f"{given} is behind {self.before!r}; it must be {kind}.")
        return self.takes(text)


#: In the order of a name, in which they are also tried: "capacity slots" is a rule, "capacity 2"
#: are rows of a slot.
_OPTIONS = (
    _Option(field="slots", before="slots", takes=int),
    _Option(field="slot_rule", after="slots"),
    _Option(field="capacity", before="capacity", takes=int),
    _Option(field="overflow", before="overflow", takes=float),
    _Option(field="dispatch"),
)


# --- written --------------------------------------------------------------------------------------


def name_of(plan: Any) -> str:
    """Return the name of a plan: its group, its parts, then what is not the default.

    Parts that chips split have one split of output projections together, or if they differ one
    each. Where one adds by a rule that one chip has too, all parts with such a projection have.
    """
    parts = plan.parts.values()
    named = [part for part in parts if part.has_output]
    if not any(part.split.rules_one_chip for part in named):
        named = [part for part in named if part.output_ways > 1]
    splits = [str(part.split) for part in named]
    words = []
    for number, pool in enumerate(plan.pools):
        own = [part for name, part in plan.parts.items() if plan.pool_of(name) == number]
        words += [_THEN] * (number > 0)
        words += [f"{pool.stages}x{pool.group_chips}", *map(_degrees_of, own)]
    if splits:
        words.append(splits[0] if len(set(splits)) == 1 else "/".join(splits))
    words += [said for part in parts for option in _OPTIONS for said in option.of(part)]
    if plan.collective != type(plan).collective:
        words.append(plan.collective)
    return " ".join(words)


def _degrees_of(part: Any) -> str:
    """Return its letter, then the degrees above one."""
    ways = {
        axis.name: f"{degree}{axis.letter}"
        for axis in part.axes
        if (degree := getattr(part, axis.name)) > 1
    }
    if part.order == type(part).order:
        return f"{part.letter}:{_USUAL.join(ways.values()) or '1'}"
    return f"{part.letter}:{_ORDERED.join(ways[axis] for axis in part.order if axis in ways)}"


# --- read -----------------------------------------------------------------------------------------


def begins_as_name(text: str) -> bool:
    """Whether a text begins with stages x chips, as the name of a plan does."""
    return _GROUP.match(_joined(text)) is not None


def plan_named(name: object, plan: Any, parts: Parts, pool: Any) -> Any:
    """Return the plan that a name means.

    Args:
        name: as `name_of` writes it. Degrees may have `.` or `*` between them instead of `·`, what
            stands behind the group may come in any order, and a default may be said or left out.
        plan: the class of plans.
        parts: those of its parts.
        pool: that of its second pool.

    Raises:
        PlanError: says which word is not understood, and what is allowed.
    """
    if not isinstance(name, str):
        raise PlanError(f"the name of a plan is {described(name)}; it must be a string.")
    try:
        return _read(_joined(name), plan, parts, pool)
    except LpuError as error:
        raise PlanError(f"plan {described(name)}: {error}") from None


def _joined(name: str) -> str:
    """Leave one space between words, and none inside."""
    return " ".join(_JOINS.sub(r"\1\2", name).split())


def _read(words: str, plan: Any, parts: Parts, pool: Any) -> Any:
    group = _GROUP.match(words)
    if group is None:
        raise PlanError("it must begin with the number of stages x chips of each, such as 61x32.")
    said: dict[str, Any] = {}
    for field, value in _said(words[group.end() :], parts):
        if field in said:
            raise PlanError(f"{field} is given twice; once is allowed.")
        said[field] = value
    if "ffn" in said:
        stages, chips = map(int, said["ffn"].split("x"))
        said["ffn"] = pool(stages=stages, group_chips=chips)
    shards = {name: _shard(said.pop(name), part) for name, part in parts.items() if name in said}
    needed = {field.name for field in fields(plan) if field.default is MISSING}
    for name, part in parts.items():
        if name in needed and name not in shards:
            raise PlanError(
                f"{name} is missing; it must have a part such as {part.letter}:{group[2]}t, or "
                f"{part.letter}:1 on one chip."
            )
    _take_splits(shards, said.pop("split", None))
    for option in (one for one in _OPTIONS if one.field in said):
        owner, value = option.owner(parts), option.value(said.pop(option.field), parts)
        if owner not in shards:
            raise PlanError(
                f"{option.field} is of {owner}, and there is no part {parts[owner].letter}:."
            )
        shards[owner] = replace(shards[owner], **{option.field: value})
    return plan(stages=int(group[1]), group_chips=int(group[2]), **shards, **said)


def _said(words: str, parts: Parts) -> Iterator[tuple[str, str | None]]:
    """Read what stands behind the group: each time a field, and the text of its value."""
    split = f"(?:{'|'.join(Split)})"
    patterns = {
        **{name: rf"{part.letter}:(\S*)" for name, part in parts.items()},
        "ffn": rf"{re.escape(_THEN)} ({_WHOLE}x{_WHOLE})",
        "split": f"({split}(?:/{split})*)",
        **{option.field: option.pattern(parts) for option in _OPTIONS},
        "collective": rf"((?:{'|'.join(ALGORITHM_NAMES)})(?:{re.escape(PIPELINED)})?)",
    }
    while words:
        found = ((field, re.match(f"{patterns[field]}(?: |$)", words)) for field in patterns)
        field, match = next((one for one in found if one[1]), ("", None))
        if match is None:
            raise _not_understood(words.split()[0], parts)
        yield field, match[1]
        words = words[match.end() :]


def _not_understood(word: str, parts: Parts) -> LpuError:
    if ":" in word:
        return unknown("part", word, (f"{part.letter}:" for part in parts.values()))
    options = (one.said(value) for one in _OPTIONS for value in one.words(parts) or [""])
    return unknown("word", word, {*Split, *options, *ALGORITHM_NAMES})


def _shard(text: str, part: Any) -> Any:
    """Read the degrees of a part, and their order if it is not the usual one."""
    if text == "1":
        return part()
    axes: dict[str, str] = {axis.letter: axis.name for axis in part().axes}
    degrees: dict[str, int] = {}
    for piece in text.split(_ORDERED) if _ORDERED in text else _ANY_USUAL.split(text):
        degree = _DEGREE.fullmatch(piece)
        if degree is None or degree[2] not in axes:
            raise PlanError(
                f"{described(piece)} of '{part.letter}:' is not understood; it must be a number "
                f"and one of {_listed(axes)}, with · or . between them, or > to give their order."
            )
        axis = axes[degree[2]]
        if axis in degrees:
            raise PlanError(f"{part.part} {axis} is given twice; once is allowed.")
        degrees[axis] = int(degree[1])
    return part(**degrees, **({"order": tuple(degrees)} if _ORDERED in text else {}))


def _listed(axes: Mapping[str, str]) -> str:
    return ", ".join(f"{letter} {name}" for letter, name in axes.items())


def _take_splits(shards: dict[str, Any], text: str | None) -> None:
    """Give parts their splits: one for all, or one for each part that chips split.

    Where one is a rule of one chip too, several are of all parts with an output projection.
    """
    if text is None:
        return
    splits = [Split(word) for word in text.split("/")]
    named = [name for name, shard in shards.items() if shard.has_output]
    if not any(split.rules_one_chip for split in splits):
        named = [name for name in named if shards[name].output_ways > 1]
    if len(splits) == 1:
        splits = splits * len(named)
    if len(splits) != len(named):
        raise PlanError(
            f"{text} are {len(splits)} splits; it must be one, or one for each of the parts that "
            f"chips split: {', '.join(named) or 'none'}."
        )
    for name, split in zip(named, splits, strict=True):
        shards[name] = replace(shards[name], split=split)
