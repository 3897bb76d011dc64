"""Combinations of many branches side by side: whether they fit, and how their stages are cut."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from lpu_jax.machine.system import System
from models.blocks import Kind

from ..predict.cuts import Chain
from ..predict.placement import dram_room_bytes, usable_bytes
from .bounds import COSTS
from .goals import Shape
from .options import Combinations, Options

Numbers = Float[np.ndarray, " plans"]
Whole = Int[np.ndarray, " plans"]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Plans of several branches; a column has an entry per plan."""

    chain: tuple[Kind, ...]
    branch: Whole  #: which of the branches
    row: Whole  #: which of the branch's combinations
    shape: Shape
    latency: Numbers
    hop: Numbers  #: the slowest hand-over
    costs: Mapping[str, Mapping[Kind, Numbers]]
    system: System  #: what has room for them

    @staticmethod
    def of(
        chain: tuple[Kind, ...],
        branches: Sequence[tuple[Mapping[str, Options], Combinations, tuple[float, float]]],
        shape: Shape,
        host_cycles: float,
        system: System,
    ) -> "Candidates":
        """Put the combinations of branches side by side.

        Args:
            chain: kinds of the model's blocks.
            branches: options, their combinations, and cycles of all hand-overs and of the slowest.
            shape: of the branches.
            host_cycles: host and sampling, part of a latency.
            system: the machine, or the one of their pool.
        """
        sizes = [len(found.cycles) for _, found, _ in branches]
        branch = np.repeat(np.arange(len(branches)), sizes)
        hops = np.array([hop for *_, hop in branches]).reshape(-1, 2)[branch]
        costs = {
            name: {
                kind: np.concatenate(
                    [_column(options, found, name, kind) for options, found, _ in branches]
                )
                for kind in dict.fromkeys(chain)
            }
            for name in COSTS
        }
        cycles = np.concatenate([found.cycles for _, found, _ in branches])
        return Candidates(
            chain=chain,
            branch=branch,
            row=np.concatenate([np.arange(size) for size in sizes]),
            shape=shape.take(branch),
            latency=cycles + hops[:, 0] + host_cycles,
            hop=hops[:, 1],
            costs=costs,
            system=system,
        )

    def __len__(self) -> int:
        return len(self.branch)

    def take(self, rows: Whole | Bool[np.ndarray, " plans"]) -> "Candidates":
        """Keep some plans."""
        return Candidates(
            chain=self.chain,
            branch=self.branch[rows],
            row=self.row[rows],
            shape=Shape(**{name: values[rows] for name, values in vars(self.shape).items()}),
            latency=self.latency[rows],
            hop=self.hop[rows],
            costs={
                name: {kind: values[rows] for kind, values in own.items()}
                for name, own in self.costs.items()
            },
            system=self.system,
        )

    def in_chain(self, name: str) -> list[Numbers]:
        """List a cost block by block."""
        return [self.costs[name][kind] for kind in self.chain]

    @property
    def room_bytes(self) -> Numbers:
        """Memory for weights and caches beside live values and tables."""
        live, tables = self.costs["activations"], self.costs["tables"]
        return np.asarray(
            usable_bytes(self.system.chip)
            - np.max(list(live.values()), axis=0)
            - np.sum(list(tables.values()), axis=0)
        )

    def blocks(
        self,
        *,
        flies: bool,
        gives: Bool[np.ndarray, " blocks"] | None = None,
        most_in_flight: Whole | None = None,
    ) -> Chain:
        """Take the plans as chains of blocks to be cut.

        Args:
            flies: whether the micro-batches in flight bound a period.
            gives: after which blocks a stage hands over to another pool, which is the slowest
                hand-over then; None: stages hand over to the next.
            most_in_flight: micro-batches that find something to do; None: one for each stage.
        """
        cycles, hop = self.in_chain("cycles"), self.hop
        if gives is not None:
            own = self.costs["cycles"]
            busy = {kind: own[kind] + hop for kind in own}
            cycles = [
                busy[kind] if after else own[kind]
                for kind, after in zip(self.chain, gives, strict=True)
            ]
            hop = np.zeros(len(self))
        return Chain.of(
            self.in_chain("weights"),
            self.in_chain("cache"),
            cycles,
            self.shape.stages,
            room_bytes=self.room_bytes,
            latency_cycles=self.latency if flies else np.zeros(len(self)),
            hop_cycles=hop,
            most_in_flight=most_in_flight,
            dram_cache=self.in_chain("dram_cache"),
            dram_room_bytes=dram_room_bytes(self.system),
        )


def _column(options: Mapping[str, Options], found: Combinations, name: str, kind: Kind) -> Numbers:
    """A cost of a kind of block in each combination."""
    for part, own in options.items():
        costs: Mapping[Kind, Numbers] = getattr(own.costs, name)
        if kind in costs:
            return np.asarray(costs[kind][found.rows[part]])
    raise AssertionError(f"no part has {kind} blocks")
