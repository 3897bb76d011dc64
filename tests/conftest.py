"""Set a hostile JAX before anything imports it: what passes here passes anywhere.

Strict promotion turns a stray float32 literal in a narrow path into an error, rank promotion
turns silent broadcasting into one, and eight CPU devices let every sharded test run for real.
JAX reads these variables once, on import, so they must be set first; the packages themselves are
not imported here, because jaxtyping can only check modules that are imported after its hook.
"""

import gc
import os
import signal
import sys
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

N_CPU_DEVICES = 8
_HERE = Path(__file__).parent

_JAX_ENVIRONMENT = {
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_NUM_CPU_DEVICES": str(N_CPU_DEVICES),
    # A cached executable would hide a change of lowering.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    # Sums must not depend on how many threads share them, and test machines have few cores. What
    # the environment asks for comes last and wins: the suite also runs as older processors would.
    "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen=false {os.environ.get('XLA_FLAGS', '')}".strip(),
}

if "jax" in sys.modules:
    raise pytest.UsageError("jax was imported before tests/conftest.py could configure it")
os.environ.update(_JAX_ENVIRONMENT)
# Not forced: `JAX_PLATFORMS=cuda,cpu make test` runs the same suite on a GPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# A shell ignores it for what runs behind its back, and so would every command that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Derandomised: a failure in CI is the same failure on a desk.
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=50)
# For hunting: `pytest --hypothesis-profile=explore`.
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("ci")


#: Scripts of the dependency group `oracle`, whose packages may not be there.
collect_ignore = [
    "mmasim_products.py",
    "lpu_jax/numerics/data/make_tensor_core.py",
    "models/data/make_tokenizers.py",
]


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs() -> Generator[None]:
    """Free what a file compiled: the next one shares little of it, and memory is not endless."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture(autouse=True, scope="module")
def _unchecked_planner(request: pytest.FixtureRequest) -> Generator[None]:
    """Leave the checks of shapes, most of the time of a search, to the files that are marked so.

    Tests of the planner and of the costs under it make thousands of arrays in a second;
    `tests/sharding/test_shapes.py` takes the main ways through both with the checks.
    """
    with pytest.MonkeyPatch.context() as patch:
        planner = {_HERE / "sharding", _HERE / "lpu_jax" / "cost"}
        is_planner = not planner.isdisjoint(request.path.parents)
        if is_planner and not request.node.get_closest_marker("shapes"):
            _leave_shapes_unchecked(patch)
        yield


@pytest.fixture(autouse=True)
def _unchecked_slow_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the checks of shapes to the fast tests."""
    marks = {mark.name for mark in request.node.iter_markers()}
    if marks & {"slow", "long"} and "shapes" not in marks:
        _leave_shapes_unchecked(monkeypatch)


def _leave_shapes_unchecked(patch: pytest.MonkeyPatch) -> None:
    from jaxtyping import config

    patch.setattr(config, "jaxtyping_disable", True)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave all but the first cases of a test to the slow ones (`first`)."""
    seen: Counter[str] = Counter()
    for item in items:
        mark = item.get_closest_marker("first")
        if mark is None:
            continue
        test = item.nodeid.partition("[")[0]
        seen[test] += 1
        if seen[test] > mark.args[0]:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, Any]:
    """Report what a canary finds as an expected failure: it is no fault of what is tested."""
    report = yield
    if report.when == "call" and report.failed and item.get_closest_marker("canary"):
        assert call.excinfo is not None
        report.outcome = "skipped"
        report.wasxfail = " ".join(call.excinfo.exconly().split())[:300]
    return report
