"""Where a number comes from: its unit, its status and its source, kept beside its value.

A constant is a dataclass field made by `const`. A variant of a specification replaces some
constants by others with their own provenance (`vary`), so that every number of every variant
keeps its unit, status and source. What is not modelled: the uncertainty of published numbers;
only assumed ones carry a range.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

STATUSES = ("published", "derived", "assumed")

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
    """

    name: str
    value: Any
    unit: str
    status: str
    source: str
    low: int | float | None = None
    high: int | float | None = None

    def __post_init__(self) -> None:
        """Refuse a constant that does not say where it comes from."""
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


def const(
    value: object,
    unit: str,
    status: str,
    source: str,
    low: int | float | None = None,
    high: int | float | None = None,
) -> Any:
    """Declare a dataclass field that is a constant of the machine.

    Args:
        value: the default, in `unit`.
        unit: a base unit.
        status: `"published"`, `"derived"` or `"assumed"`.
        source: where it was read, or why it is assumed.
        low: lowest plausible value.
        high: highest plausible value.

    Returns:
        A `dataclasses.field` with the provenance in its metadata.

    Raises:
        ValueError: if the status is unknown, the unit or source is empty, or the value lies
            outside its own range.
    """
    constant = Constant(
        name="?", value=value, unit=unit, status=status, source=source, low=low, high=high
    )
    return dataclasses.field(default=value, metadata={_METADATA_KEY: constant})


def constants_of(spec: Any) -> tuple[Constant, ...]:
    """List the constants of a specification, each with the provenance of this very variant.

    A value that was changed without `vary` (by `dataclasses.replace`, in a sensitivity analysis)
    is reported as assumed and set by the caller: it never borrows the source of the old value.

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
                source="set by the caller",
            )
        constants.append(constant)
    return tuple(constants)


def vary(spec: SpecT, *changes: Constant, unchanged: str | None = None, **others: Any) -> SpecT:
    """Make a variant of a specification in which every number states its own source.

    Args:
        spec: a frozen dataclass with fields made by `const` and a field `replaced`.
        *changes: the constants that differ.
        unchanged: if given, every other constant becomes assumed, with this as its source: its
            value is known for `spec`, not for the variant.
        **others: fields that are not constants, such as `name`.

    Returns:
        The variant; `spec` is not touched.

    Raises:
        ValueError: if a change names no constant of `spec`.
    """
    before = {constant.name: constant for constant in constants_of(spec)}
    for change in changes:
        if change.name not in before:
            raise ValueError(f"{type(spec).__name__} has no constant {change.name!r}")
    after = dict(before)
    if unchanged is not None:
        after = {
            name: dataclasses.replace(constant, status="assumed", source=unchanged)
            for name, constant in before.items()
        }
    after.update({change.name: change for change in changes})
    values = {change.name: change.value for change in changes}
    return dataclasses.replace(spec, **values, **others, replaced=tuple(after.values()))
