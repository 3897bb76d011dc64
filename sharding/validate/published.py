"""Published figures against our own readings: accuracy as a command.

Every check goes through the code that prices plans: programs are traced and scheduled, collectives
are priced over links, plans are evaluated. Figures that cannot pass or fail, because too little of
the run is public, are in `anchors` and `projections`. Not modelled: nothing here is tuned; a miss
stays a miss.

Sources, by key: ISCA20 and ISCA22 (papers of the chip and of its network), HC26 (Hot Chips 2026):
see `lpu_jax.machine`. AIConfigurator: NVIDIA's planner, run by hand.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import symbolic_shape
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int

from lpu_jax.cost.placed_machine import one_group
from lpu_jax.cost.program import read
from lpu_jax.cost.schedule import schedule
from lpu_jax.cost.time_report import Report
from lpu_jax.cost.time_report import time as time_of
from lpu_jax.datapath import mxm
from lpu_jax.machine.catalogue import system as named_system
from lpu_jax.machine.lpu_chips import GROQCHIP1
from lpu_jax.machine.system import System
from lpu_jax.machine.time_range import time_range
from lpu_jax.mesh import ChipMesh
from lpu_jax.provenance import constants_of

from ..plan import AttentionShard, MlpShard, Plan
from ..report import Watcher, check_watcher, versions
from ..request import NEXT_TOKEN
from ..scenario import scenario
from .anchors import kimi_served, llama_served, peers
from .differences import differences_text
from .figures import Figure, Group, assumed_names, figures_text, within
from .projections import gemma_served, proxy_projected
from .reading import plan_reading

#: Published range of columns, its ends included.
COLUMNS = (1376, 3500)
#: HC26: chips that a vector reaches, and the time in us.
REACH_US = {16: 0.35, 128: 0.75, 256: 1.15, 768: 1.60, 1280: 2.05, 1792: 2.50, 2304: 2.95}


TITLES = {
    Group.MEASURED: "Measured: published measurements and specifications",
    Group.DERIVED: "Derived: arithmetic on published numbers",
    Group.PROJECTION: "Vendor projections (never pass or fail)",
    Group.PLANNER: "Other planners",
}


@dataclass(frozen=True, kw_only=True)
class Validation:
    """All figures, those that pass or fail and those that only stand beside ours."""

    figures: tuple[Figure, ...]
    remarks: tuple[str, ...] = ()

    @property
    def checks(self) -> tuple[Figure, ...]:
        """Those that pass or fail."""
        return tuple(figure for figure in self.figures if figure.passed is not None)

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(figure.passed for figure in self.checks)

    def of(self, group: Group) -> tuple[Figure, ...]:
        """The figures of one kind."""
        return tuple(figure for figure in self.figures if figure.group is group)

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain values, for JSON."""
        return {
            "passed": self.passed,
            "figures": [figure.as_dict() for figure in self.figures],
            "remarks": list(self.remarks),
            "versions": versions(),
        }

    def text(self) -> str:
        """The figures as tables, one for each kind."""
        missed = sum(not figure.passed for figure in self.checks)
        tables = [
            figures_text(title, self.of(group)) for group, title in TITLES.items() if self.of(group)
        ]
        legend = (
            "over constants: ours with all uncertain constants at their ends; * the published "
            "figure is outside, which is a finding if it was measured. assumed: how many assumed "
            "constants our reading rests on (see --json)."
        )
        verdict = f"{len(self.checks) - missed} of {len(self.checks)} checks pass."
        return "\n".join([*tables, *self.remarks, legend, verdict])

    def explanation(self) -> str:
        """What makes up every difference of more than a factor of 2, as text."""
        return differences_text(self.figures)


def validate(*, checks_only: bool = False, progress: Watcher = lambda *_: None) -> Validation:
    """Read every published figure that we know from the cost model.

    Args:
        checks_only: leave out what cannot pass or fail; that takes longest.
        progress: called with the steps done, the steps in all and what comes next.

    Returns:
        The figures.
    """
    check_watcher("validate", progress)
    progress(0, 5, "chip and links")
    checks = (
        *peaks(),
        utilisation(),
        distributed_product(),
        one_hop(),
        all_reduce(),
        weight_sweep(),
        *reach(),
        gpu_token(),
    )
    if checks_only:
        return Validation(figures=checks)
    progress(1, 5, "Llama-2-70B on 576 chips")
    llama = llama_served()
    kimi = kimi_served(progress)
    proxy = proxy_projected(progress)
    progress(4, 5, "other planners")
    planners, remarks = peers()
    figures = (*checks, *llama, kimi, *gemma_served(), *proxy, *planners)
    return Validation(figures=figures, remarks=remarks)


def _range(system: System, reading: Callable[[System], float]) -> tuple[float, float]:
    """Our reading with all uncertain constants of a machine at either end."""
    low, high = time_range(system, lambda machine: np.array([reading(machine)]))
    return float(low[0]), float(high[0])


def _product(m: int, k: int, n: int, dtype: Any, system: System) -> Report:
    """Time one product on one chip."""
    x, w = jax.ShapeDtypeStruct((m, k), dtype), jax.ShapeDtypeStruct((k, n), dtype)
    return time_of(lambda x, w: mxm.matmul(x, w), x, w, system=system)


def peaks() -> tuple[Figure, ...]:
    """Multiply-accumulates per cycle of GroqChip1: what more rows add to a product's time."""
    figures, machine = [], named_system("groq-node")
    for name, dtype, k, n, published in (
        ("int8", jnp.int8, 320, 1280, 409_600),
        ("fp16", jnp.float16, 160, 640, 102_400),
    ):
        rows = 4096
        once, twice = (_product(m, k, n, dtype, machine).cycles for m in (rows, 2 * rows))
        figures.append(
            within(
                f"GroqChip1 peak, {name}",
                "ISCA20, ISCA22 section 5.2",
                "MAC/cycle",
                float(published),
                rows * k * n / (twice - once),
                0.0,
                group=Group.DERIVED,
            )
        )
    return tuple(figures)


def utilisations(
    columns: Int[np.ndarray, " n"], system: System | None = None
) -> Float[np.ndarray, " n"]:
    """Share of the fp16 peak that [2304 x 4096] x [4096 x N] reaches on one chip, for each N.

    The product is traced once, with N as a symbol, and scheduled for all N at once.
    """
    m, k = 2304, 4096
    (n,) = symbolic_shape("n")
    x = jax.ShapeDtypeStruct((m, k), jnp.float16)
    w = jax.ShapeDtypeStruct((k, n), jnp.float16)
    program = read(jax.make_jaxpr(lambda x, w: mxm.matmul(x, w))(x, w))
    machine = one_group(system or named_system("groq-node"), 1)
    cycles = schedule(program, machine, {"n": columns}).cycles
    return np.asarray(m * k * columns / (machine.chip.mxm_mode("fp16").macs_per_cycle * cycles))


def utilisation() -> Figure:
    """The worst of all N of the published range; none may exceed the peak."""
    columns = np.arange(COLUMNS[0], COLUMNS[1] + 1)
    machine = named_system("groq-node")
    shares = utilisations(columns, machine)
    worst, best = int(shares.argmin()), int(shares.argmax())
    return Figure(
        what="[2304x4096] x [4096xN] fp16, 1 chip, worst N",
        source='ISCA22 section 5.2: "at least 80 %"',
        group=Group.MEASURED,
        unit="of peak",
        published=0.8,
        ours=float(shares[worst]),
        tolerance="80..100%",
        passed=bool(shares[worst] >= 0.8 and shares[best] <= 1.0),
        note=f"every N = {COLUMNS[0]}..{COLUMNS[1]}; worst N = {columns[worst]}, best N = "
        f"{columns[best]} with {shares[best]:.1%}",
        assumed=assumed_names(
            _product(2304, 4096, int(columns[worst]), jnp.float16, machine).assumed
        ),
        ours_range=_range(machine, lambda one: float(utilisations(columns, one).min())),
    )


def distributed_product() -> Figure:
    """Columns split over the 8 chips of a node; the left factor on every chip, the result left."""
    machine = named_system("groq-node")
    made = _over_a_node(machine)
    mode = GROQCHIP1.mxm_mode("fp16")
    share = 800 * 32576 * 1024 / (mode.macs_per_cycle * made.cycles)
    return within(
        "[800x32576] x [32576x8192] fp16, 8 chips",
        "ISCA22 Fig. 14, read off the figure",
        "us",
        330.0,
        made.seconds * 1e6,
        0.20,
        note=f"columns split; {share:.1%} of peak, published 88 %: a chip's 1,024 columns fill "
        "3.2 of 4 tiles",
        assumed=assumed_names(made.assumed),
        ours_range=_range(machine, lambda one: _over_a_node(one).seconds * 1e6),
    )


def _over_a_node(system: System) -> Report:
    """Time the product whose columns are split over 8 chips."""
    x = jax.ShapeDtypeStruct((800, 32576), jnp.float16)
    w = jax.ShapeDtypeStruct((32576, 8192), jnp.float16)
    return time_of(
        lambda x, w, axes: mxm.matmul(x, w),
        x,
        w,
        system=system,
        mesh=ChipMesh(axes=(("columns", 8),), topology=system.topology),
        in_specs=(P(), P(None, "columns")),
        out_specs=P(None, "columns"),
    )


def one_hop() -> Figure:
    """One vector over one link of a node."""
    machine = named_system("groq-node")
    return within(
        "one hop, memory to memory",
        "ISCA22",
        "ns",
        722.0,
        _collective_s(machine, "send", 2) * 1e9,
        0.02,
        assumed=assumed_names(constants_of(machine.topology)),
        ours_range=_range(machine, lambda one: _collective_s(one, "send", 2) * 1e9),
    )


def all_reduce() -> Figure:
    """One vector over 256 chips of 33 linked nodes."""
    machine = named_system("groq-264")
    return within(
        "all-reduce of one vector, 256 chips",
        "ISCA22: 3 hops of 722 ns, printed as 2.1 us",
        "ns",
        2166.0,
        _collective_s(machine, "all_reduce", 256) * 1e9,
        0.02,
        group=Group.DERIVED,
        assumed=assumed_names(constants_of(machine.topology)),
        ours_range=_range(machine, lambda one: _collective_s(one, "all_reduce", 256) * 1e9),
    )


def _collective_s(system: System, kind: str, n_chips: int) -> float:
    machine = one_group(system, n_chips)
    payload_bytes = machine.topology.frame_payload_bytes
    last = machine.collective_cycles(kind, "auto", n_chips, 1, payload_bytes).last
    return float(last) / float(system.chip.clock_hz)


def weight_sweep() -> Figure:
    """One row times as many weights as fill the memory of a GroqChip1."""
    machine, columns = named_system("groq-node"), 4 * 320
    made = _product(1, machine.chip.memory_bytes // columns, columns, jnp.int8, machine)
    return within(
        "weight sweep of a whole GroqChip1",
        "220 MiB over 64 streams",
        "us",
        12.5,
        made.operations[-1].busy_cycles / made.clock_hz * 1e6,
        0.01,
        group=Group.DERIVED,
        note=f"busy time of the MXM; {made.seconds * 1e6:.2f} us with transit and its latency",
    )


def reach() -> tuple[Figure, ...]:
    """How soon one chip's vector is anywhere among the first chips of nine LPX racks."""
    machine = named_system("lpx-9")

    def figure(n_chips: int, published: float) -> Figure:
        return within(
            f"Groq 3 LPX reach, {n_chips} chips",
            "HC26",
            "us",
            published,
            _reach_s(machine, n_chips) * 1e6,
            0.02,
            assumed=assumed_names(c for c in constants_of(machine.topology) if c.unit == "s"),
            ours_range=_range(machine, lambda one: _reach_s(one, n_chips) * 1e6),
        )

    return tuple(figure(n_chips, published) for n_chips, published in REACH_US.items())


def _reach_s(system: System, n_chips: int) -> float:
    assert system.lpus is not None
    return system.lpus[1].reach_s(n_chips)


def gpu_token() -> Figure:
    """One token of Llama-3.1-70B in bf16 on 8 H100, tensor parallel: a roofline, not a schedule."""
    plan = Plan(group_chips=8, attention=AttentionShard(tensor=8), mlp=MlpShard(tensor=8))
    asked = scenario("llama-3.1-70b", "h100x8", NEXT_TOKEN, policy="bf16")
    reading = plan_reading(plan, asked, 1e3)
    return within(
        "Llama-3.1-70B bf16 token, TP8 on 8 H100",
        "AIConfigurator 0.12.0, measured kernels",
        "ms",
        9.985,
        reading.pop("ours"),
        0.30,
        group=Group.PLANNER,
        note=f"a roofline, batch 1, context 4096; its lower bound is {reading['bound']:.3f} ms, "
        "the tool's speed of light 5.253 ms",
        **reading,
    )
