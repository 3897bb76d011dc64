"""`lpu systems` and `lpu models`: what has a name."""

from typing import Any

from lpu_jax.quantities import format_bytes, format_count
from lpu_jax.system import named_systems
from models.params import n_active, n_parameters
from models.zoo import SOURCES, named_models

from .. import report
from .common import Json, emit


def systems(as_json: Json = None) -> None:
    """List the named systems with chips, SRAM and the sources of every number."""
    found = named_systems()

    def text() -> str:
        made = report.table(
            ("system", "left"),
            ("chips", "right"),
            ("chip", "left"),
            ("SRAM", "right"),
            ("assumed", "right"),
        )
        for machine in found:
            constants = machine.constants()
            assumed = sum(constant.status == "assumed" for constant in constants)
            made.add_row(
                machine.name,
                str(machine.n_chips),
                machine.chip.title,
                format_bytes(machine.sram_bytes),
                f"{assumed} of {len(constants)} numbers",
            )
        return report.render(
            made,
            "Also groq-N for N chips and lpx-N for N racks. --json gives every number with its "
            "source.",
        )

    def data() -> Any:
        return [
            {
                "name": machine.name,
                "chips": machine.n_chips,
                "chip": machine.chip.name,
                "sram_bytes": machine.sram_bytes,
                "constants": [
                    {**vars(constant), "value": str(constant.value)}
                    for constant in machine.constants()
                ],
            }
            for machine in found
        ]

    emit(as_json, data, text)


def models(as_json: Json = None) -> None:
    """List the named models with parameters and bytes."""
    found = named_models()

    def text() -> str:
        made = report.table(
            ("model", "left"), ("layers", "right"), ("parameters", "right"), ("active", "right"),
            ("16-bit bytes", "right"), ("source", "left"),
        )  # fmt: skip
        for name, cfg in found.items():
            made.add_row(
                name,
                str(cfg.n_layers),
                format_count(n_parameters(cfg), digits=4),
                format_count(n_active(cfg), digits=4),
                format_bytes(2 * n_parameters(cfg)),
                SOURCES[name],
            )
        return report.render(made)

    def data() -> Any:
        return [
            {
                "name": name,
                "layers": cfg.n_layers,
                "parameters": n_parameters(cfg),
                "active_parameters": n_active(cfg),
                "bytes_16_bit": 2 * n_parameters(cfg),
                "source": SOURCES[name],
            }
            for name, cfg in found.items()
        ]

    emit(as_json, data, text)
