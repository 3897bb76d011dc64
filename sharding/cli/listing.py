"""`lpu systems` and `lpu models`: what can be named."""

from typing import Annotated, Any

import typer

from lpu_jax.machine.catalogue import (
    MIXED_SERIES,
    SERIES,
    any_system,
    named_mixed_systems,
    named_systems,
)
from lpu_jax.machine.describe import describe, describe_text
from lpu_jax.machine.mixed import Machine, MixedSystem
from lpu_jax.provenance import assumed
from lpu_jax.quantities import format_bytes, format_count
from models.params import n_active, n_parameters
from models.released import released_bytes
from models.zoo import NAMED, SOURCES, named_models

from .. import report
from .common import Json, emit


def systems(
    system: Annotated[
        str | None, typer.Argument(help="System name, or path of a TOML file: describe that one.")
    ] = None,
    as_json: Json = None,
) -> None:
    """List the named systems, or describe one: its levels of links and its numbers."""
    if system is not None:
        one = any_system(system)
        emit(as_json, lambda: describe(one), lambda: describe_text(one))
        return
    found: tuple[Machine, ...] = (*named_systems(), *named_mixed_systems())
    also = ", ".join(f"{series.numbered} (N {series.unit})" for series in (*SERIES, *MIXED_SERIES))

    def text() -> str:
        made = report.table(
            ("system", "left"),
            ("chips", "right"),
            ("chip", "left"),
            ("memory", "right"),
            ("assumed", "right"),
        )
        for machine in found:
            made.add_row(*_row(machine))
        return report.render(
            made,
            f"Also {also}. `lpu systems NAME` describes one.",
            *dict.fromkeys(machine.note for machine in found if machine.note),
        )

    emit(as_json, lambda: [describe(machine) for machine in found], text)


def _row(machine: Machine) -> tuple[str, ...]:
    """Cells of the listing; a mixed system has those of its two, by their names."""
    if isinstance(machine, MixedSystem):
        pools = tuple(machine.pools.values())
        chips = " + ".join(one.name for one in pools)
    else:
        pools, chips = (machine,), machine.chip.title
    constants = machine.constants()
    return (
        machine.name,
        " + ".join(str(one.n_chips) for one in pools),
        chips,
        " + ".join(f"{format_bytes(one.memory_bytes)} {one.chip.memory_name}" for one in pools),
        f"{len(assumed(constants))} of {len(constants)} numbers",
    )


def models(as_json: Json = None) -> None:
    """List the named models with parameters, and the format and bytes they are released in."""
    found = named_models()

    def text() -> str:
        made = report.table(
            ("model", "left"), ("layers", "right"), ("parameters", "right"), ("active", "right"),
            ("released", "left"), ("bytes", "right"), ("configuration", "left"),
        )  # fmt: skip
        for name, cfg in found.items():
            made.add_row(
                name,
                str(cfg.n_layers),
                format_count(n_parameters(cfg), digits=4),
                format_count(n_active(cfg), digits=4),
                cfg.released_format,
                format_bytes(released_bytes(cfg)),
                NAMED[name].status,
            )
        of_source: dict[str, list[str]] = {}
        for name in found:
            of_source.setdefault(SOURCES[name], []).append(name)
        return report.render(
            made,
            "Active parameters leave out the input embedding. Bytes are those of the weights as "
            "released, scales included. Sources of the configurations:",
            *(f"{', '.join(names)}: {source}." for source, names in of_source.items()),
        )

    def data() -> Any:
        return [
            {
                "name": name,
                "layers": cfg.n_layers,
                "parameters": n_parameters(cfg),
                "active_parameters": n_active(cfg),
                "released_format": cfg.released_format,
                "released_bytes": released_bytes(cfg),
                "bytes_16_bit": 2 * n_parameters(cfg),
                "cache_bytes_per_token_16_bit": cfg.kv_bytes_per_token(),
                "status": NAMED[name].status,
                "source": SOURCES[name],
            }
            for name, cfg in found.items()
        ]

    emit(as_json, data, text)
