"""Jobs of `bench_peers` in an environment with aiconfigurator-core: decode steps of many plans.

A plan is tensor, pipeline and data ranks of attention, and tensor and expert ranks of the experts,
all powers of two. `compiled` is its documented way, an engine a plan, and each loads the measured
tables. `compiled_beside` is the same while another engine holds them. `op_lists` is the fastest
way found: one engine, and each plan is a list of operations that it times; what it has timed once
it does not time again.
"""

import logging
from collections.abc import Callable
from itertools import product

from aiconfigurator_core.sdk import EngineHandle
from aiconfigurator_core.sdk.config_builders import build_model_config
from aiconfigurator_core.sdk.engine import build_ops_json
from aiconfigurator_core.sdk.errors import PerfDataNotAvailableError
from aiconfigurator_core.sdk.models import get_model
from aiconfigurator_core.sdk.perf_database import get_database
from worker import serve

MODEL, SYSTEM, BACKEND = "nvidia/Kimi-K2.5-NVFP4", "b200_sxm", "trtllm"
MOST_GPUS, CONTEXT = 64, 8192
#: Of the plans that load the tables, one in so many is timed.
FEW = 55
Plan = dict[str, int]
_engines: dict[str, EngineHandle] = {}


def _plans() -> list[Plan]:
    ranks = [2**power for power in range(MOST_GPUS.bit_length())]
    return [
        {
            "tp_size": tensor,
            "pp_size": pipeline,
            "attention_dp_size": data,
            "moe_tp_size": moe_tensor,
            "moe_ep_size": tensor * data // moe_tensor,
        }
        for pipeline, tensor, data, moe_tensor in product(ranks, repeat=4)
        if pipeline * tensor * data <= MOST_GPUS and tensor * data % moe_tensor == 0
    ]


def _of_op_list(plan: Plan, context: int) -> float:
    """Milliseconds of a decode step from the operations of a plan."""
    model = get_model(MODEL, build_model_config(**plan), BACKEND)
    ops = _engines["tables"].evaluate_ops_json(
        build_ops_json(model.generation_ops), is_context=False, batch_size=1, s=context + 1
    )
    return sum(latency_ms for _, latency_ms, *_ in ops)


def _of_compiled(plan: Plan, context: int) -> float:
    """Milliseconds of a decode step from an engine of a plan."""
    engine = EngineHandle.compile(MODEL, SYSTEM, BACKEND, **plan)
    return float(engine.predict_decode_latency(1, context, 2))


def prepare(way: str) -> None:
    """Time a plan; both ways must say the same. All but `compiled` keep the measured tables."""
    logging.disable(logging.WARNING)
    _engines["tables"] = EngineHandle.for_database(get_database(SYSTEM, BACKEND, "current"))
    both = [decode_ms(_plans()[-1], CONTEXT - 1) for decode_ms in (_of_compiled, _of_op_list)]
    assert abs(both[0] - both[1]) <= 1e-6 * both[0]
    if way == "compiled":
        _engines.clear()


def _each(decode_ms: Callable[[Plan, int], float], context: int, every: int = 1) -> int:
    """Time plans; return of how many the tables have all operations."""
    timed = 0
    for plan in _plans()[::every]:
        try:
            decode_ms(plan, context)
        except PerfDataNotAvailableError:
            continue
        timed += 1
    return timed


def compiled(turn: int) -> int:
    """Time a few plans, each turn one position later; return how many have measured tables."""
    return _each(_of_compiled, CONTEXT + turn, FEW)


def compiled_beside(turn: int) -> int:
    """Time all plans while another engine holds the tables."""
    return _each(_of_compiled, CONTEXT + turn)


def op_lists(turn: int) -> int:
    """Time all plans by their lists of operations."""
    return _each(_of_op_list, CONTEXT + turn)


if __name__ == "__main__":
    serve((prepare, compiled, compiled_beside, op_lists))
