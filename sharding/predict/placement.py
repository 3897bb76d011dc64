"""What a chip must hold: weights, cache, tables and activations, as the matrix unit streams them.

Bytes come from the storage format of the arguments of a block's program. The rows of a matrix are
padded to whole vectors after sharding, as they stream (`ChipSpec.stored_columns`); the fullest chip
decides. All lengths may be arrays, one entry per plan. A system may have its caches in the DRAM
beside its chips (`System.dram`): they then take room there, and none in the chip's own memory.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import jax

from lpu_jax.cost.memory import least_peak_bytes, live_ranges, peak_bytes
from lpu_jax.cost.program import Program
from lpu_jax.cost.schedule import Timing
from lpu_jax.datapath.work import Length, Quantity, product
from lpu_jax.machine.gpu import Accelerator
from lpu_jax.machine.system import System
from lpu_jax.machine.tray_dram import TrayDram
from models.blocks import Leaf, is_leaf


class Live(Enum):
    """How the memory of values in use is found."""

    MEASURED = "followed over the schedule"
    LEAST = "bounded from below, wherever the group lies"
    NONE = "not at all: it counts as none"


@dataclass(frozen=True, kw_only=True)
class BlockBytes:
    """Bytes that a block adds to the fullest chip of its stage."""

    weights: Quantity
    cache: Quantity
    dram_cache: Quantity  #: the cache where it lies in DRAM beside the chip, and not in it
    cached: Quantity  #: bytes of the cache's values, each once and without padding
    tables: Quantity  #: constants that blocks of one kind share, and no other kind has
    activations: Quantity  #: live at once, at most


def block_bytes(
    arguments: Any,
    program: Program,
    timing: Timing,
    symbols: Mapping[str, Length],
    chip: Accelerator,
    dram: TrayDram | None,
    *,
    live: Live = Live.MEASURED,
) -> BlockBytes:
    """Measure a block: its arguments as stored, and the values that live over its schedule.

    Args:
        arguments: tree of `Leaf` with lengths as numbers or arrays.
        program: the block's program.
        timing: its schedule.
        symbols: values of the program's symbols.
        chip: the padding of its memory.
        dram: where its cache lies; None: in the chip.
        live: how the values are followed.
    """
    cached: Quantity = 0.0
    held = held_bytes(arguments, chip, dram)
    for leaf in jax.tree.leaves(arguments, is_leaf=is_leaf):
        if leaf.kind == "cache" and not leaf.is_copy:
            cached = cached + bare_bytes(leaf)
    activations: Quantity = 0.0
    if live is Live.MEASURED:
        ranges = live_ranges(program, timing, symbols, chip.vector_bytes)
        activations = peak_bytes(ranges) + held["state"]
    elif live is Live.LEAST:
        least = least_peak_bytes(program, timing, symbols, chip.vector_bytes)
        activations = least + held["state"]
    return BlockBytes(
        weights=held["weights"],
        cache=held["cache"],
        dram_cache=held["dram"],
        cached=cached,
        tables=held["tables"],
        activations=activations,
    )


def held_bytes(arguments: Any, chip: Accelerator, dram: TrayDram | None) -> dict[str, Quantity]:
    """Add up the stored bytes of a block's arguments by their kind (`Leaf.kind`).

    A cache that lies in DRAM counts as `dram`, and not as `cache`; states never do. A table that
    blocks of another kind have too counts there.
    """
    held: dict[str, Quantity] = {
        "weights": 0.0,
        "cache": 0.0,
        "dram": 0.0,
        "tables": 0.0,
        "scales": 0.0,
        "state": 0.0,
    }
    for leaf in jax.tree.leaves(arguments, is_leaf=is_leaf):
        if leaf.kind == "cache" and dram is not None and not leaf.stays:
            held["dram"] = held["dram"] + bare_bytes(leaf)
        elif not leaf.is_shared:
            held[leaf.kind] = held[leaf.kind] + padded_bytes(leaf, chip)
    return held


def bare_bytes(leaf: Leaf) -> Quantity:
    """Bytes of an argument's values: DRAM, which is not read by vectors, holds and sends these."""
    return product(leaf.shape) * leaf.bits / 8


def padded_bytes(leaf: Leaf, chip: Accelerator) -> Quantity:
    """Stored bytes of an argument: a vector, or each row of a matrix, fills the chip's vectors."""
    columns: Quantity
    if not leaf.rows:
        columns = chip.stored_columns(product(leaf.shape))
        return columns * leaf.bits / 8
    first_row, first_column = leaf.batch, leaf.batch + leaf.rows
    matrices = product(leaf.shape[:first_row])
    rows: Quantity = chip.stored_rows(product(leaf.shape[first_row:first_column]))
    columns = chip.stored_columns(product(leaf.shape[first_column:]))
    return matrices * rows * columns * leaf.bits / 8


def dram_room_bytes(system: System) -> float:
    """DRAM that each chip has for its caches; no limit where they do not lie in DRAM."""
    return math.inf if system.dram is None else system.dram.bytes_per_lpu


def usable_bytes(chip: Accelerator) -> float:
    """Memory of a chip without what is reserved: for instructions, or a GPU's runtime."""
    return chip.memory_bytes * (1 - chip.reserved_fraction)
