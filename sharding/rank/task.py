"""One scenario of a sweep: what is asked of it, and its answer as JSON lines.

An answer is text, wherever it was made: in this process, in another, or in a file of an earlier
run. Whoever reads it cannot tell which.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lpu_jax.errors import LpuError

from ..report import versions
from ..scenario import Scenario
from ..search.fewest import smallest_part
from ..search.find import INVARIANT
from .compare import compare_in
from .contents import code_digest, digest_of, plain
from .row import Row, row_from_dict
from .wanted import Wanted


@dataclass(frozen=True, kw_only=True)
class Task:
    """A scenario, and what is wanted of its plans; it travels to other processes."""

    scenario: Scenario
    wanted: Wanted
    min_chips: bool  #: on the smallest part of the machine on which something fits

    @property
    def digest(self) -> str:
        """A hash of all that the answer rests on, the code included."""
        return digest_of({"task": plain(self), "code": code_digest(), "versions": versions()})


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of a scenario."""

    system: str  #: the machine, or the part of it that was taken
    policy: str
    batch: int
    refused: str | None = None  #: why it cannot be asked; nothing else is known then
    searched: Mapping[str, Any] | None = None  #: as `Comparison.as_dict` tells it
    nearest: Row | None = None  #: the plan that lacks least, where none fits
    rows: tuple[Row, ...] = ()  #: the best plans that fit, best first

    @property
    def excluded(self) -> str | None:
        """Which limit leaves no plan, though some fit."""
        return None if self.searched is None else self.searched["excluded_by"]

    def as_dict(self) -> dict[str, Any]:
        """The answer without its rows, as plain values."""
        told = ("system", "policy", "batch", "refused", "searched")
        return {name: getattr(self, name) for name in told}


def answer(task: Task) -> str:
    """Search the plans of a scenario.

    Returns:
        JSON lines: the scenario and what was searched, then a line for each plan that fits.
    """
    asked, choices = task.scenario, INVARIANT[task.wanted.invariant]
    refused: str | None = None
    searched, rows = None, []
    try:
        if task.min_chips and (part := smallest_part(asked, choices)) is not None:
            asked = asked.on(part)
        data = compare_in(asked, task.wanted).as_dict()
        searched, rows = data["searched"], data["rows"]
    except LpuError as why:  # such as a draft model that leaves no chips
        refused = str(why)
    about = {
        "system": asked.machine.name,
        "policy": asked.policy.name,
        "batch": asked.request.batch,
        "refused": refused,
        "searched": searched,
    }
    lines = (about, *(row for row in rows if row["fits"]))
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def read_answer(text: str) -> Answer:
    """Read what `answer` wrote."""
    about, *rows = map(json.loads, text.splitlines())
    searched = about["searched"]
    nearest = searched and searched["nearest_that_does_not_fit"]
    return Answer(
        **about,
        nearest=row_from_dict(nearest) if nearest else None,
        rows=tuple(map(row_from_dict, rows)),
    )
