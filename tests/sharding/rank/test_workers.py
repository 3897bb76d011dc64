"""Work on executors: the same results whoever does it, and one sentence when nobody can."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from lpu_jax.errors import LpuError
from sharding.rank.sweep import sweep
from sharding.rank.workers import processes, results
from sharding.request import Request

REPOSITORY = Path(__file__).parents[3]
ITEMS = tuple(range(7))
#: Until a process must have ended; it takes a hundredth of it.
PATIENCE_S = 60.0


def _square(number: int) -> int:
    return number * number


def _refuse_three(number: int) -> int:
    if number == 3:
        raise LpuError("three is too many.")
    return number


class Backwards(Executor):
    """Does so many tasks at once, the last first."""

    def __init__(self, count: int) -> None:
        self.count, self.tasks = count, list[tuple[Future[Any], Any]]()

    def submit(self, work: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.tasks.append((future, lambda: work(*args, **options)))
        if len(self.tasks) == self.count:
            for waiting, task in reversed(self.tasks):
                waiting.set_result(task())
        return future


@contextmanager
def _backwards() -> Iterator[Executor]:
    yield Backwards(len(ITEMS))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ThreadPoolExecutor(3),
        _backwards,
        pytest.param(
            lambda: ProcessPoolExecutor(2, mp_context=get_context("spawn")), marks=pytest.mark.slow
        ),
    ],
    ids=["threads", "backwards", "processes"],
)
def test_every_result_has_its_number(make: Callable[[], Any]) -> None:
    with make() as executor:
        found = list(results(abs, ITEMS, executor))
    assert sorted(found) == [(number, number) for number in ITEMS]
    assert list(results(_square, ITEMS, None)) == [(n, n * n) for n in ITEMS]


def test_a_mistake_of_the_work_is_its_own() -> None:
    with ThreadPoolExecutor(2) as executor, pytest.raises(LpuError, match="three is too many"):
        list(results(_refuse_three, ITEMS, executor))


def test_what_is_not_begun_is_called_off() -> None:
    begun, go_on = [], threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if len(begun) > 1:  # the first is done, the second under way
            go_on.wait(PATIENCE_S)
        return number

    with ThreadPoolExecutor(1) as executor:
        arriving = results(work, ITEMS, executor)
        next(arriving)
        arriving.close()
        go_on.set()
    assert len(begun) <= 2  # one that is done, and one that was under way


class Lost(Executor):
    """Takes tasks and loses them."""

    def __init__(self, problem: Exception) -> None:
        self.problem = problem

    def submit(self, work: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(self.problem)
        return future


def _closed() -> Executor:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    return executor


def _cancelling() -> Executor:
    class Cancelling(Executor):
        def submit(self, work: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    return Cancelling()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_closed, "cannot schedule new futures after shutdown"),
        (_cancelling, "CancelledError"),
        (
            lambda: Lost(BrokenProcessPool("A process\n was terminated.")),
            "A process was terminated",
        ),
        (lambda: Lost(ConnectionRefusedError(111, "Connection refused")), "Connection refused"),
        (lambda: Lost(RuntimeError("the cluster is gone")), "the cluster is gone"),
    ],
)
def test_an_executor_that_does_no_more_work_is_one_sentence(
    make: Callable[[], Executor], why: str
) -> None:
    with pytest.raises(LpuError) as refused:
        list(results(_square, ITEMS, make()))
    sentence = str(refused.value)
    assert sentence.startswith("the executor does no more work: ")
    assert why in sentence
    assert sentence.count(".") == 1
    assert "\n" not in sentence


# --- processes ----------------------------------------------------------------------------------


def test_one_process_is_this_one() -> None:
    with processes(1) as executor:
        assert executor is None


@pytest.mark.slow
def test_processes_end_with_the_work() -> None:
    with processes(2) as executor:
        assert executor is not None
        pids = {executor.submit(os.getpid).result() for _ in range(8)}
    assert pids
    assert os.getpid() not in pids
    assert all(_is_gone(pid) for pid in pids)


@pytest.mark.slow
def test_an_exception_ends_processes_in_their_work() -> None:
    pids = []

    def work() -> None:
        with processes(2) as executor:
            assert executor is not None
            pids.append(executor.submit(os.getpid).result())
            executor.submit(time.sleep, PATIENCE_S)
            raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        work()
    assert time.monotonic() - begun < PATIENCE_S
    assert _is_gone(pids[0])


#: Prints the number of a process that works for it, and goes on for long.
_PARENT = """
import os, signal, time
from sharding.rank.workers import processes
# A shell lets what it starts in the background ignore Ctrl-C, and that is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)
with processes(2) as executor:
    print(executor.submit(os.getpid).result(), flush=True)
    executor.submit(time.sleep, 100).result()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_their_parent(how: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.send_signal(how)
    _, said = parent.communicate(timeout=PATIENCE_S)
    assert _is_gone(pid)
    assert said.count("Traceback") == (how == signal.SIGINT)  # its own, and none of the others'


def _is_gone(pid: int) -> bool:
    """Whether a process has ended, or does so soon."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return True  # it only waits to be asked for
        time.sleep(0.01)
    return False


# --- sweeps -------------------------------------------------------------------------------------

SYSTEMS, BATCHES = ("groq-2", "groq-1"), (1, 2)
N_CASES = 4


def _digest(executor: Executor | None) -> str:
    found = sweep(
        "smollm2-135m", SYSTEMS, Request(context=2), policies="int8", batches=BATCHES,
        executor=executor,
    )  # fmt: skip
    return hashlib.sha256(found.to_json().encode()).hexdigest()


@pytest.fixture(scope="module")
def alone() -> str:
    """The bytes of the sweep in this process."""
    return _digest(None)


@pytest.mark.slow
def test_threads_give_the_same_bytes(alone: str) -> None:
    with ThreadPoolExecutor(3) as executor:
        assert _digest(executor) == alone


@pytest.mark.slow
def test_any_order_gives_the_same_bytes(alone: str) -> None:
    assert _digest(Backwards(N_CASES)) == alone


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_processes_give_the_same_bytes(count: int, alone: str) -> None:
    with processes(count) as executor:
        assert _digest(executor) == alone


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_bytes(alone: str) -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        executor = client.get_executor()
        assert _digest(executor) == alone
        client.close()
        with pytest.raises(LpuError, match="the executor does no more work"):
            _digest(executor)


@pytest.mark.slow
def test_tasks_given_up_leave_no_word_of_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """However late the executor is told, none of its threads fails over a cancelled task."""
    heard = list[object]()
    monkeypatch.setattr(threading, "excepthook", heard.append)
    shut = ProcessPoolExecutor.shutdown

    def late(executor: ProcessPoolExecutor, *args: Any, **options: Any) -> None:
        time.sleep(0.5)
        shut(executor, *args, **options)

    monkeypatch.setattr(ProcessPoolExecutor, "shutdown", late)
    others = set(threading.enumerate())
    with suppress(KeyboardInterrupt), processes(2) as executor:
        arriving = results(time.sleep, [0.02] * 3_000, executor)
        for _ in range(50):  # so that both processes are at work
            next(arriving)
        arriving.close()
        raise KeyboardInterrupt
    for thread in set(threading.enumerate()) - others:
        thread.join(5.0)
    assert heard == []
