"""`lpu validate`: every figure again by hand arithmetic, and a miss is a miss."""

import dataclasses
import json
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax.cost.time_report import time as time_of
from lpu_jax.datapath import mxm
from lpu_jax.machine.catalogue import system
from models.policy import POLICIES
from models.zoo import model
from sharding.cli.main import main
from sharding.plan import AttentionShard, MlpShard, Plan
from sharding.predict.evaluate import evaluate
from sharding.rank.compare import compare
from sharding.rank.comparison import Comparison
from sharding.request import Request
from sharding.scenario import Scenario
from sharding.validate import anchors, published
from sharding.validate.figures import Figure, Group, figures_text, within
from sharding.validate.published import Validation

CLOCK_HZ = 0.9e9
#: Latency of the MXM and one transit, once per program.
LATENCY_CYCLES = 64 + 22


@cache
def _checks() -> Validation:
    return published.validate(checks_only=True)


@pytest.mark.slow
def test_every_check_passes_and_says_where_it_is_from() -> None:
    found = _checks()
    assert found.passed
    assert len(found.checks) == 15
    for figure in found.checks:
        assert figure.passed is True
        assert figure.tolerance
        assert figure.source
        assert figure.ours is not None
        assert figure.ratio == figure.ours / figure.published
        assert not figure.is_outside
        if figure.ours_range is not None:
            low, high = figure.ours_range
            assert low <= figure.ours <= high
    assert found.figures == found.checks
    (gpus,) = (figure for figure in found.checks if "H100" in figure.what)
    assert {"memory_efficiency", "link_efficiency", "host_overhead_s"} <= set(gpus.assumed)
    # What decides a fit, or a prompt, is behind no time of a token.
    assert not {"reserved_fraction", "prefill_chunk_tokens"} & set(gpus.assumed)


def _ours(what: str) -> float:
    (figure,) = (f for f in _checks().checks if what in f.what)
    assert figure.ours is not None
    return figure.ours


def test_products_by_hand() -> None:
    """Rounds of tiles: ceil(4096/160) ceil(1601/320) / 2 = 78, each of 2304 rows; and so on."""
    cycles = 78 * 2304 + LATENCY_CYCLES
    assert _ours("worst N") == pytest.approx(2304 * 4096 * 1601 / (102_400 * cycles), rel=1e-12)
    # ceil(32576/160) ceil(1024/320) / 2 = 204 * 4 / 2 rounds of 800 rows on each chip.
    cycles = 408 * 800 + LATENCY_CYCLES
    assert _ours(", 8 chips") == pytest.approx(cycles / CLOCK_HZ * 1e6, rel=1e-12)
    # 564 tiles by 4 columns of tiles, 4 at once; each but the first installs in 20 cycles.
    assert _ours("weight sweep") == pytest.approx((563 * 20 + 1) / CLOCK_HZ * 1e6, rel=1e-12)


def test_the_sweep_over_columns_is_the_time_of_each_product() -> None:
    """One symbolic program against a program traced for that number of columns."""
    columns = np.array([1376, 1600, 1601, 3500])
    for n, share in zip(columns, published.utilisations(columns), strict=True):
        x = jax.ShapeDtypeStruct((2304, 4096), jnp.float16)
        w = jax.ShapeDtypeStruct((4096, int(n)), jnp.float16)
        made = time_of(lambda x, w: mxm.matmul(x, w), x, w, system="groq-node")
        assert share == pytest.approx(2304 * 4096 * n / (102_400 * made.cycles), rel=1e-12)


def test_no_other_number_of_columns_is_worse() -> None:
    shares = published.utilisations(np.arange(1376, 3501))
    assert len(shares) == 2125
    assert shares.min() == _ours("worst N")
    assert shares.max() <= 1


def test_reach_grows_by_one_step_for_two_racks() -> None:
    reach_s = system("lpx-9").topology.reach_s
    steps = [round((reach_s(256 * n + 256) - reach_s(256 * n)) * 1e9, 6) for n in range(1, 9)]
    assert steps == [450.0, 0.0] * 4
    chips = (16, 128, 256, 768, 1280, 1792, 2304)
    assert [_ours(f"reach, {n} chips") for n in chips] == pytest.approx(
        [0.35, 0.75, 1.15, 1.60, 2.05, 2.50, 2.95], rel=1e-9
    )


@pytest.mark.parametrize(
    ("published", "ours", "tolerance", "passed"),
    [
        (100.0, 120.0, 0.2, True),
        (100.0, 79.9, 0.2, False),
        (5.0, 5.0, 0.0, True),
        (5.0, 5.000001, 0.0, False),
        (5.0, float("nan"), 0.2, False),
    ],
)
def test_a_miss_is_a_miss(published: float, ours: float, tolerance: float, passed: bool) -> None:
    figure = within("a", "b", "us", published, ours, tolerance)
    assert figure.passed is passed
    found = dataclasses.replace(_checks(), figures=(*_checks().figures, figure))
    assert found.passed is passed
    assert ("MISS" in found.text()) is not passed
    assert f"{len(found.checks) - (not passed)} of {len(found.checks)} checks pass" in found.text()


def test_a_slower_chip_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a link of twice the latency, one hop and the all-reduce fall out of their tolerance."""

    def slow(name: str) -> Any:
        found = system(name)
        topology = dataclasses.replace(found.topology, local_hop_s=1444e-9)
        return dataclasses.replace(found, topology=topology)

    monkeypatch.setattr(published, "named_system", slow)
    assert published.one_hop().passed is False
    assert published.one_hop().ours == pytest.approx(1444)
    assert published.all_reduce().passed is False


def test_the_command_says_yes_and_no(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missed = dataclasses.replace(
        _checks(), figures=(within("a", "b", "us", 1.0, 2.0, 0.1), *_checks().figures)
    )
    for found, code in ((_checks(), 0), (missed, 1)):
        monkeypatch.setattr(published, "validate", lambda found=found, **_: found)
        with pytest.raises(SystemExit) as leaving:
            main(["validate", "--checks-only", "--json", "-"])
        assert (leaving.value.code or 0) == code
        data = json.loads(capsys.readouterr().out)
        assert data["passed"] is (code == 0)
        assert {"what", "source", "published", "ours", "ratio", "tolerance", "passed"} <= set(
            data["figures"][0]
        )


# --- figures that cannot pass or fail -------------------------------------------------------------


PLAN = Plan(
    stages=20,
    group_chips=24,
    attention=AttentionShard(tensor=8, replica=3),
    mlp=MlpShard(tensor=24),
)


@pytest.fixture
def one_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare one plan where all would be searched: the search is not what is tested here.

    A short context has few sizes of prefill chunks to try.
    """

    def of_one(cfg: Any, machine: Any, request: Request, **others: Any) -> Comparison:
        asked = dataclasses.replace(request, context=2)
        return compare(cfg, machine, asked, **{"plans": [PLAN]} | others)

    monkeypatch.setattr(anchors, "compare", of_one)


@pytest.mark.slow
@pytest.mark.usefixtures("one_plan")
def test_llama_per_layer_by_hand() -> None:
    best, serial = anchors.llama_served()
    assert best.passed is serial.passed is None
    # 1 s / 300 tokens / 80 layers; 69.0e9 B through 18.432 TB/s on one chip after another.
    assert best.published == serial.published == pytest.approx(41.67, rel=1e-3)
    assert serial.ours == pytest.approx(68.98e9 / 18.432e12 / 80 * 1e6, rel=1e-3)
    cfg, machine = model("llama-2-70b"), system("groq-576")
    alone = evaluate([PLAN], Scenario(cfg, machine, Request(context=2), policy=POLICIES["int8"]))
    assert best.ours == pytest.approx(float(alone.latency_s[0]) * 1e6 / 80, rel=1e-12)
    assert best.assumed
    assert best.ours_range is not None
    assert best.ours_range[0] < best.ours < best.ours_range[1]
    assert sum(best.terms.values()) == pytest.approx(best.ours, rel=1e-12)
    assert best.bound == pytest.approx(float(alone.lower_cycles[0]) / 900 / 80, rel=1e-12)


@pytest.mark.parametrize("needed", range(1, 10))
def test_the_fewest_racks_are_found(needed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that fits from some number of racks on; two of too little memory are not tried."""
    tried = []

    def fits(scenario: Scenario) -> bool:
        tried.append(scenario.system.n_chips // 72)
        return scenario.system.n_chips >= 72 * needed

    monkeypatch.setattr(anchors, "fits_somehow", fits)
    cfg = model("llama-2-70b")
    found = anchors.fewest_racks(cfg, anchors.groq_racks, Request(), policy="int8", most=9)
    # 69e9 weights of four bits are 34.5 GB, more than the 33.2 GB of two racks.
    assert found == max(needed, 3)
    assert min(tried, default=3) >= 3


@pytest.mark.slow
@pytest.mark.usefixtures("one_plan")
def test_other_planners_stand_beside_ours() -> None:
    figures, remarks = anchors.peers()
    published = {tuple(f.what.split(", ")[1:]): f.published for f in figures}
    assert published["TP64xPP8", "GenZ"] == 15.01
    assert published["TP8xPP80", "AIC"] == 0.269
    assert len(figures) == len(published) == 7
    ours = {f.what.split(", ")[1]: f.ours for f in figures}
    faster = min(ours, key=lambda name: ours[name])
    assert remarks[0].endswith(f"TokenSim TP64xPP8, ours {faster}.")
    # The embedding in 16 bits on 8 chips: 128,256 x 8,192 x 2 B / 8 = 263 MB before padding.
    assert "does not fit" in remarks[2]
    assert "largest block, embed, has 26" in remarks[2]
    assert all(figure.passed is None for figure in figures)


def test_notes_stand_below_the_table() -> None:
    plain = Figure(what="w", source="s", group=Group.MEASURED, unit="us", published=2.0, ours=1.0)
    text = figures_text("T", [plain, dataclasses.replace(plain, what="v", note="why")])
    assert "0.500" in text
    assert text.splitlines()[-1].strip() == "v: why"
