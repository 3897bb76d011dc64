"""Where a number comes from: its unit, its status and its source, kept beside its value.

A constant is a dataclass field made by `const`. A variant of a specification replaces some
constants by others with their own provenance (`vary`), so that every number of every variant
keeps its unit, status and source. An assumed number also says what else it could be: a range, or a
list of alternatives (`uncertainty` draws from them). Not modelled: measurement errors of published
numbers; they carry a range only where sources disagree.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from .arguments import described
from .errors import ConfigError
from .predicates import is_number, is_whole

STATUSES = ("published", "derived", "assumed")
#: Sources of numbers that a person gave: they need no range, the person answers for them.
CALLER = "set by the caller"
USER_FILE = "user file"

_METADATA_KEY = "lpu_jax.constant"

SpecT = TypeVar("SpecT", bound=Any)


@dataclass(frozen=True, kw_only=True)
class Constant:
    """One number of the machine with its provenance.

    Attributes:
        name: the field it fills.
        value: the value, in `unit`.
        unit: a base unit: `"B"`, `"s"`, `"Hz"`, `"B/s"`, `"B/cycle"`, `"cycle"`, `"1"`.
        status: `"published"`, `"derived"` (arithmetic on published numbers) or `"assumed"`.
        source: where it was read, or why it is assumed.
        low: lowest plausible value, if a range is known.
        high: highest plausible value, if a range is known.
        options: the plausible values of something that is not a number, `value` among them.
        at_most: name of the constant that this one cannot exceed, if there is one.
        moves_plans: whether the time, the memory or the order of plans can depend on it.
        faster_at: the end of its range, `"low"` or `"high"`, at which no time is longer.
        reading: what decides it together with others: constants of one reading of one source go to
            the same end of their ranges.
    """

    name: str
    value: Any
    unit: str
    status: str
    source: str
    low: int | float | None = None
    high: int | float | None = None
    options: tuple[Any, ...] = ()
    at_most: str = ""
    moves_plans: bool = True
    faster_at: Literal["low", "high", ""] = ""
    reading: str = ""

    @property
    def is_assumed(self) -> bool:
        """Whether no public source states it."""
        return self.status == "assumed"

    @property
    def is_uncertain(self) -> bool:
        """Whether it has a range or alternatives: other values that it could have."""
        return self.low is not None or bool(self.options)

    def __post_init__(self) -> None:
        """Refuse a constant that does not say where it comes from, or what else it could be."""
        if self.status not in STATUSES:
            raise ValueError(f"constant {self.name!r}: status {self.status!r} not in {STATUSES}")
        if not self.unit or not self.source:
            raise ValueError(f"constant {self.name!r} needs a unit and a source")
        if (self.low is None) != (self.high is None):
            raise ValueError(f"constant {self.name!r}: give both ends of its range or none")
        has_range = self.low is not None and self.high is not None
        if has_range and not self.low <= self.value <= self.high:
            raise ValueError(
                f"constant {self.name!r}: {self.value} outside {self.low}..{self.high}"
            )
        if self.options and self.value not in self.options:
            raise ValueError(f"constant {self.name!r}: {self.value} is not among its options")
        # What is not known at all is None: nothing is assumed then.
        given = self.value is None or self.source.startswith((CALLER, USER_FILE))
        if self.is_assumed and not (self.is_uncertain or given):
            raise ValueError(
                f"constant {self.name!r} is assumed: give its range (low, high) or its options"
            )

    def as_dict(self) -> dict[str, Any]:
        """The constant as plain values, for JSON; its value and its options as text."""
        return {
            **vars(self),
            "value": str(self.value),
            "options": [str(option) for option in self.options],
        }


def assumed(constants: Iterable[Constant]) -> tuple[Constant, ...]:
    """Those of some constants that no public source states."""
    return tuple(constant for constant in constants if constant.is_assumed)


def weakest(statuses: Iterable[str]) -> str:
    """The weakest of statuses, published before derived before assumed; `-` (no constant) if none.

    Args:
        statuses: of `STATUSES`, or `-`.
    """
    return max((s for s in statuses if s != "-"), key=STATUSES.index, default="-")


def const(
    value: object,
    unit: str,
    status: str,
    source: str,
    low: int | float | None = None,
    high: int | float | None = None,
    *,
    options: tuple[Any, ...] = (),
    at_most: str = "",
    moves_plans: bool = True,
    faster_at: Literal["low", "high", ""] = "",
    reading: str = "",
) -> Any:
    """Declare a dataclass field that is a constant of the machine.

    Args:
        value: the default, in `unit`.
        unit: a base unit.
        status: `"published"`, `"derived"` or `"assumed"`.
        source: where it was read, or why it is assumed.
        low: lowest plausible value.
        high: highest plausible value.
        options: the plausible values of something that is not a number.
        at_most: name of the field that this one cannot exceed.
        moves_plans: whether the time, the memory or the order of plans can depend on it.
        faster_at: the end of a range at which no time is longer: of this field, whoever gives the
            range.
        reading: what decides it together with others.

    Returns:
        A `dataclasses.field` with the provenance in its metadata.

    Raises:
        ValueError: if the status is unknown, the unit or source is empty, the value lies outside
            its own range or options, or it is assumed and has neither.
    """
    constant = Constant(
        name="?",
        value=value,
        unit=unit,
        status=status,
        source=source,
        low=low,
        high=high,
        options=options,
        at_most=at_most,
        moves_plans=moves_plans,
        faster_at=faster_at,
        reading=reading,
    )
    return dataclasses.field(default=value, metadata={_METADATA_KEY: constant})


def constants_of(spec: Any) -> tuple[Constant, ...]:
    """List the constants of a specification, each with the provenance of this very variant.

    A value that was changed without `vary` (by `dataclasses.replace`) is reported as assumed and
    set by the caller: it never borrows the source of the old value.

    Args:
        spec: a dataclass instance with fields made by `const`.

    Returns:
        One `Constant` per such field, in the order of the fields.
    """
    replaced = {constant.name: constant for constant in getattr(spec, "replaced", ())}
    constants = []
    for field in dataclasses.fields(spec):
        if _METADATA_KEY not in field.metadata:
            continue
        declared: Constant = field.metadata[_METADATA_KEY]
        constant = replaced.get(field.name, dataclasses.replace(declared, name=field.name))
        value = getattr(spec, field.name)
        if constant.value != value:
            constant = Constant(
                name=field.name,
                value=value,
                unit=declared.unit,
                status="assumed",
                source=CALLER,
                at_most=declared.at_most,
            )
        # Properties of the field, which a variant's constant does not state again.
        constants.append(
            dataclasses.replace(
                constant,
                moves_plans=declared.moves_plans,
                faster_at=declared.faster_at,
                reading=declared.reading,
            )
        )
    return tuple(constants)


def check_constants(spec: Any) -> None:
    """Refuse numbers that no machine has: for `__post_init__` of a specification.

    A constant is of its field's type: whole, or any finite number, or None. It is above 0 where its
    default is and 0 is not in its range, and at most 1 where it is a share.

    Raises:
        ConfigError: with the first such number.
    """
    for field in dataclasses.fields(spec):
        declared: Constant | None = field.metadata.get(_METADATA_KEY)
        if declared is None:
            continue
        value, default = getattr(spec, field.name), declared.value
        if value is None and (default is None or "None" in str(field.type)):
            continue
        if isinstance(default, str) and declared.options and value not in declared.options:
            allowed = " or ".join(map(repr, declared.options))
            raise ConfigError(
                f"{type(spec).__name__}.{field.name} is {described(value)}; it must be {allowed}."
            )
        if isinstance(default, bool) or not isinstance(default, int | float):
            continue
        must_be_whole = "float" not in str(field.type)
        is_right = is_whole(value) if must_be_whole else is_number(value)
        least_is_zero = default == 0 or declared.low == 0
        words = "a whole number" if must_be_whole else "a number"
        words += " of at least 0" if least_is_zero else " above 0"
        if is_right:
            is_right = value >= 0 if least_is_zero else value > 0
        if isinstance(default, float) and declared.unit == "1":
            words += " and at most 1"
            is_right = is_right and value <= 1
        if not is_right:
            raise ConfigError(
                f"{type(spec).__name__}.{field.name} is {described(value)}; it must be {words}."
            )


def vary(
    spec: SpecT,
    *changes: Constant,
    unchanged: str | None = None,
    ranges: Mapping[str, tuple[int | float, int | float]] | None = None,
    **others: Any,
) -> SpecT:
    """Make a variant of a specification in which every number states its own source.

    Args:
        spec: a frozen dataclass with fields made by `const` and a field `replaced`.
        *changes: the constants that differ.
        unchanged: if given, every other constant becomes assumed, with this as its source: its
            value is known for `spec`, not for the variant.
        ranges: lowest and highest plausible value, by name, of constants that thereby become
            assumed; those that have a range in `spec` may keep it.
        **others: fields that are not constants, such as `name`.

    Returns:
        The variant; `spec` is not touched.

    Raises:
        ValueError: if a change or a range names no constant of `spec`, or a constant becomes
            assumed without a range.
    """
    before = {constant.name: constant for constant in constants_of(spec)}
    changed = {change.name: change for change in changes}
    for name in (*changed, *(ranges or {})):
        if name not in before:
            raise ValueError(f"{type(spec).__name__} has no constant {name!r}")
    after = before | changed
    if unchanged is not None:
        for name, constant in before.items():
            if name not in changed:
                low, high = (ranges or {}).get(name, (constant.low, constant.high))
                after[name] = dataclasses.replace(
                    constant, status="assumed", source=unchanged, low=low, high=high
                )
    values = {name: change.value for name, change in changed.items()}
    return dataclasses.replace(spec, **values, **others, replaced=tuple(after.values()))
