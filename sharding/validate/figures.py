"""Published figures with our own readings beside them: one table for checks and for comparisons.

A figure that has a tolerance passes or fails; one without stands there to be looked at, because
its source leaves too much open. Not modelled: the uncertainty of a published figure, beyond the
tolerance that it is given.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lpu_jax.provenance import Constant, assumed

from .. import report


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One published figure and our reading of the same thing."""

    what: str
    source: str
    unit: str
    published: float
    ours: float
    tolerance: str = ""  #: in words; empty if it cannot pass or fail
    passed: bool | None = None  #: None if it cannot pass or fail
    note: str = ""
    assumed: tuple[str, ...] = ()  #: assumed constants that our reading rests on

    @property
    def ratio(self) -> float:
        """Ours to the published figure."""
        return self.ours / self.published

    def as_dict(self) -> dict[str, Any]:
        """The figure as plain values."""
        return asdict(self) | {"ratio": self.ratio, "assumed": list(self.assumed)}


def within(
    what: str,
    source: str,
    unit: str,
    published: float,
    ours: float,
    tolerance: float,
    **others: Any,
) -> Figure:
    """Make a figure that passes if ours is within a relative tolerance; 0 means exact."""
    return Figure(
        what=what,
        source=source,
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
            f"{figure.published:.6g}",
            f"{figure.ours:.6g}",
            figure.unit,
            f"{figure.ratio:.3f}",
            figure.tolerance or "-",
            {True: "pass", False: "MISS", None: ""}[figure.passed],
            str(len(figure.assumed)) if figure.assumed else "-",
            figure.source,
        )
    notes = [f"  {figure.what}: {figure.note}" for figure in figures if figure.note]
    return report.render(made, *notes)
