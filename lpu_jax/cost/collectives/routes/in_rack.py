"""Routes of sums and gathers over the nodes of each rack: spread, exchange, gather.

Tables of chips and pieces are joined on (run, node), for all runs and racks at once. Not modelled:
time.
"""

import numpy as np
from jaxtyping import Bool, Int

from .rows import Rows, equal_pairs, join_rows, make_rows, unique_columns
from .spots import Numbering, Spots, join_spots, make_spots, overlap, union


def sum_in_rack(
    numbering: Numbering,
    n: int,
    cut: int,
    holders: Spots,
    needs: Spots,
    phases: tuple[int, int, int],
    since: int,
) -> Rows:
    """Sum, over the nodes of each rack, what holders hold, and bring the sums to those who need it.

    Args:
        numbering: the machine.
        n: chips of a run.
        cut: pieces of the payload, a multiple of the links between two nodes.
        holders: single pieces; those of equal number in a run and rack are summed.
        needs: single pieces.
        phases: of the spread, the exchange and the gather.
        since: phase in which the holders got theirs.

    Returns:
        The transfers.
    """
    spread, exchange, gather = phases
    at, wanted = numbering.key(holders), numbering.key(needs)
    near, far, a, b, part = numbering.links(at, wanted)
    n_links = numbering.topology.node_ports.n_links

    def on_link(piece: Int[np.ndarray, " pieces"]) -> Int[np.ndarray, " pieces"]:
        return piece * n_links // cut

    # Chips of each node that own links of each part; the first also passes on its node's sum.
    (gate_key, gate), _ = unique_columns(a * n_links + part, near)
    h, g = equal_pairs(at * n_links + on_link(holders.first), gate_key)
    held = holders.take(h)
    to_gates = make_rows(
        n, phase=spread, run=held.run, src=held.chip, dst=gate[g], first=held.first, since=since
    )
    some_at, some = np.divmod(np.unique(at * cut + holders.first), cut)
    some_key = some_at * n_links + on_link(some)
    p, x = equal_pairs(a * n_links + part, some_key)
    between = make_rows(
        n,
        phase=exchange,
        run=a[p] // numbering.n_nodes,
        src=near[p],
        dst=far[p],
        part=part[p],
        first=some[x],
        since=since,
    )
    first = np.ones(gate.size, np.bool_)
    first[1:] = gate_key[1:] != gate_key[:-1]
    g, y = equal_pairs(gate_key[first], some_key)
    (sum_key, sender), back = unique_columns(
        np.concatenate([b[p], some_at[y]]) * cut + np.concatenate([some[x], some[y]]),
        np.concatenate([far[p], gate[first][g]]),
    )
    owns, has_landed = np.zeros((2, sender.size), np.bool_)
    owns[back[p.size :]] = True
    has_landed[back[: p.size]] = True
    q, w = equal_pairs(sum_key, wanted * cut + needs.first)
    # The node's own sum alone is no news to the other chips that have it.
    known = _has_own_sum(numbering, cut, holders, (gate_key, gate), needs)[w] & ~has_landed[q]
    q, w = q[~known], w[~known]
    onward = make_rows(
        n,
        phase=gather,
        run=needs.run[w],
        src=sender[q],
        dst=needs.chip[w],
        first=needs.first[w],
        since=np.where(owns[q], since, exchange),
    )
    # A node with nobody to exchange with.
    alone = holders.take(~np.isin(at, a))
    h, w = equal_pairs(numbering.key(alone) * cut + alone.first, wanted * cut + needs.first)
    straight = make_rows(
        n,
        phase=spread,
        run=needs.run[w],
        src=alone.chip[h],
        dst=needs.chip[w],
        first=needs.first[w],
        since=since,
    )
    return join_rows([to_gates, between, onward, straight])


def _has_own_sum(
    numbering: Numbering,
    cut: int,
    holders: Spots,
    gates: tuple[Int[np.ndarray, " gates"], Int[np.ndarray, " gates"]],
    needs: Spots,
) -> Bool[np.ndarray, " needs"]:
    """Whether a chip has its node's own sum of a piece without being sent it."""
    n_links, n_chips = numbering.topology.node_ports.n_links, numbering.n_chips
    at = numbering.key(needs)
    is_gate = np.isin(
        (at * n_links + needs.first * n_links // cut) * n_chips + needs.chip,
        gates[0] * n_chips + gates[1],
    )
    held = numbering.key(holders) * cut + holders.first
    holding, n_holders = np.unique(held, return_counts=True)
    alone = np.isin(held, holding[n_holders == 1])
    is_only = np.isin(
        (at * cut + needs.first) * n_chips + needs.chip,
        held[alone] * n_chips + holders.chip[alone],
    )
    return is_gate | is_only


def gather_in_rack(
    numbering: Numbering,
    n: int,
    holders: Spots,
    blocks: Spots,
    needs: Spots,
    phases: tuple[int, int, int],
) -> Rows:
    """Bring what single chips hold to all who need it, over the nodes of each rack.

    Args:
        numbering: the machine.
        n: chips of a run.
        holders: pieces; no piece is held twice in a run and rack.
        blocks: pieces of a node together, at any of its chips; their number is a multiple of the
            links between two nodes, each of which carries as many.
        needs: pieces.
        phases: of the spread, the exchange and the gather.

    Returns:
        The transfers; each piece reaches a chip once.
    """
    spread, exchange, gather = phases
    n_links = numbering.topology.node_ports.n_links
    at, wanted = numbering.key(blocks), numbering.key(needs)
    near, far, a, b, part = numbering.links(at, wanted)
    p, k = equal_pairs(a, at)
    share = blocks.count[k] // n_links
    leaving = make_spots(
        a[p] // numbering.n_nodes, near[p], blocks.first[k] + part[p] * share, share
    )
    # Only what somebody in the other node needs.
    (need_at, need_first, need_count), _ = unique_columns(wanted, needs.first, needs.count)
    r, w = equal_pairs(b[p], need_at)
    crossing, kept = overlap(leaving.take(r), need_first[w], need_count[w])
    crossing, once = union(crossing, far[p][r[kept]])
    link = p[r[kept[once]]]
    between = make_rows(
        n,
        phase=exchange,
        run=crossing.run,
        src=crossing.chip,
        dst=far[link],
        part=part[link],
        first=crossing.first,
        count=crossing.count,
    )
    landed = make_spots(crossing.run, far[link], crossing.first, crossing.count)
    local = hand_out(numbering, n, spread, holders, join_spots(needs, crossing))
    return join_rows([local, between, hand_out(numbering, n, gather, landed, needs)])


def hand_out(numbering: Numbering, n: int, phase: int, holders: Spots, needs: Spots) -> Rows:
    """Bring what chips hold to the chips of the same node that need it.

    Args:
        numbering: the machine.
        n: chips of a run.
        phase: when.
        holders: pieces, no piece twice in a run and node.
        needs: pieces; they may overlap.

    Returns:
        The transfers; each piece reaches a chip once.
    """
    h, w = equal_pairs(numbering.key(holders), numbering.key(needs))
    found, kept = overlap(holders.take(h), needs.first[w], needs.count[w])
    dst = needs.chip[w[kept]]
    found, once = union(found, dst)
    return make_rows(
        n,
        phase=phase,
        run=found.run,
        src=found.chip,
        dst=dst[once],
        first=found.first,
        count=found.count,
    )
