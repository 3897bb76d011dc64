"""The same collectives as `cost.links`, written out link by link for a few chips, to check them.

Every transfer names its link and says which part of the vector it carries and whose contributions
are summed in it, so that a test can replay the schedule: nothing is sent before it is held, every
chip ends with every contribution exactly once, and the busiest link is the one the closed form
prices. Not modelled: cycles within a step.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from ..errors import CostError, unknown
from ..ports import Link
from ..topology import Topology
from .links import ALGORITHMS, KINDS

SPREAD = "spread in node"
EXCHANGE = "exchange between nodes"
RACKS = "exchange between racks"
GATHER = "gather in node"

# Per chip, for each of equal parts (atoms) of the vector: whose contributions it can send.
_Holdings = Mapping[int, Mapping[int, frozenset[int]]]


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """A part of the vector on one link in one step.

    Attributes:
        step: number of the step; transfers of a step do not depend on each other.
        name: the step's name in the closed form.
        src: sending chip.
        dst: receiving chip.
        link: the link it takes.
        share: part of the payload.
        atom: which part of the vector, numbered from 0; -1 if not followed.
        sources: chips whose contributions are summed (or, for all_gather, listed) in it.
    """

    step: int
    name: str
    src: int
    dst: int
    link: Link
    share: Fraction
    atom: int = -1
    sources: frozenset[int] = frozenset()


def check(transfers: Iterable[Transfer], topology: Topology) -> dict[str, Fraction]:
    """Verify that every link exists and find the busiest of each step.

    Args:
        transfers: the transfers of one collective, or of several that run at once.
        topology: the machine.

    Returns:
        The largest share of the payload that any link carries, by name of the step.

    Raises:
        CostError: if a transfer takes a link that the machine does not have.
    """
    load: dict[str, dict[Link, Fraction]] = defaultdict(lambda: defaultdict(Fraction))
    known: dict[tuple[int, int], tuple[Link, ...]] = {}
    for transfer in transfers:
        ends = (transfer.src, transfer.dst)
        if ends not in known:
            known[ends] = topology.links_between(*ends)
        if transfer.link not in known[ends]:
            raise CostError(f"step {transfer.name!r} uses link {transfer.link.name}: no such link")
        load[transfer.name][transfer.link] += transfer.share
    return {name: max(links.values()) for name, links in load.items()}


class _Recorder:
    """Collects the transfers of one collective and looks up their links."""

    def __init__(self, topology: Topology, n_atoms: int) -> None:
        self.topology = topology
        self.n_atoms = n_atoms
        self.transfers: list[Transfer] = []
        self.step = 0
        self._names: list[str] = []
        self._links: dict[tuple[int, int, int], Link] = {}

    def begin(self, name: str) -> None:
        """Start a step; a step of the same name and occasion is told apart by a suffix."""
        self.step += 1
        again = self._names.count(name)
        self._names.append(name)
        self.name = name if not again else f"{name} ({again + 1})"

    def add(
        self,
        src: int,
        dst: int,
        *,
        sources: frozenset[int] = frozenset(),
        share: Fraction | None = None,
        atom: int = -1,
        part: int = 0,
    ) -> None:
        """Record a transfer over the link number `part` from `src` to `dst`."""
        key = (src, dst, part)
        if key not in self._links:
            links = self.topology.links_between(src, dst)
            if all(link.part != part for link in links):
                raise CostError(f"no link {part} from chip {src} to chip {dst}")
            self._links[key] = next(link for link in links if link.part == part)
        self.transfers.append(
            Transfer(
                step=self.step,
                name=self.name,
                src=src,
                dst=dst,
                link=self._links[key],
                share=Fraction(1, self.n_atoms) if share is None else share,
                atom=atom,
                sources=sources,
            )
        )


def _by_node(topology: Topology, chips: Iterable[int]) -> dict[int, list[int]]:
    nodes: dict[int, list[int]] = defaultdict(list)
    for chip in chips:
        nodes[chip // topology.node_chips].append(chip)
    return dict(nodes)


def _gate(topology: Topology, node: int, peer: int, part: int) -> int:
    """The chip of `node` that carries link `part` to `peer`, a node of the same rack."""
    place, other = node % topology.nodes_per_rack, peer % topology.nodes_per_rack
    return node * topology.node_chips + topology.node_ports.ends(place, other, part)[0]


def _spread_and_exchange(
    recorder: _Recorder, holdings: _Holdings, receivers: Sequence[int], *, reduces: bool
) -> dict[int, dict[int, dict[int, frozenset[int]]]]:
    """Record the first two steps in one rack.

    Returns:
        `[atom][chip][node]`: what a chip then has of each node, its own node included.
    """
    topology = recorder.topology
    n_links = topology.node_ports.n_links
    nodes = _by_node(topology, holdings)
    held: dict[int, dict[int, dict[int, frozenset[int]]]] = {}
    sends: list[tuple[int, int, int, int, frozenset[int]]] = []
    for atom in range(recorder.n_atoms):
        part = atom * n_links // recorder.n_atoms
        held[atom] = defaultdict(dict)
        for node, members in nodes.items():
            senders = {x: holdings[x][atom] for x in members if holdings[x].get(atom)}
            if not senders:
                continue
            total = frozenset().union(*senders.values())
            peers = [peer for peer in receivers if peer != node]
            gates = {_gate(topology, node, peer, part) for peer in peers}
            for to in sorted(gates | (set() if reduces else set(members))):
                for x, sources in senders.items():
                    if x != to:
                        share = None if reduces else _gathered(recorder, holdings, sources)
                        recorder.add(x, to, sources=sources, atom=atom, share=share)
                held[atom][to][node] = total
            for peer in peers:
                near, far = _gate(topology, node, peer, part), _gate(topology, peer, node, part)
                sends.append((near, far, atom, part, total))
                held[atom][far][node] = total
    recorder.begin(EXCHANGE)
    for near, far, atom, part, total in sends:
        share = None if reduces else _gathered(recorder, holdings, total)
        recorder.add(near, far, sources=total, atom=atom, part=part, share=share)
    return held


def _gathered(recorder: _Recorder, holdings: _Holdings, sources: frozenset[int]) -> Fraction:
    """Share of the gathered vector that the pieces of some chips make, in one atom."""
    return Fraction(len(sources), len(holdings) * recorder.n_atoms)


def _flat3(
    recorder: _Recorder,
    holdings: _Holdings,
    receivers: Sequence[int],
    targets: Mapping[int, Sequence[int]],
    *,
    reduces: bool = True,
) -> None:
    """Record spread, exchange and gather among nodes of one rack."""
    held = _spread_and_exchange(recorder, holdings, receivers, reduces=reduces)
    recorder.begin(GATHER)
    _gather(recorder, holdings, receivers, targets, held, reduces=reduces)


def _gather(
    recorder: _Recorder,
    holdings: _Holdings,
    receivers: Sequence[int],
    targets: Mapping[int, Sequence[int]],
    held: Mapping[int, Mapping[int, Mapping[int, frozenset[int]]]],
    *,
    reduces: bool,
) -> None:
    """Record the last step: every chip passes on what landed on it, once per node of origin."""
    topology = recorder.topology
    for node in receivers:
        first = node * topology.node_chips
        for atom, by_chip in held.items():
            own_sent = not reduces
            for gate in range(first, first + topology.node_chips):
                origins = dict(by_chip.get(gate, {}))
                own = origins.pop(node, frozenset())
                landed = frozenset().union(*origins.values())
                if own and not own_sent:
                    landed, own_sent = landed | own, True
                share = None if reduces else _gathered(recorder, holdings, landed)
                for to in targets.get(node, ()):
                    if landed and to != gate:
                        recorder.add(gate, to, sources=landed, atom=atom, share=share)


def _direct(recorder: _Recorder, kind: str, algorithm: str, chips: Sequence[int]) -> list[Transfer]:
    """Record the algorithms inside one node."""
    everyone = frozenset(chips)
    recorder.begin(SPREAD if kind != "send" else "send in node")
    n = len(chips)
    if kind == "send":
        recorder.add(chips[0], chips[-1], sources=frozenset(chips[:1]), atom=0, share=Fraction(1))
        return recorder.transfers
    for src in chips:
        for atom, dst in enumerate(chips):
            if src == dst:
                continue
            own = frozenset([src])
            if kind == "all_reduce" and algorithm == "one_shot":
                for every in range(n):
                    recorder.add(src, dst, sources=own, atom=every)
            elif kind == "all_gather":
                recorder.add(src, dst, sources=own, atom=chips.index(src))
            else:
                recorder.add(src, dst, sources=own, atom=atom)
    if kind == "all_reduce" and algorithm != "one_shot":
        recorder.begin(GATHER)
        for atom, src in enumerate(chips):
            for dst in chips:
                if src != dst:
                    recorder.add(src, dst, sources=everyone, atom=atom)
    return recorder.transfers


def _over_racks(recorder: _Recorder, chips: Sequence[int]) -> None:
    """Record an all-reduce over racks."""
    topology = recorder.topology
    per_rack, size = topology.nodes_per_rack, topology.node_chips
    atoms = range(recorder.n_atoms)
    runs: dict[int, list[int]] = defaultdict(list)
    for chip in chips:
        runs[chip // topology.rack_chips].append(chip)
    sums = {rack: frozenset(members) for rack, members in runs.items()}
    start = len(recorder.transfers), recorder.step, list(recorder._names)
    end = start
    for rack, members in runs.items():
        # All racks take these steps at the same time.
        recorder.step, recorder._names = start[1], list(start[2])
        recorder.begin(SPREAD)
        receivers = range(rack * per_rack, (rack + 1) * per_rack)
        holdings = {x: dict.fromkeys(atoms, frozenset([x])) for x in members}
        if topology.rack_wiring == "line":
            _spread_and_exchange(recorder, holdings, receivers, reduces=True)
        else:
            targets = {node: range(node * size, (node + 1) * size) for node in receivers}
            _flat3(recorder, holdings, receivers, targets)
        end = len(recorder.transfers), recorder.step, list(recorder._names)
    recorder.step, recorder._names = end[1], end[2]
    if topology.rack_wiring == "line":
        _line(recorder, chips, sums)
        return
    landed = _exchange_racks(recorder, runs, sums)
    if topology.rack_wiring == "node":
        recorder.begin(GATHER)
        for gate, by_atom in landed.items():
            for to in _by_node(topology, chips).get(gate // size, ()):
                for atom, sources in by_atom.items():
                    if to != gate:
                        recorder.add(gate, to, sources=sources, atom=atom)
        return
    step, names = recorder.step, list(recorder._names)
    for rack, members in runs.items():
        recorder.step, recorder._names = step, list(names)
        recorder.begin(SPREAD)
        holdings = {x: held for x, held in landed.items() if x // topology.rack_chips == rack}
        receivers = range(rack * per_rack, (rack + 1) * per_rack)
        _flat3(recorder, holdings, receivers, _by_node(topology, members))


def _exchange_racks(
    recorder: _Recorder, runs: Mapping[int, Sequence[int]], sums: Mapping[int, frozenset[int]]
) -> dict[int, dict[int, frozenset[int]]]:
    """Record the exchange between all pairs of racks; return what landed where."""
    topology = recorder.topology
    ports, rack_chips, size = topology.rack_ports, topology.rack_chips, topology.node_chips
    landed: dict[int, dict[int, frozenset[int]]] = defaultdict(dict)
    recorder.begin(RACKS)
    for a in runs:
        for b in runs:
            if a == b:
                continue
            bases: Iterable[int] = (0,)
            if topology.rack_wiring == "node":
                bases = [node * size - b * rack_chips for node in _by_node(topology, runs[b])]
            for base in bases:
                for atom in range(recorder.n_atoms):
                    part = atom * ports.n_links // recorder.n_atoms
                    near, far = ports.ends(a, b, part)
                    src, dst = a * rack_chips + base + near, b * rack_chips + base + far
                    recorder.add(src, dst, sources=sums[a], atom=atom, part=part)
                    landed[dst][atom] = landed[dst].get(atom, frozenset()) | sums[a]
    return landed


def _line(recorder: _Recorder, chips: Sequence[int], sums: Mapping[int, frozenset[int]]) -> None:
    """Record the exchange along a line of racks, then the gather."""
    topology = recorder.topology
    rack_chips, size = topology.rack_chips, topology.node_chips
    recorder.begin(RACKS)
    nodes = _by_node(topology, chips)
    for distance in range(1, len(sums)):
        for origin in sums:
            for way in (-1, 1):
                destination = origin + way * distance
                if destination not in sums:
                    continue
                # Pass on to the next rack whatever any rack from there on needs.
                later = [rack for rack in sums if (rack - destination) * way >= 0]
                places = {
                    node % topology.nodes_per_rack
                    for node in nodes
                    if node // topology.nodes_per_rack in later
                }
                for place in sorted(places):
                    for atom in range(recorder.n_atoms):
                        dst = destination * rack_chips + place * size + atom
                        src = dst - way * rack_chips
                        recorder.add(src, dst, sources=sums[origin], atom=atom)
        recorder.step += 1
    recorder.begin(GATHER)
    for node, members in nodes.items():
        for atom in range(recorder.n_atoms):
            gate = node * size + atom
            for to in members:
                if to != gate:
                    recorder.add(gate, to, sources=frozenset(chips), atom=atom)


def _all_to_all(recorder: _Recorder, nodes: Mapping[int, Sequence[int]]) -> None:
    """Record an all-to-all over nodes of one rack; only loads are followed."""
    topology = recorder.topology
    n_links, n = topology.node_ports.n_links, sum(len(chips) for chips in nodes.values())
    pairs = [(a, b, i) for a in nodes for b in nodes if a != b for i in range(n_links)]
    recorder.begin(SPREAD)
    for members in nodes.values():
        for src in members:
            for dst in members:
                if src != dst:
                    recorder.add(src, dst, share=Fraction(1, n))
    for a, b, i in pairs:
        gate = _gate(topology, a, b, i)
        for src in nodes[a]:
            if src != gate:
                recorder.add(src, gate, share=Fraction(len(nodes[b]), n * n_links))
    recorder.begin(EXCHANGE)
    for a, b, i in pairs:
        share = Fraction(len(nodes[a]) * len(nodes[b]), n * n_links)
        recorder.add(_gate(topology, a, b, i), _gate(topology, b, a, i), share=share, part=i)
    recorder.begin(GATHER)
    for a, b, i in pairs:
        gate = _gate(topology, b, a, i)
        for dst in nodes[b]:
            if dst != gate:
                recorder.add(gate, dst, share=Fraction(len(nodes[a]), n * n_links))


def _mirror(transfers: Sequence[Transfer], topology: Topology) -> list[Transfer]:
    """Run a schedule backwards: an all-gather becomes a reduce-scatter."""
    last = max((transfer.step for transfer in transfers), default=0)
    swap = {SPREAD: GATHER, GATHER: SPREAD, EXCHANGE: EXCHANGE}
    mirrored = []
    for transfer in transfers:
        back = topology.links_between(transfer.dst, transfer.src)
        link = next(link for link in back if link.part == transfer.link.part)
        mirrored.append(
            replace(
                transfer,
                step=last + 1 - transfer.step,
                name=swap[transfer.name],
                src=transfer.dst,
                dst=transfer.src,
                link=link,
            )
        )
    return sorted(mirrored, key=lambda transfer: transfer.step)


def link_transfers(
    topology: Topology, kind: str, algorithm: str, chips: Sequence[int]
) -> list[Transfer]:
    """Write out a collective over one run of contiguous chips, link by link.

    Args:
        topology: the machine.
        kind: one of `links.KINDS`.
        algorithm: one of `links.ALGORITHMS`.
        chips: the run, ascending and without gaps. `send` goes from its first to its last chip.

    Returns:
        All transfers, step by step; empty for one chip.

    Raises:
        UnknownNameError: if the kind or the algorithm has no such name.
        CostError: if the chips are no run, the algorithm needs links that do not exist, or the
            schedule over racks is only priced as another one (see `links.schedule`).
    """
    if kind not in KINDS:
        raise unknown("collective", kind, KINDS)
    if algorithm not in ALGORITHMS:
        raise unknown("algorithm", algorithm, ALGORITHMS)
    chips = list(chips)
    if not chips or chips != list(range(chips[0], chips[0] + len(chips))):
        raise CostError(f"chips {chips} are no run of contiguous chips")
    if len(chips) == 1:
        return []
    nodes = _by_node(topology, chips)
    if len(nodes) == 1:
        return _direct(_Recorder(topology, len(chips)), kind, algorithm, chips)
    if algorithm != "hierarchical":
        raise CostError(f"{algorithm} needs all chips in one node; {len(nodes)} nodes were given")
    n_links = topology.node_ports.n_links
    if chips[0] // topology.rack_chips != chips[-1] // topology.rack_chips:
        if kind != "all_reduce":
            raise CostError(f"{kind} over racks is priced as an all_reduce: ask for that")
        recorder = _Recorder(topology, math.lcm(n_links, topology.rack_ports.n_links))
        _over_racks(recorder, chips)
        return recorder.transfers
    recorder = _Recorder(topology, n_links)
    if kind == "all_to_all":
        _all_to_all(recorder, nodes)
        return recorder.transfers
    recorder.begin(SPREAD)
    every = range(n_links)
    if kind == "send":
        holdings: _Holdings = {chips[0]: dict.fromkeys(every, frozenset(chips[:1]))}
        end = chips[-1] // topology.node_chips
        _flat3(recorder, holdings, [end], {end: chips[-1:]})
        return recorder.transfers
    holdings = {x: dict.fromkeys(every, frozenset([x])) for x in chips}
    reduces = kind == "all_reduce"
    _flat3(recorder, holdings, sorted(nodes), nodes, reduces=reduces)
    if kind == "reduce_scatter":
        return _mirror(recorder.transfers, topology)
    return recorder.transfers
