"""Tasks on an executor: in this process, in threads, in processes, on a cluster.

Results come in the order in which they are ready. Not here: what a task is.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from lpu_jax.arguments import described
from lpu_jax.errors import LpuError

Item = TypeVar("Item")
Result = TypeVar("Result")


def check_executor(executor: object) -> None:
    """Refuse what cannot be given tasks.

    Raises:
        LpuError: it is no executor.
    """
    if executor is not None and not isinstance(executor, Executor):
        raise LpuError(
            f"executor is {described(executor)}; it must be a concurrent.futures.Executor, such as "
            "a ProcessPoolExecutor, or a dask client's get_executor()."
        )


def results(
    work: Callable[[Item], Result], items: Sequence[Item], executor: Executor | None
) -> Generator[tuple[int, Result]]:
    """Do work on items, here or on an executor.

    Args:
        work: a function of a module, so that it can travel.
        items: what it is called with, one after another or at once.
        executor: None: here.

    Yields:
        The number of an item and its result, as soon as it is there.

    Raises:
        LpuError: the executor takes no work, or has lost some.
    """
    if executor is None:
        for number, item in enumerate(items):
            yield number, work(item)
        return
    numbers: dict[Future[Result | _Failure], int] = {}
    try:
        for number, item in enumerate(items):
            numbers[_submitted(executor, work, item)] = number
        for future in as_completed(numbers):
            yield numbers[future], _result(future)
    finally:
        for future in numbers:
            future.cancel()  # what is not begun; what is done stays done


@dataclass(frozen=True)
class _Failure:
    """What work raised, as a value: all that a future raises is then the executor's."""

    problem: Exception


def _tried(work: Callable[[Item], Result], item: Item) -> Result | _Failure:
    try:
        return work(item)
    except Exception as problem:
        problem.add_note(traceback.format_exc())  # which does not travel
        return _Failure(problem)


def _submitted(
    executor: Executor, work: Callable[[Item], Result], item: Item
) -> Future[Result | _Failure]:
    try:
        return executor.submit(_tried, work, item)
    except Exception as problem:  # closed, or out of reach: each kind has errors of its own
        raise _lost(problem) from problem


def _result(future: Future[Result | _Failure]) -> Result:
    try:
        found = future.result()
    except Exception as problem:
        raise _lost(problem) from problem
    if isinstance(found, _Failure):
        raise found.problem
    return found


def _lost(problem: Exception) -> LpuError:
    why = str(problem).strip().rstrip(".") or type(problem).__name__
    return LpuError(f"the executor does no more work: {' '.join(why.split())}.")


@contextmanager
def processes(count: int) -> Iterator[Executor | None]:
    """Have so many processes for work; one is this one.

    They are started afresh, not forked: threads of JAX and NumPy do not survive a fork. Leaving by
    an exception ends them at once, with what they are doing.
    """
    if count == 1:
        yield None
        return
    others = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(count, mp_context=context, initializer=_begin)
    try:
        yield executor
    except BaseException:
        # First, so that cancelled tasks are gone before the executor sees that its processes are:
        # a thread of its would set their exception, which a cancelled future refuses.
        executor.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
        raise
    executor.shutdown()


def _begin() -> None:
    """Leave Ctrl-C to the process that asked, and end when it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
