"""`lpu systems` and `lpu models`: what can be named."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from lpu_jax.errors import ConfigError, LpuError
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
from models import zoo
from models.config import ModelConfig
from models.hf_families import FAMILIES, WRAPPERS
from models.hub_ids import HUB_IDS
from models.params import n_active, n_parameters
from models.released import released_bytes
from models.zoo import NAMED, named_models

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


def models(
    model: Annotated[
        str | None,
        typer.Argument(help="Zoo name, hub id, or path of a config.json: describe that one."),
    ] = None,
    types: Annotated[
        bool,
        typer.Option(help="List the types of model (`model_type`) that a config.json may be of."),
    ] = False,
    as_json: Json = None,
) -> None:
    """List the named models, or one: parameters, and the format and bytes it is released in."""
    if types:
        if model is not None:
            raise LpuError(f"--types lists types of model, and describes none; got {model!r} too.")
        emit(as_json, _types, lambda: _types_text(_types()))
        return
    listed = [_Listed.of(name) for name in (named_models() if model is None else [model])]

    def text() -> str:
        made = report.table(
            ("model", "left"), ("layers", "right"), ("parameters", "right"), ("active", "right"),
            ("released", "left"), ("bytes", "right"), ("configuration", "left"),
        )  # fmt: skip
        for one in listed:
            made.add_row(*one.cells)
        of_source: dict[str, list[str]] = {}
        for one in listed:
            of_source.setdefault(one.source, []).append(one.cfg.name)
        notes = (
            [] if model is None else [f"Left out: {', '.join(listed[0].left_out) or 'nothing'}."]
        )
        if model is not None and listed[0].hub_ids:
            notes += [f"On the hub: {', '.join(listed[0].hub_ids)}."]
        notes += [
            f"Bytes of {one.cfg.name} are not known: no policy holds {one.cfg.released_format}; "
            "the policies that `--policy` names can be chosen instead."
            for one in listed
            if one.bytes_released is None
        ]
        return report.render(
            made,
            *notes,
            "Active parameters leave out the input embedding. Bytes are those of the weights as "
            "released, scales included. Sources of the configurations:",
            *(f"{', '.join(names)}: {source}." for source, names in of_source.items()),
        )

    def data() -> Any:
        return [one.as_dict() for one in listed] if model is None else listed[0].as_dict()

    emit(as_json, data, text)


def _types() -> list[dict[str, Any]]:
    """List the types that are read, and those whose text part is one of them."""
    return [
        *({"model_type": name, "class": rules.architecture} for name, rules in FAMILIES.items()),
        *({"model_type": name, "class": None} for name in WRAPPERS if name not in FAMILIES),
    ]


def _types_text(rows: list[dict[str, Any]]) -> str:
    made = report.table(("model_type", "left"), ("class", "left"))
    for row in rows:
        made.add_row(row["model_type"], row["class"] or "its text part, of a type above")
    return report.render(made)


@dataclass(frozen=True)
class _Listed:
    """A model of the list."""

    cfg: ModelConfig
    status: str
    source: str
    hub_ids: tuple[str, ...]
    left_out: tuple[str, ...]  #: of what its file describes

    @staticmethod
    def of(name_or_path: str) -> "_Listed":
        cfg = zoo.model(name_or_path)
        name = zoo.known_name(name_or_path)
        status, source = "as given", name_or_path
        if name is not None:
            status, source = NAMED[name].status, NAMED[name].source
        ids = HUB_IDS.get(name or "", ())
        return _Listed(cfg, status, source, ids, zoo.left_out(name_or_path))

    @property
    def bytes_released(self) -> float | None:
        """Bytes of the weights as released; None where no policy holds their format."""
        try:
            return released_bytes(self.cfg)
        except ConfigError:
            return None

    @property
    def cells(self) -> tuple[str, ...]:
        cfg = self.cfg
        return (
            cfg.name,
            str(cfg.n_layers),
            format_count(n_parameters(cfg), digits=4),
            format_count(n_active(cfg), digits=4),
            cfg.released_format,
            "-" if self.bytes_released is None else format_bytes(self.bytes_released),
            self.status,
        )

    def as_dict(self) -> dict[str, Any]:
        cfg = self.cfg
        return {
            "name": cfg.name,
            "layers": cfg.n_layers,
            "parameters": n_parameters(cfg),
            "active_parameters": n_active(cfg),
            "released_format": cfg.released_format,
            "released_bytes": self.bytes_released,
            "bytes_16_bit": 2 * n_parameters(cfg),
            "cache_bytes_per_token_16_bit": cfg.kv_bytes_per_token(),
            "state_bytes_per_sequence": cfg.state_bytes_per_sequence(),
            "left_out": list(self.left_out),
            "status": self.status,
            "source": self.source,
            "hub_ids": list(self.hub_ids),
        }
