"""Published figures with our own readings beside them, sorted by what kind of figure each is.

A figure that has a tolerance passes or fails; one without stands there to be looked at, because
its source leaves too much open. A vendor's projection never passes or fails. Not modelled: the
uncertainty of a published figure, beyond the tolerance that it is given.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from lpu_jax.provenance import Constant, assumed

from .. import report

#: Readings that differ by more than this factor are explained.
EXPLAINED_FACTOR = 2.0


class Group(StrEnum):
    """What kind of figure it is; the order is that of the tables."""

    MEASURED = "measured"  #: a measurement or a specification that was published
    DERIVED = "derived"  #: arithmetic on published numbers
    PROJECTION = "vendor projection"  #: what a vendor expects; nobody has measured it
    PLANNER = "other planner"  #: what another tool computes


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One published figure and our reading of the same thing."""

    what: str
    source: str
    group: Group
    unit: str
    published: float
    ours: float | None = None  #: None where we cannot read it; the note says why
    tolerance: str = ""  #: in words; empty if it cannot pass or fail
    passed: bool | None = None  #: None if it cannot pass or fail
    note: str = ""
    assumed: tuple[str, ...] = ()  #: assumed constants that our reading rests on
    #: our reading with all uncertain constants at either end; None where none takes part
    ours_range: tuple[float, float] | None = None
    bound: float | None = None  #: what cannot be beaten
    bound_of: str = ""  #: of what it is the bound
    #: what our reading is made of, in its unit: the terms add up to it
    terms: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.passed is None or self.group is not Group.PROJECTION

    @property
    def ratio(self) -> float | None:
        """Ours to the published figure."""
        return None if self.ours is None else self.ours / self.published

    @property
    def differs(self) -> bool:
        """Whether ours and the published figure are more than a factor of 2 apart."""
        ratio = self.ratio
        return ratio is not None and not 1 / EXPLAINED_FACTOR <= ratio <= EXPLAINED_FACTOR

    @property
    def is_outside(self) -> bool:
        """Whether no values of the uncertain constants give the published figure.

        One that is within its tolerance is met, whatever the constants.
        """
        if self.ours_range is None or self.passed:
            return False
        low, high = self.ours_range
        return not low <= self.published <= high

    @property
    def is_finding(self) -> bool:
        """Whether a measurement is outside: the model lacks something, or has it wrong."""
        return self.is_outside and self.group is Group.MEASURED

    def as_dict(self) -> dict[str, Any]:
        """The figure as plain values."""
        return asdict(self) | {
            "group": self.group.value,
            "ratio": self.ratio,
            "outside": self.is_outside,
            "finding": self.is_finding,
            "assumed": list(self.assumed),
        }


def within(
    what: str,
    source: str,
    unit: str,
    published: float,
    ours: float,
    tolerance: float,
    *,
    group: Group = Group.MEASURED,
    **others: Any,
) -> Figure:
    """Make a figure that passes if ours is within a relative tolerance; 0 means exact."""
    return Figure(
        what=what,
        source=source,
        group=group,
        unit=unit,
        published=published,
        ours=ours,
        tolerance=f"{tolerance:.0%}" if tolerance else "exact",
        passed=abs(ours - published) <= tolerance * abs(published),
        **others,
    )


def assumed_names(constants: Iterable[Constant]) -> tuple[str, ...]:
    """Names of the constants that no public source states."""
    return tuple(constant.name for constant in assumed(constants))


def figures_text(title: str, figures: Sequence[Figure]) -> str:
    """The figures as a table, and their notes."""
    made = report.table(
        ("what", "left"),
        ("published", "right"),
        ("ours", "right"),
        ("over constants", "right"),
        ("unit", "left"),
        ("ratio", "right"),
        ("tolerance", "right"),
        ("", "left"),
        ("assumed", "right"),
        ("source", "left"),
        title=title,
    )
    for figure in figures:
        made.add_row(
            figure.what,
            number(figure.published),
            "-" if figure.ours is None else number(figure.ours),
            _range(figure),
            figure.unit,
            "-" if figure.ratio is None else f"{figure.ratio:.3f}",
            figure.tolerance or "-",
            {True: "pass", False: "MISS", None: ""}[figure.passed],
            str(len(figure.assumed)) if figure.assumed else "-",
            figure.source,
        )
    notes = [f"  {figure.what}: {figure.note}" for figure in figures if figure.note]
    return report.render(made, *notes)


def number(value: float) -> str:
    """A number of a figure as text."""
    return f"{value:.6g}"


def _range(figure: Figure) -> str:
    if figure.ours_range is None:
        return "-"
    low, high = figure.ours_range
    return f"{low:.4g}..{high:.4g}" + (" *" if figure.is_outside else "")
