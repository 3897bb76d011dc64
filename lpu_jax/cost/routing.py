"""How many rows of a mixture reach a GPU: a program has room for the worst case, a GPU counts rows.

A program has slots for every expert that rows may choose, and lists with a place for every row. A
GPU works on what was chosen and sends what is in the lists. How much that is depends on the route:
at worst all rows choose the experts of one GPU; evenly, every GPU gets its share; with spread, rows
choose at random, all experts alike, and the busiest of `n` GPUs gets so many standard deviations
more than its share as the largest of `n` normal numbers has, `sqrt(2 ln n)`. A deployment that
copies hot experts comes closer to even routes than rows that choose at random.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..datapath.work import Length, Quantity, choose, largest, smallest
from .program import Operation, Program, Shape

#: Which route: `worst` for the GPU that gets all rows, `spread` for the busiest of rows that choose
#: at random, `even` for a GPU that gets its share.
Load = Literal["worst", "spread", "even"]


def _busiest(share: Quantity, variance: Quantity, n_gpus: Quantity, load: Load) -> Quantity:
    """Turn the mean of a GPU into that of the busiest one, or leave it."""
    if load == "even":
        return share
    return share + np.sqrt(largest(variance, 0.0) * 2 * np.log(largest(n_gpus, 1.0)))


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Rows that each choose some experts, of which this GPU holds some."""

    choices: Shape  #: chosen experts by row
    slots: Shape  #: results of the first product: slots by rows by columns
    held: Shape  #: experts that this GPU holds, by anything
    experts: Shape  #: all of them

    def share(self, symbols: Mapping[str, Length], load: Load) -> Quantity:
        """Share of all pairs of slot and row that are chosen."""
        slots, rows = self.slots.bind(symbols).shape[:2]
        return smallest(self._chosen(symbols, load) / (slots * rows), 1.0)

    def matrices(self, symbols: Mapping[str, Length], load: Load) -> Quantity:
        """Experts whose weights are read: all slots at worst."""
        slots = self.slots.bind(symbols).shape[0]
        if load == "worst":
            return slots
        chosen = smallest(self._chosen(symbols, load), slots)
        if load == "even":
            return chosen
        held, experts = self._held(symbols)
        rows, top_k = self.choices.bind(symbols).shape
        used = 1 - (1 - top_k / experts) ** rows  # that some row chooses an expert
        most = _busiest(held * used, held * used * (1 - used), experts / held, load)
        return smallest(largest(most, 1.0), held, chosen)

    def _chosen(self, symbols: Mapping[str, Length], load: Load) -> Quantity:
        chosen = self.choices.bind(symbols).size
        if load == "worst":
            return chosen
        held, experts = self._held(symbols)
        part = held / experts
        most = _busiest(chosen * part, chosen * part * (1 - part), 1 / part, load)
        return smallest(largest(most, 1.0), chosen)

    def _held(self, symbols: Mapping[str, Length]) -> tuple[Quantity, Quantity]:
        return self.held.bind(symbols).shape[0], self.experts.bind(symbols).size


@dataclass(frozen=True, kw_only=True)
class Lists:
    """Lists of rows from GPU to GPU, with a place for every row of a share."""

    lister: Operation  #: makes them from the experts that the rows of a share choose

    def share(self, symbols: Mapping[str, Length], load: Load) -> Quantity:
        """Share of the places that hold a row."""
        if load == "worst":
            return 1.0
        rows, top_k = self.lister.operands[0].bind(symbols).shape
        gpus = self.lister.results[0].bind(symbols).shape[0]
        # That a row chooses an expert of a GPU: those of a row are taken as independent.
        used = 1 - (1 - 1 / gpus) ** top_k
        places = gpus * rows * 1.0
        most = _busiest(places * used, places * used * (1 - used), gpus, load)
        filled = smallest(most / places, 1.0)
        return choose(gpus == 1, 1.0, filled)


Routing = Choices | Lists


def choices_of(operation: Operation, makers: Mapping[int, Operation]) -> Choices | None:
    """Follow the addresses of a product back to the experts that rows have chosen.

    Args:
        operation: a product with addressed matrices.
        makers: the operation that makes each value.
    """
    number: Any = operation.reads[2]
    table = None
    while number in makers:
        maker = makers[number]
        if maker.name == "vxm_local_slots" and table is not None:
            return Choices(
                choices=maker.operands[0],
                slots=operation.results[0],
                held=operation.operands[1],
                experts=table,
            )
        table = maker.operands[0]
        number = maker.reads[-1]
    return None


def lists_of(operation: Operation, program: Program) -> Lists | None:
    """Find the lists that an operation fills or sends.

    Args:
        operation: a read of rows, or an exchange between all GPUs.
        program: it has one operation that lists rows by GPU, or none.
    """
    lister = next((op for op in program.operations if op.name == "vxm_rows_by_chip"), None)
    if lister is None:
        return None
    fills = len(operation.reads) > 1 and operation.reads[1] == lister.makes[0]
    return Lists(lister=lister) if fills or operation.name == "c2c_all_to_all" else None
