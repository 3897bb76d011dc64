"""The report of a whole forward pass: a row for each layer, then what became of the logits.

Nothing is computed here.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from lpu_jax.machine.mixed import Machine
from models.blocks import BLOCK_KINDS
from models.config import ModelConfig
from models.policy import Policy

from .. import report
from ..plan import FFN_PARTS
from ..report import versions
from .emulate import BlockCheck
from .one_chip_bits import as_promised
from .whole_model import WholeCheck


def whole_text(
    cfg: ModelConfig,
    system: Machine,
    results: Sequence[WholeCheck],
    *,
    policy: Policy,
    note: str = "",
) -> str:
    """Lay out a table for each plan, and what its logits became; `note` is about its choice."""
    first = results[0]
    n_tokens, n_layers = len(first.token_ids), len(first.layers)
    parts: list[Any] = [
        f"{cfg.name}, weights {policy.name}, {system.name}: {n_tokens} "
        f"token{'' if n_tokens == 1 else 's'} decoded through embedding, {n_layers} of "
        f"{cfg.n_layers} layers and head; {policy.fidelity} numerics against float32 arithmetic on "
        "the same stored weights",
        _routing_sentence(first),
    ]
    if note:
        parts.append(note)
    for number, result in enumerate(results, 1):
        parts += [_layers_table(result, f"plan {number}: {result.plan.name}"), *_summary(result)]
    if not as_promised(results):
        parts.append("FAILED: plans that promise the same bits differ.")
    peak = max(result.peak_rss_bytes for result in results)
    parts.append(
        f"On this computer: {first.seconds:.0f} s, {peak / 1e9:.1f} GB of memory at most (nothing "
        "of the chips)."
    )
    return report.render(*parts)


def _routing_sentence(result: WholeCheck) -> str:
    if not result.choices:
        return "No layer has experts to choose."
    if result.routing == "forced":
        return (
            "Routing is forced: the reference uses the experts that the emulated router chose; "
            "flips are counted, errors are of arithmetic alone."
        )
    return "Routing is free: the reference chooses its own experts; errors include flips."


def _layers_table(result: WholeCheck, title: str) -> Any:
    """Blocks of a layer in one row; SQNR of the state behind them, and of what they added."""
    rows = report.table(
        ("layer", "right"),
        ("attention", "left"),
        ("SQNR", "right"),
        ("of change", "right"),
        ("MLP", "left"),
        ("SQNR", "right"),
        ("of change", "right"),
        ("max error", "right"),
        ("flips", "right"),
        ("router margin", "right"),
        title=title,
    )
    for layer, blocks in groupby(result.blocks, lambda block: block.layer):
        by_part = {BLOCK_KINDS[block.kind].part in FFN_PARTS: block for block in blocks}
        last = by_part.get(True) or by_part[False]
        routing = last.routing
        rows.add_row(
            str(layer),
            *_half(by_part.get(False)),
            *_half(by_part.get(True)),
            f"{last.max_abs_err:.3g}",
            "" if routing is None else f"{routing.flips}/{routing.choices}",
            "" if routing is None else f"{routing.margin:.2g}",
        )
    return rows


def _half(block: BlockCheck | None) -> tuple[str, str, str]:
    """Kind and SQNR of one of a layer's blocks, which may have the other alone."""
    if block is None:
        return "", "", ""
    return block.kind, f"{block.sqnr_db:.2f} dB", f"{block.change_sqnr_db:.2f} dB"


def _summary(result: WholeCheck) -> list[str]:
    lines = [
        f"logits: SQNR {result.logits_sqnr_db:.2f} dB, KL(reference || emulated) "
        f"{result.kl_nats:.3g} nats, top-1 agreement {result.top1_agreement:.0%}, bits "
        f"{result.output_hash[:12]} ({result.fidelity})"
    ]
    if result.choices:
        lines.append(
            f"router: {result.flips} of {result.choices} choices of experts flip in the float32 "
            "reference on its own state"
        )
    shown = result.next_tokens[-1], result.reference_next_tokens[-1]
    lines.append(f"most likely after the last token: {shown[0]}; in the reference {shown[1]}")
    return [*lines, *(f"rounding moved: {moved}" for moved in result.rounding_moved), ""]


def whole_dict(
    cfg: ModelConfig,
    system: Machine,
    results: Sequence[WholeCheck],
    *,
    policy: Policy,
    note: str = "",
) -> dict[str, Any]:
    """A whole check as plain values, for JSON; `note` is about the choice of its plan."""
    first = results[0]
    return {
        "model": cfg.name,
        "system": system.name,
        "policy": policy.name,
        "fidelity": policy.fidelity,
        "routing": first.routing,
        "tokens": len(first.token_ids),
        "token_ids": list(first.token_ids),
        "layers": list(first.layers),
        "note": note or None,
        "as_promised": as_promised(results),
        "seconds": first.seconds,
        "peak_rss_bytes": max(result.peak_rss_bytes for result in results),
        "versions": versions(),
        "results": [result.as_dict() for result in results],
    }
