"""The table of algorithms: every reader of algorithms, plans and documents included, reads it.

A new algorithm is a row in a file beside this one: its steps are then priced, listed, proven,
chosen and named everywhere. Not modelled: as in `links`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from . import in_node, over_levels, two_levels
from .algorithm import Algorithm

#: By name. Of equally fast ones `auto` takes the first.
ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {row.name: row for row in (*in_node.ROWS, *over_levels.ROWS, *two_levels.ROWS)}
)
#: What `auto` chooses from: all that add in the same order, so that the choice moves no bit.
AUTO = tuple(name for name, row in ALGORITHMS.items() if not row.has_own_order)
#: The one that exists for every run, and for every kind.
EVERYWHERE = over_levels.FLAT3


def as_markdown() -> str:
    """Write the table in words, as `docs/timing.md` has it.

    Returns:
        Lines of Markdown.
    """
    lines = [
        "| algorithm | where | steps of an all-reduce, with the share of V on the busiest link |",
        "|---|---|---|",
    ]
    for row in ALGORITHMS.values():
        where = row.where + (", by name only" if row.has_own_order else "")
        lines.append(f"| `{row.name}` | {where} | {row.steps} |")
    return "\n".join(lines)
