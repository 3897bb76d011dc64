"""Pictures of a plan: files of the right kind, the same each time, with the loads of its links."""

from pathlib import Path

import numpy as np
import pytest

from lpu_jax.errors import LpuError
from lpu_jax.machine.catalogue import system
from models.policy import policy_named
from models.zoo import model
from sharding.detail.explain import explanation
from sharding.detail.plots import load_matrix, plan_plot, stage_link_load
from sharding.detail.scheduled import ScheduledPlan, schedule_plan
from sharding.files import write_file
from sharding.pictures import picture_format
from sharding.plan import AttentionShard, MlpShard, Plan
from sharding.request import Request
from sharding.scenario import Scenario

PLAN = Plan(group_chips=8, attention=AttentionShard(replica=8), mlp=MlpShard(tensor=8))


@pytest.fixture(scope="module")
def small() -> ScheduledPlan:
    cfg = model("smollm2-135m")
    policy = policy_named("fp16", cfg)
    return schedule_plan(
        PLAN, Scenario(cfg, system("groq-node"), Request(context=64), policy=policy)
    )


@pytest.mark.slow
def test_a_picture_is_a_png_and_the_same_each_time(small: ScheduledPlan) -> None:
    once = plan_plot(small, "png")
    assert once.startswith(b"\x89PNG\r\n")
    assert once == plan_plot(small, "png")


@pytest.mark.slow
def test_a_drawing_names_its_parts(small: ScheduledPlan) -> None:
    drawn = plan_plot(small, "svg").decode()
    assert drawn == plan_plot(small, "svg").decode()
    for part in (
        "smollm2-135m", "MXM", "VXM", "C2C", "us from the start of the block", "receiving chip",
        "dense x30", "attention x30", "rests on assumed constants", "matmul",
    ):  # fmt: skip
        assert part in drawn


def test_the_link_map_is_what_a_stage_sends(small: ScheduledPlan) -> None:
    src, dst, busy_us = stage_link_load(small, small.stages[0])
    # eight chips of a node, a link each way between any two, all of them used alike
    assert len(src) == 8 * 7
    assert set(zip(src.tolist(), dst.tolist(), strict=True)) == {
        (a, b) for a in range(8) for b in range(8) if a != b
    }
    # and each as long as the closed form says of the busiest link, over all blocks of the stage
    priced = sum(
        block.count * use.busiest_link_cycles
        for block in explanation(small).blocks
        for use in block.collectives
    )
    clock_hz = small.evaluation.clock_hz
    assert busy_us.max() == pytest.approx(priced / clock_hz * 1e6, rel=1e-9)
    assert 0 < busy_us.min() <= busy_us.max() < small.latency_cycles / clock_hz * 1e6


def test_a_matrix_keeps_the_busiest_link_of_each_pair() -> None:
    src, dst = np.array([3, 3, 9]), np.array([9, 9, 3])
    places, matrix = load_matrix(src, dst, np.array([1.0, 2.0, 5.0]))
    assert places.tolist() == [3, 9]
    assert matrix.tolist() == [[0.0, 2.0], [5.0, 0.0]]


def test_pictures_of_one_chip_have_no_links() -> None:
    cfg = model("smollm2-135m")
    alone = Plan(group_chips=1, attention=AttentionShard(), mlp=MlpShard())
    plan = schedule_plan(
        alone,
        Scenario(cfg, system("groq-node"), Request(context=64), policy=policy_named("fp16", cfg)),
    )
    assert "no link is used inside a stage" in plan_plot(plan, "svg").decode()


def test_files_are_pictures_by_their_suffix(tmp_path: Path) -> None:
    assert picture_format(tmp_path / "a.SVG") == "svg"
    for name in ("a.gif", "a"):
        with pytest.raises(LpuError, match=r"must end in \.png, \.svg or \.pdf"):
            picture_format(tmp_path / name)
    write_file(tmp_path / "a.png", b"drawn")
    assert (tmp_path / "a.png").read_bytes() == b"drawn"
    with pytest.raises(LpuError, match="cannot be written"):
        write_file(tmp_path / "none" / "a.png", b"drawn")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
