"""How much of a vector the gateway chips of a node carry, counted link by link from the port map.

A run over nodes `a .. a + m - 1` of a rack sees, from each of its nodes, the peers of rank
`a .. a + m - 2`: the same in every node. What the chips that own those links carry is therefore
counted once. Not modelled: a vector that is not a multiple of the parts (`steps` rounds up).
"""

import functools
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Int

from ....machine.ports import Numbers, PortMap


@dataclass(frozen=True, kw_only=True)
class GateLoads:
    """Loads of one node of a run over several nodes; the worst over all places of the run.

    A block is the part of the vector that one node owns and one link carries ("hier5"). Every
    field is a number, or an array with one entry per plan.

    Attributes:
        parts: most parts of a vector that a chip has links for.
        parts_total: the sum of that over the node's chips.
        links: most links of a chip to nodes of the run.
        parts_to_one: most links of a chip to a single other node.
        reduced: most blocks that land on a chip in the local reduce-scatter.
        shared: most blocks that two chips with links for the same parts exchange.
        shared_total: the sum of that over ordered pairs of chips.
        gathered: most blocks that a chip sends to another in the local all-gather.
        gathered_total: the sum of that over ordered pairs of chips.
        even: whether the same holds at every place of the run.
    """

    parts: Numbers
    parts_total: Numbers
    links: Numbers
    parts_to_one: Numbers
    reduced: Numbers
    shared: Numbers
    shared_total: Numbers
    gathered: Numbers
    gathered_total: Numbers
    even: Numbers


def gate_loads(ports: PortMap, n_nodes: Numbers) -> GateLoads:
    """Count the loads for runs over `n_nodes` neighbouring nodes.

    Args:
        ports: which chip carries which link.
        n_nodes: nodes from the first to the last of a run, a number or an array; fewer than two
            count as two, more than the port map knows as all.

    Returns:
        Loads of the shape of `n_nodes`.
    """
    nodes = np.clip(np.asarray(n_nodes, np.int64), 2, ports.peers + 1)
    distinct, back = np.unique(nodes, return_inverse=True)
    found = [_worst_loads(ports, int(m)) for m in distinct]
    names = [field.name for field in fields(GateLoads)]
    return GateLoads(
        **{
            name: np.array([getattr(loads, name) for loads in found])[back].reshape(nodes.shape)
            for name in names
        }
    )


@functools.lru_cache(maxsize=10_000)
def _worst_loads(ports: PortMap, n_nodes: int) -> GateLoads:
    """Take the worst over all places in the rack where a run over `n_nodes` can begin."""
    positions = _positions(ports)
    n_ranks = n_nodes - 1
    starts = range(min(_period(positions), ports.peers - n_ranks + 1))
    every = {_loads(positions[:, a : a + n_ranks], ports.positions) for a in starts}
    worst = (max(values) for values in zip(*every, strict=True))
    return GateLoads(**dict(zip(_COUNTS, worst, strict=True)), even=len(every) == 1)


_COUNTS = tuple(field.name for field in fields(GateLoads) if field.name != "even")


def _positions(ports: PortMap) -> Int[np.ndarray, "parts ranks"]:
    return np.array(
        [
            [ports.position(part, rank) for rank in range(ports.peers)]
            for part in range(ports.n_links)
        ]
    )


def _period(positions: Int[np.ndarray, "parts ranks"]) -> int:
    """Ranks after which the placement of links repeats."""
    n_ranks = positions.shape[1]
    repeats = (p for p in range(1, n_ranks) if np.all(positions[:, p:] == positions[:, :-p]))
    return next(repeats, n_ranks)


def _loads(gates: Int[np.ndarray, "parts ranks"], n_chips: int) -> tuple[int, ...]:
    """Count the loads for given links, in the order of `_COUNTS`."""
    n_parts, n_ranks = gates.shape
    part = np.repeat(np.arange(n_parts), n_ranks)
    owned = np.zeros((n_parts, n_chips), np.int64)
    np.add.at(owned, (part, gates.reshape(-1)), 1)
    owns = owned > 0
    links = owned.sum(0)
    to_one = max(int(np.bincount(gates[:, rank]).max()) for rank in range(n_ranks))
    landing = _landing(owns, links)
    own_blocks = np.bincount(landing, minlength=n_chips)
    off_diagonal = ~np.eye(n_chips, dtype=bool)
    shared = (owns.T.astype(np.int64) @ owns) * off_diagonal
    lacking = np.zeros((n_chips, n_chips), np.int64)  # [from, to]: own blocks that `to` lacks
    np.add.at(lacking, landing, (~owns).astype(np.int64))
    gathered = (links[:, None] + lacking) * off_diagonal
    alone = n_chips == 1  # nobody in the node to send to
    return (
        0 if alone else int(owns.sum(0).max()),
        int(owns.sum()),
        0 if alone else int(links.max()),
        0 if alone else to_one,
        0 if alone else int((links + own_blocks).max()),
        int(shared.max()),
        int(shared.sum()),
        int(gathered.max()),
        int(gathered.sum()),
    )


def _landing(
    owns: Bool[np.ndarray, "parts chips"], links: Int[np.ndarray, " chips"]
) -> Int[np.ndarray, " parts"]:
    """Choose where each of a node's own blocks lands: the owner of its part with least so far."""
    carried = links.copy()
    landing = np.empty(len(owns), np.int64)
    for part, owners in enumerate(owns):
        landing[part] = np.argmin(np.where(owners, carried, np.iinfo(np.int64).max))
        carried[landing[part]] += 1
    return landing
