"""Rows for other programs: columns of a spreadsheet, a DataFrame, a table in a notebook.

All of them read the plain values that `as_dict` gives and `--json` writes. Not here: the
text for a terminal, and pictures.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from lpu_jax.arguments import described
from lpu_jax.errors import LpuError
from lpu_jax.quantities import format_bytes, format_seconds

from .. import report
from ..files import write_file
from .chip_figures import FIGURES

#: Columns that stand before all other values of a row.
_FIRST = ("name", "chips", "stages", "fits", "reason")
#: A spreadsheet takes text that begins with one of these for a formula, and runs it.
_BEGIN_FORMULAS = tuple("=+-@\t\r\n")
#: Cells inherit the colour of their text, so that a notebook may be light or dark.
_TABLE_STYLE = "border-collapse:collapse;text-align:right;font-variant-numeric:tabular-nums"
_LINE_STYLE = "border-top:1px solid rgba(128,128,128,.4)"
_LEFT, _NOTE_STYLE = "text-align:left", "text-align:left;opacity:.75"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Rows as plain values, each with what was asked."""

    headings: Mapping[str, Any]  #: what was asked of some row: its columns are there without rows
    rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]  #: best first


def asked_rows(comparison: Mapping[str, Any]) -> Asked:
    """Give each row of a comparison what was asked.

    Args:
        comparison: its plain values.
    """
    asked = {
        "model": comparison["model"]["name"],
        "policy": comparison["model"]["policy"],
        "system": comparison["system"]["name"],
        "objective": comparison["objective"],
        "request": comparison["request"],
        **{name: comparison[name] for name in FIGURES if name in comparison},
    }
    return Asked(headings=asked, rows=[(asked, row) for row in comparison["rows"]])


def flat_rows(found: Asked) -> tuple[list[str], list[dict[str, Any]]]:
    """Lay rows out in columns, each with its number and what was asked.

    A value inside another is a column `outer.inner`, such as `memory_bytes.weights`; the ends of a
    range are `.low` and `.high`, the members of a list `.0`, `.1` and so on; a list of words, such
    as an order of axes, is one text.

    Returns:
        The names of the columns, and the rows; where a row has no value it has None.
    """
    flat = [
        dict(_leaves({"row": number, **asked, **{name: row[name] for name in _FIRST}, **row}))
        for number, (asked, row) in enumerate(found.rows, 1)
    ]
    headings = [name for name, _ in _leaves({"row": None, **found.headings})]
    names = dict.fromkeys([*headings, *(name for row in flat for name in row)])
    # What is None in one row and has parts in another has the columns of its parts.
    has_parts = {name for name in names if any(other.startswith(f"{name}.") for other in names)}
    columns = [name for name in names if name not in has_parts]
    return columns, [{name: row.get(name) for name in columns} for row in flat]


def _leaves(values: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """Name every value that has no parts."""
    for key, value in values.items():
        name, parts = f"{within}{key}", _parts(value)
        if parts is not None:
            yield from _leaves(parts, f"{name}.")
        elif isinstance(value, list | tuple):
            yield name, "; ".join(map(str, value))
        else:
            yield name, str(value) if isinstance(value, str) else value  # no enumerations


def _parts(value: Any) -> Mapping[str, Any] | None:
    """Name the parts of a value; None: it has none that need a column each."""
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, list | tuple):
        return None
    if len(value) == 2 and all(isinstance(end, int | float) for end in value):
        return {"low": value[0], "high": value[1]}
    if value and all(isinstance(part, Mapping) for part in value):
        return {str(number): part for number, part in enumerate(value)}
    return None


def csv_to(path: str | Path | None, found: Asked) -> str | None:
    """Write rows as CSV into a file, or return it where there is no path.

    Raises:
        LpuError: what is no path, or the file cannot be written.
    """
    text = csv_text(found)
    if path is None:
        return text
    if not isinstance(path, str | Path):
        raise LpuError(f"path is {described(path)}; CSV goes to the path of a file.")
    write_file(Path(path), text)
    return None


def csv_text(found: Asked) -> str:
    """Write the columns of `flat_rows` as CSV; None is an empty cell."""
    columns, rows = flat_rows(found)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row[name]) for name in columns] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Keep text from being run as a formula: the name of a model is whatever its file says."""
    is_formula = isinstance(value, str) and value.startswith(_BEGIN_FORMULAS)
    return f"'{value}" if is_formula else value


def dataframe(found: Asked) -> Any:
    """Make a `pandas.DataFrame` of the columns of `flat_rows`.

    Raises:
        LpuError: pandas is not installed.
    """
    try:
        import pandas
    except ModuleNotFoundError:
        raise LpuError("pandas is not installed; `pip install pandas` installs it.") from None
    columns, rows = flat_rows(found)
    return pandas.DataFrame(rows, columns=columns)


def html_table(comparison: Mapping[str, Any]) -> str:
    """Write the rows as an HTML table without scripts, for a notebook."""
    model, system = comparison["model"], comparison["system"]
    request, memory = comparison["request"], system["memory"]
    caption = (
        f"{model['name']}, weights {model['policy']}, on {system['name']} "
        f"({system['chips']} chips); batch {request['batch']}, context {request['context']}; "
        f"ranked by {comparison['objective']}"
    )
    step = "token" if request["acceptance"] is None else "step"
    right = ("#", "chips", memory, step, "over constants", "tok/s user", "tok/s total")
    headings = [(name, "") for name in right] + [("fits", _LEFT)]
    headings.insert(1, ("plan", _LEFT))
    body = [_html_cells(number, row) for number, row in enumerate(comparison["rows"], 1)]
    assumed = (
        f"Modelled: {len(comparison['assumed'])} constants of {system['name']} are assumed. "
        f"Over constants: all uncertain ones at their favourable..unfavourable ends."
    )
    styles = [style for _, style in headings]
    return "".join(
        [
            f'<table style="{_TABLE_STYLE}">',
            f'<caption style="{_LEFT}">{escape(caption)}</caption>',
            f"<thead>{_html_row('th', zip((name for name, _ in headings), styles, strict=True))}",
            "</thead><tbody>",
            *(_html_row("td", zip(cells, styles, strict=True), _LINE_STYLE) for cells in body),
            "</tbody></table>",
            *(
                f'<div style="{_NOTE_STYLE}">{escape(note)}</div>'
                for note in (system["note"], assumed)
                if note
            ),
        ]
    )


def _html_cells(number: int, row: Mapping[str, Any]) -> Sequence[str]:
    low_s, high_s = row["decode_latency_range_s"]
    short = f"{row['reason']} (short of {format_bytes(row['short_bytes'])})"
    return (
        str(number),
        row["name"],
        str(row["chips"]),
        f"{row['sram_used_fraction']:.1%}",
        format_seconds(row["decode_latency_s"]),
        f"{format_seconds(low_s)}..{format_seconds(high_s)}",
        report.brief_rate(row["tokens_per_s_per_user"]),
        report.brief_rate(row["tokens_per_s_total"]),
        "yes" if row["fits"] else short,
    )


def _html_row(tag: str, cells: Iterable[tuple[str, str]], style: str = "") -> str:
    """Write one row; each cell is a text and its style."""
    inner = "".join(f"<{tag}{_styled(own)}>{escape(text)}</{tag}>" for text, own in cells)
    return f"<tr{_styled(style)}>{inner}</tr>"


def _styled(style: str) -> str:
    return f' style="{style}"' if style else ""
