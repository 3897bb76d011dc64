"""Results as text for a terminal: the table of a comparison, a memory map, numerical checks."""

from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from lpu_jax.quantities import format_bytes, format_count, format_seconds
from lpu_jax.system import System
from models.params import n_parameters

if TYPE_CHECKING:
    from .compare import Comparison, Row
    from .generate import Generation
    from .plan import Plan

#: Width of tables when the terminal does not say: piped output must not be cut.
TEXT_WIDTH = 200


def render(*parts: Any) -> str:
    """Lay out tables and lines as plain text."""
    console = Console(width=TEXT_WIDTH, no_color=True, highlight=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part, markup=False) if isinstance(part, str) else console.print(part)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def table(*columns: tuple[str, str], title: str | None = None) -> Table:
    """Make a table; each column is a heading and `left` or `right`."""
    made = Table(
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        pad_edge=False,
        min_width=len(title or ""),
    )
    for heading, justify in columns:
        made.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    return made


def comparison_text(comparison: "Comparison") -> str:
    """The table of a comparison with what was asked, what was searched and what was refused."""
    c = comparison
    head = (
        f"{c.model.name}: {format_count(n_parameters(c.model), digits=4)} parameters, "
        f"weights {c.policy.name}; "
        f"{c.system.name}: {c.system.n_chips} chips of {c.system.chip.title}, "
        f"{format_bytes(c.system.sram_bytes, digits=4)} SRAM; batch {c.request.batch}, "
        f"context {c.request.context}"
    )
    rows = table(
        ("#", "right"),
        ("plan", "left"),
        ("chips", "right"),
        ("SRAM", "right"),
        ("token", "right"),
        ("lower..upper", "right"),
        ("tok/s user", "right"),
        ("tok/s total", "right"),
        ("prefill", "right"),
        ("hand-over", "right"),
        ("wire/token", "right"),
        ("SQNR", "right"),
    )
    for number, row in enumerate(c.rows, 1):
        rows.add_row(str(number), *_cells(row))
    lines = [head, rows, legend(), _searched(c)]
    if not c.fitting and c.nearest is not None:
        lines += ["No plan fits.", memory_map(c.nearest)]
    return render(*lines)


def legend() -> str:
    """What a plan's name means."""
    return (
        "plan: stages x chips of a stage, then ways of a:attention, f:dense MLP, m:experts over "
        "t tensor, e expert, d data, r replica; row or column: split of output "
        "projections (a/f/m if they differ). SRAM: fullest chip, reserve included."
    )


def _cells(row: "Row") -> list[str]:
    numerics = row.numerics
    return [
        row.plan.name,
        str(row.plan.n_chips),
        f"{row.sram_used_fraction:.1%}",
        format_seconds(row.decode_latency_s),
        f"{format_seconds(row.decode_latency_lower_s)}..{format_seconds(row.decode_latency_upper_s)}",
        f"{row.tokens_per_s_per_user:.0f}",
        f"{row.tokens_per_s_total:.0f}",
        format_seconds(row.prefill_latency_s),
        format_seconds(row.hand_over_s),
        format_bytes(row.wire_bytes_per_token),
        "-" if numerics is None else f"{numerics['sqnr_db']:.1f} dB",
    ]


def _searched(comparison: "Comparison") -> str:
    lines = [f"{comparison.legal} legal plans, {comparison.fitting} fit."]
    for reason, count in sorted(comparison.rejected.items(), key=lambda item: -item[1])[:6]:
        lines.append(f"  {count:>7} refused: {reason}")
    nearest = comparison.nearest
    if nearest is not None:
        lines.append(
            f"  nearest that does not fit: {nearest.plan.name}, short of "
            f"{format_bytes(nearest.short_bytes)} on the fullest chip."
        )
    return "\n".join(lines)


def memory_map(row: "Row") -> Table:
    """What the fullest chip of a plan would hold."""
    made = table(
        ("fullest chip", "left"),
        ("bytes", "right"),
        ("of SRAM", "right"),
        title=f"Memory map of {row.plan.name}",
    )
    sram = row.memory_bytes["sram"]
    for name, size in row.memory_bytes.items():
        if name != "sram":
            made.add_row(name, format_bytes(size), f"{size / sram:.1%}")
    total = sum(size for name, size in row.memory_bytes.items() if name != "sram")
    made.add_section()
    made.add_row("needed", format_bytes(total), f"{total / sram:.1%}")
    made.add_row("there is", format_bytes(sram), "100.0%")
    made.add_row(
        "short of" if row.short_bytes > 0 else "spare",
        format_bytes(abs(row.short_bytes)),
        f"{abs(row.short_bytes) / sram:.1%}",
    )
    return made


def generation_text(prompt: str, made: "Generation", plan: "Plan", system: System) -> str:
    """What was generated, where, and how far its first logits are from the reference."""
    steps = f"{len(made.tokens)} tokens"
    lines = [f"{prompt}{made.text}", ""]
    lines.append(
        f"{steps}, greedy, on {plan.n_chips} virtual chips of {system.name}, plan "
        f"{plan.name}; faithful numerics"
    )
    if made.sqnr_db is not None and made.argmax_agreement is not None:
        lines.append(
            f"logits of the first step against float32: SQNR {made.sqnr_db:.1f} dB; "
            f"the reference prefers the same token at {made.argmax_agreement:.0%} of the steps"
        )
    decode = f", {sum(made.decode_s) / len(made.decode_s):.2f} s a token" if made.decode_s else ""
    lines.append(
        f"on this computer: prompt {made.prefill_s:.1f} s with compilation{decode} "
        "(nothing of the chips)"
    )
    return "\n".join(lines)
